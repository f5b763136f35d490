"""The mover copies what pieces say into the places that rooms give, and nothing that is zeros."""

import errno
import os
import random
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pytest

from vstore.dataplane import mover as mover_module
from vstore.dataplane.mover import NOWHERE, Mover, Piece

MIB = 1 << 20


@pytest.fixture
def files(tmp_path: Path) -> Iterator[tuple[int, int]]:
    """A source of 4 MiB, of which a third are zeros, and an empty target."""
    draw = random.Random(4)
    parts = [bytes(4096) if draw.random() < 0.3 else draw.randbytes(4096) for _ in range(1024)]
    (tmp_path / "source").write_bytes(b"".join(parts))
    descriptors = os.open(tmp_path / "source", os.O_RDONLY), os.open(tmp_path / "target", os.O_RDWR | os.O_CREAT)
    yield descriptors
    for descriptor in descriptors:
        os.close(descriptor)


def ignore(reached: int) -> None:
    """Who waits does not care how far it got."""


def scattered(source: int, end: int) -> list[Piece]:
    """Pieces of odd lengths with gaps, in the order of the disk but not of the file."""
    draw, pieces, at = random.Random(5), [], 512
    while at < end - 512:
        length = min(draw.choice((512, 1536, 4096, 70_144, 1_500_160)), end - at)
        pieces.append((at, length, draw.randrange(0, 4 * MIB - length) & -512, source))
        at += length + draw.choice((0, 512, 8192, 2 * MIB))
    return pieces


