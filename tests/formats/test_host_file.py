"""HostFile: what it refuses to open, and what it does to what it opened."""

import errno
import fcntl
import os
import socket
from pathlib import Path

import pytest

from formats.errors import (
    HostRefusal,
    ImageError,
    ImageExists,
    ImageNotFound,
    InvalidArgument,
    InvalidImage,
    ReadOnlyImage,
    UnsupportedFeature,
)
from formats.host_file import HostFile, open_beneath
from formats.image import LayerFlags


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    path.write_bytes(bytes(range(256)) * 64)
    return path


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("read_only", [False, True])
def test_only_files_and_block_devices_are_opened(tmp_path: Path, read_only: bool) -> None:
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        for place, kind in [
            (tmp_path, "a directory"),
            (tmp_path / "fifo", "a FIFO"),
            (tmp_path / "socket", "a socket"),
            (Path("/dev/null"), "a character device"),
        ]:
            with pytest.raises(InvalidImage, match=f"{place} is {kind}; an image is a regular file or a block device"):
                HostFile.from_path(place, read_only=read_only)


def test_a_fifo_handed_in_as_a_descriptor_is_refused_and_closed() -> None:
    before = descriptors()
    reader, writer = os.pipe()
    with pytest.raises(InvalidImage, match="pool/x is a FIFO"):
        HostFile.from_descriptor(reader, name="pool/x")
    os.close(writer)
    assert descriptors() == before


@pytest.mark.parametrize(
    ("name", "kind"),
    [("missing", ImageNotFound), ("disk/x", ImageNotFound), ("a\0b", InvalidArgument), ("x" * 300, HostRefusal)],
)
def test_a_path_that_leads_nowhere_is_told_with_its_name(path: Path, name: str, kind: type[ImageError]) -> None:
    with pytest.raises(kind, match="cannot"):
        HostFile.from_path(path.parent / name)


def test_symbolic_links_of_a_person_are_followed(path: Path) -> None:
    link = path.with_name("link")
    link.symlink_to(path)
    with HostFile.from_path(link) as file:
        assert file.length == 16384


def test_beneath_a_pool_only_plain_names_without_links_are_opened(path: Path) -> None:
    path.with_name("link").symlink_to(path)
    pool = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    with open_beneath(pool, "disk") as file:
        assert file.pread(0, 2) == b"\0\1"
        assert file.name == "disk"
    for name in ("", ".", "..", "../disk", "/etc/passwd", "a/b", "a\0", "é" * 200):
        with pytest.raises(InvalidArgument, match="cannot name an image"):
            open_beneath(pool, name)
    with pytest.raises(InvalidImage, match="link is a symbolic link"):
        open_beneath(pool, "link")
    with pytest.raises(ImageNotFound, match="cannot open missing"):
        open_beneath(pool, "missing")
    os.close(pool)


def test_a_link_put_in_place_between_look_and_open_is_not_followed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.with_name("link").symlink_to(path)
    pool = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    status = path.stat()
    monkeypatch.setattr(os, "stat", lambda *_, **__: status)
    with pytest.raises(HostRefusal, match="symbolic links"):
        open_beneath(pool, "link")
    monkeypatch.undo()
    os.close(pool)


@pytest.mark.parametrize("flags", [os.O_WRONLY, os.O_RDWR | os.O_APPEND, os.O_PATH])
def test_a_descriptor_that_cannot_serve_is_refused(path: Path, flags: int) -> None:
    with pytest.raises(InvalidArgument, match="without O_APPEND or O_PATH"):
        HostFile.from_descriptor(os.open(path, flags))


def test_a_descriptor_for_reading_only_serves_only_for_reading(path: Path) -> None:
    with pytest.raises(ReadOnlyImage, match="hand in one open for both"):
        HostFile.from_descriptor(os.open(path, os.O_RDONLY))
    with HostFile.from_descriptor(os.open(path, os.O_RDONLY), read_only=True) as file:
        assert file.layer.flags & LayerFlags.READ_ONLY


def test_a_descriptor_waits_whatever_its_opener_wanted(path: Path) -> None:
    for file in (
        HostFile.from_descriptor(os.open(path, os.O_RDWR | os.O_NONBLOCK)),
        HostFile.from_path(path, lock=False),
    ):
        assert not fcntl.fcntl(file.descriptor, fcntl.F_GETFL) & os.O_NONBLOCK
        file.close()


