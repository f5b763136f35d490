import asyncio
import errno
import os
from pathlib import Path

import pytest

from vstore.scsi.kept_state import StateLost
from vstore.target.state_file import SLOT, StateFile


def opener(path: Path, made: list[bool] | None = None) -> StateFile:
    def open_file(make: bool) -> int | None:
        if made is not None:
            made.append(make)
        try:
            return os.open(path, os.O_RDWR | (os.O_CREAT if make else 0), 0o600)
        except FileNotFoundError:
            return None

    return StateFile(open_file)


def loaded(path: Path, *names: str) -> list[bytes | None]:
    """What another process would find."""
    file = opener(path)
    found = [file.section(name).load() for name in names]
    file.close()
    return found


async def saved(path: Path, **sections: str) -> None:
    file = opener(path)
    for name, text in sections.items():
        await file.section(name).save(text.encode())
    file.close()


async def test_of_what_is_no_longer_kept_nothing_stays_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "state"
    await saved(path, one="secret" * 10000, other="x")
    await saved(path, one="")
    await saved(path, other="y")
    data = await asyncio.to_thread(path.read_bytes)
    assert b"secret" not in data
    assert loaded(path, "one", "other") == [b"", b"y"]


async def test_what_was_saved_is_there_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "state"
    await saved(path, one="a", other="b")
    await saved(path, one="c ü")
    assert loaded(path, "one", "other", "third") == ["c ü".encode(), b"b", None]


async def test_the_file_is_made_by_the_first_save_alone(tmp_path: Path) -> None:
    path, made = tmp_path / "state", list[bool]()
    file = opener(path, made)
    assert file.section("one").load() is None
    assert not path.exists()
    await file.section("one").save(b"1")
    await file.section("one").save(b"2")
    assert made == [False, True]
    file.close()
    file.close()


@pytest.mark.parametrize("saves", range(1, 5))
@pytest.mark.parametrize("kept", [0, 1, 10, 23, 24, 30])
async def test_a_save_that_was_torn_leaves_what_was_saved_before(tmp_path: Path, saves: int, kept: int) -> None:
    path = tmp_path / "state"
    for number in range(saves):
        await saved(path, one=str(number))
    before = path.read_bytes()
    await saved(path, one="the last")
    after, at = path.read_bytes(), (saves + 1) % 2 * SLOT
    torn = after[: at + kept] + before[at + kept :].ljust(len(after) - at - kept, b"\0")
    path.write_bytes(torn)
    assert loaded(path, "one") == [str(saves - 1).encode()]


@pytest.mark.parametrize("length", [0, 1, 24, 100])
async def test_a_file_that_was_being_made_holds_nothing_yet(tmp_path: Path, length: int) -> None:
    path = tmp_path / "state"
    path.write_bytes(b"\0" * length)
    assert loaded(path, "one") == [None]
    await saved(path, one="x")
    assert loaded(path, "one") == [b"x"]


async def test_what_cannot_be_read_any_more_is_lost_until_something_is_saved(tmp_path: Path) -> None:
    path = tmp_path / "state"
    await saved(path, one="x")
    path.write_bytes(bytes(len(path.read_bytes())))
    file = opener(path)
    with pytest.raises(StateLost):
        file.section("one").load()
    await file.section("one").save(b"y")
    assert file.section("one").load() == b"y"
    file.close()
    assert loaded(path, "one") == [b"y"]


async def test_many_saves_at_once_undo_none(tmp_path: Path) -> None:
    path = tmp_path / "state"
    file = opener(path)
    await asyncio.gather(*(file.section(f"s{n}").save(str(n).encode()) for n in range(10)))
    file.close()
    assert loaded(path, *(f"s{n}" for n in range(10))) == [str(n).encode() for n in range(10)]


async def test_a_save_goes_on_when_its_caller_is_cancelled(tmp_path: Path) -> None:
    path = tmp_path / "state"
    file = opener(path)
    first = asyncio.get_running_loop().create_task(file.section("one").save(b"1"))
    await asyncio.sleep(0)
    first.cancel()
    await file.section("other").save(b"2")
    await file.settle()
    file.close()
    assert first.cancelled()
    assert loaded(path, "one", "other") == [b"1", b"2"]


async def test_a_state_that_is_too_large_is_refused_and_the_old_one_stands(tmp_path: Path) -> None:
    path = tmp_path / "state"
    file = opener(path)
    await file.section("one").save(b"x")
    with pytest.raises(OSError, match="bytes; 1048552 are possible"):
        await file.section("one").save(b"x" * SLOT)
    assert file.section("one").load() == b"x"
    file.close()


async def test_where_no_file_can_be_made_nothing_is_saved() -> None:
    file = StateFile(lambda _: None)
    with pytest.raises(OSError, match="no place") as refused:
        await file.section("one").save(b"x")
    assert (refused.value.errno, file.section("one").load()) == (errno.EROFS, None)


def test_a_file_that_cannot_be_read_is_an_error_and_is_closed(tmp_path: Path) -> None:
    directory = os.open(tmp_path, os.O_RDONLY)
    with pytest.raises(IsADirectoryError):
        StateFile(lambda _: directory)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(directory)


async def test_what_is_lost_stays_lost_when_something_else_is_saved(tmp_path: Path) -> None:
    """Else a guest that saves a mode parameter would lift a reservation that nobody can read."""
    path = tmp_path / "state"
    path.write_bytes(bytes(2 * SLOT))
    await saved(path, one="a")
    assert loaded(path, "one") == [b"a"]
    with pytest.raises(StateLost):
        loaded(path, "other")
    await saved(path, other="b")
    assert loaded(path, "one", "other") == [b"a", b"b"]