def disk(source: int, pieces: list[Piece], end: int) -> bytes:
    """What the pieces say, read without a mover."""
    data = bytearray(end)
    for start, length, offset, _ in pieces:
        data[start : start + length] = os.pread(source, length, offset)
    return bytes(data)


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("unit", [512, 4096, 65536, 2 * MIB])
def test_units_follow_each_other_in_the_order_of_the_disk(files: tuple[int, int], unit: int, threads: int) -> None:
    source, target = files
    end = 19 * MIB + 1536
    pieces = scattered(source, end)
    with Mover(target, unit, threads) as mover:
        mover.start(0, end, pieces, [(3 * unit, unit), (8 * unit, 40 * unit), (100 * unit, 32 * MIB)])
        places = mover.wait(ignore)
    check_places(target, disk(source, pieces, end), unit, places, [3, *range(8, 48), *range(100, 1 << 16)])


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("unit", [512, 65536])
def test_a_stretch_goes_on_where_the_one_before_has_left_the_rooms(
    files: tuple[int, int], unit: int, threads: int
) -> None:
    source, target = files
    end, step = 40 * MIB, 8 * MIB
    pieces = [piece for piece in scattered(source, end) if piece[0] // step == (piece[0] + piece[1] - 1) // step]
    rooms = [
        [(3 * unit, unit), (8 * unit, step)],
        [],
        [(2 * step, 5 * unit), (4 * step, 2 * step)],
        [],
        [(8 * step, 4 * step)],
    ]
    places = array("Q")
    with Mover(target, unit, threads) as mover:
        for at in range(0, end, step):
            if at >= 2 * step:
                places += mover.wait(ignore)
            inside = [piece for piece in pieces if at <= piece[0] < at + step]
            mover.start(at, at + step, inside, rooms[at // step])
        while len(places) < end // unit:
            places += mover.wait(ignore)
    wanted = [place // unit for room in rooms for first, length in room for place in range(first, first + length, unit)]
    check_places(target, disk(source, pieces, end), unit, places, wanted)


def check_places(target: int, expected: bytes, unit: int, places: Sequence[int], rooms: Iterable[int]) -> None:
    """Each unit that holds something lies in the next of the `rooms`, which are told in units."""
    room = iter(rooms)
    for n, place in enumerate(places):
        unit_bytes = expected[n * unit : (n + 1) * unit]
        if any(unit_bytes):
            assert place == next(room) * unit
            assert os.pread(target, len(unit_bytes), place) == unit_bytes
        else:
            assert place == NOWHERE


@pytest.mark.parametrize("unit", [512, 65536])
def test_units_with_places_of_their_own_lie_there_and_zeros_are_not_written(files: tuple[int, int], unit: int) -> None:
    source, target = files
    end = 24 * MIB - 512
    pieces = scattered(source, end)
    os.pwrite(target, b"\xaa" * end, 4096)
    with Mover(target, unit, 2) as mover:
        for start, stop in ((0, 8 * MIB), (8 * MIB, end)):
            inside = [piece for piece in pieces if start <= piece[0] and piece[0] + piece[1] <= stop]
            mover.start(start, stop, inside, base=4096 + start)
            assert len(mover.wait(ignore)) == 0
    inside = [piece for piece in pieces if not piece[0] < 8 * MIB < piece[0] + piece[1]]
    expected, found = disk(source, inside, end), os.pread(target, end, 4096)
    for at in range(0, end, unit):
        wanted = expected[at : at + unit]
        assert found[at : at + unit] == (wanted if any(wanted) else b"\xaa" * len(wanted))


@pytest.mark.parametrize(
    "pieces",
    [
        [],
        [(0, 0, 0)],
        [(0, 8192, 0), (4096, 4096, 0)],
        [(8192, 4096, 0), (0, 4096, 0)],
        [(0, 2 * MIB, 0)],
        [(MIB, 1, 0)],
        [(0, 1 << 63, 0)],
        [(0, 4096, (1 << 63) - 1)],
    ],
)
def test_a_stretch_that_contradicts_itself_is_refused(
    files: tuple[int, int], pieces: list[tuple[int, int, int]]
) -> None:
    source, target = files
    with Mover(target, 4096, 1) as mover:
        with pytest.raises(OSError, match="mover_start") as caught:
            mover.start(0, MIB, [(*piece, source) for piece in pieces], [(0, MIB)])
        assert caught.value.errno == errno.EINVAL


def test_rooms_that_are_too_small_are_an_error_and_not_a_hang(files: tuple[int, int]) -> None:
    source, target = files
    with Mover(target, 4096, 2) as mover:
        mover.start(0, 4 * MIB, [(0, 4 * MIB, 0, source)], [(0, MIB)])
        with pytest.raises(OSError, match="copying") as caught:
            mover.wait(ignore)
        assert caught.value.errno == errno.ENOBUFS
        with pytest.raises(OSError, match="mover_start"):
            mover.start(0, 4 * MIB, [(0, 4 * MIB, 0, source)], [(0, 4 * MIB)])


@pytest.mark.parametrize("missing", [1, 512, 3 * MIB])
def test_a_file_that_ends_before_its_piece_is_an_error_and_not_zeros(files: tuple[int, int], missing: int) -> None:
    source, target = files
    with Mover(target, 4096, 2) as mover:
        mover.start(0, 8 * MIB, [(MIB, 4 * MIB, missing, source)], base=0)
        with pytest.raises(OSError, match="copying") as caught:
            mover.wait(ignore)
        assert caught.value.errno == errno.ENODATA


@pytest.mark.parametrize("which", ["source", "target"])
def test_what_cannot_be_read_or_written_is_told(files: tuple[int, int], tmp_path: Path, which: str) -> None:
    source, target = files
    folder = os.open(tmp_path, os.O_RDONLY)
    read_only = os.open(tmp_path / "source", os.O_RDONLY)
    try:
        with Mover(read_only if which == "target" else target, 4096, 3) as mover:
            broken = folder if which == "source" else source
            mover.start(0, 4 * MIB, [(0, MIB, 0, source), (MIB, MIB, 0, broken)], base=0)
            with pytest.raises(OSError, match="copying") as caught:
                mover.wait(ignore)
            assert caught.value.errno == (errno.EISDIR if which == "source" else errno.EBADF)
    finally:
        os.close(folder)
        os.close(read_only)


def test_closing_ends_what_is_under_way(files: tuple[int, int]) -> None:
    source, target = files
    mover = Mover(target, 4096, 2)
    for start in (0, 4 * MIB):
        mover.start(start, start + 4 * MIB, [(start, 4 * MIB, 0, source)], base=start)
    with pytest.raises(OSError, match="mover_start") as caught:
        mover.start(8 * MIB, 12 * MIB, [(8 * MIB, 4 * MIB, 0, source)], base=0)
    assert caught.value.errno == errno.EBUSY
    mover.close()
    mover.close()


@pytest.mark.parametrize(("unit", "threads"), [(100, 1), (0, 1), (4097, 1), (4096, 0), (4096, 1000)])
def test_a_strange_mover_is_refused(files: tuple[int, int], unit: int, threads: int) -> None:
    with pytest.raises(OSError, match=f"mover_new.*{unit}"):
        Mover(files[1], unit, threads)


def test_who_waits_hears_how_far_it_got_and_may_give_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mover_module, "_PATIENCE", 0)
    heard: list[int] = []

    def give_up(reached: int) -> None:
        heard.append(reached)
        if reached >= 64 * MIB:
            raise InterruptedError

    with open(tmp_path / "source", "wb+") as source, open(tmp_path / "target", "wb+") as target:
        source.truncate(1 << 40)  # zeros: it takes minutes to read them all
        with Mover(target.fileno(), 1 << 16, 2) as mover:
            mover.start(0, 1 << 40, [(0, 1 << 40, 0, source.fileno())], base=0)
            with pytest.raises(InterruptedError):
                mover.wait(give_up)
    assert heard == sorted(heard)
    assert heard[-1] < 1 << 36