def test_descriptors_are_not_inherited_by_programs(path: Path, tmp_path: Path) -> None:
    for file in (HostFile.from_path(path), HostFile.create(tmp_path / "new")):
        assert not os.get_inheritable(file.descriptor)
        file.close()


def test_a_created_file_is_new_empty_and_private(tmp_path: Path) -> None:
    with HostFile.create(tmp_path / "new") as file:
        assert file.length == 0
        assert os.fstat(file.descriptor).st_mode & 0o777 == 0o600
    with pytest.raises(ImageExists, match=r"cannot create .*new"):
        HostFile.create(tmp_path / "new")
    with pytest.raises(ImageNotFound, match="cannot create"):
        HostFile.create(tmp_path / "no" / "new")


def test_bytes_are_read_and_written_in_place(path: Path) -> None:
    with HostFile.from_path(path) as file:
        assert file.pread(250, 10) == bytes([250, 251, 252, 253, 254, 255, 0, 1, 2, 3])
        file.pwrite(16380, b"beyond")
        assert file.length == 16386
        assert file.pread(16378, 100) == bytes([250, 251]) + b"beyond"
        assert file.pread(20000, 10) == b""
        file.truncate(100)
        file.fdatasync()
        assert path.stat().st_size == 100


def test_space_is_reserved_given_back_and_zeroed_without_changing_the_length(path: Path) -> None:
    with HostFile.from_path(path) as file:
        file.truncate(1 << 20)
        file.fallocate(0, 1 << 20)
        assert file.allocated >= 1 << 20
        file.punch(4096, 1 << 18)
        assert file.allocated <= (1 << 20) - (1 << 18) + 8192
        file.zero_range(100, 200)
        assert file.pread(98, 204) == bytes([98, 99]) + bytes(200) + bytes([44, 45])
        assert file.pread(4000, 200) == bytes(i % 256 for i in range(4000, 4096)) + bytes(104)
        assert file.length == 1 << 20
        assert file.punches()


def test_a_read_only_file_is_neither_changed_nor_said_to_give_space_back(path: Path) -> None:
    with HostFile.from_path(path, read_only=True) as file:
        assert not file.punches()
        for change, arguments in (file.pwrite, (0, b"x")), (file.truncate, (0,)), (file.punch, (0, 4096)):
            with pytest.raises(OSError, match="Errno"):
                change(*arguments)
    assert path.read_bytes() == bytes(range(256)) * 64


def test_whether_a_file_can_give_space_back_is_found_without_touching_it(path: Path) -> None:
    before = (path.read_bytes(), path.stat().st_size, path.stat().st_blocks)
    with HostFile.from_path(path) as file:
        file.punches()
    assert (path.read_bytes(), path.stat().st_size, path.stat().st_blocks) == before


def test_files_in_memory_are_known(path: Path) -> None:
    with HostFile.from_descriptor(os.memfd_create("x"), lock=False) as file:
        assert file.instant
        assert file.layer.flags == LayerFlags.INSTANT
    tmpfs = Path("/dev/shm") / f"instant-{os.getpid()}"
    try:
        with HostFile.create(tmpfs) as file:
            assert file.instant
    finally:
        tmpfs.unlink()
    with Path("/proc/self/mountinfo").open() as mounts:
        kinds = {words[2]: words[words.index("-") + 1] for words in map(str.split, mounts)}
    device = path.stat().st_dev
    with HostFile.from_path(path) as file:
        assert file.instant == (kinds.get(f"{os.major(device)}:{os.minor(device)}") == "tmpfs")


def test_direct_io_is_refused_clearly_where_the_file_system_has_none(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> int:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(UnsupportedFeature, match="offers no direct I/O; open it without"):
        HostFile.from_path(path, direct=True)


def test_closing_twice_closes_once(path: Path) -> None:
    file = HostFile.from_path(path)
    number = file.descriptor
    file.close()
    other = os.open(path, os.O_RDONLY)
    assert other == number
    file.close()
    os.fstat(other)
    os.close(other)


def test_a_write_that_was_lost_is_told_at_every_flush_from_then_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the kernel does it: once for each open file, and then never again."""
    answers = [OSError(errno.EIO, "lost"), None, None]

    def fdatasync(_: int) -> None:
        answer = answers.pop(0)
        if answer is not None:
            raise answer

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    with HostFile.create(tmp_path / "disk") as file, HostFile.create(tmp_path / "other") as other:
        for _ in range(3):
            with pytest.raises(OSError, match=rf"^\[Errno {errno.EIO}\]"):
                file.fdatasync()
        other.fdatasync()
