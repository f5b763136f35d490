"""The lock on a live image, held against qemu's own tools."""

import os
from pathlib import Path

import pytest

from formats import byte_locks
from formats.errors import ImageInUse
from formats.host_file import HostFile
from formats.registry import create_image, open_image
from tests.formats.reference import run


@pytest.fixture
def path(tmp_path: Path) -> Path:
    create_image("raw", tmp_path / "disk", 1 << 20)
    return tmp_path / "disk"


def qemu_img_is_refused(*command: str | Path) -> bool:
    result = run("qemu-img", *command)
    assert (result.returncode == 0) != ("Is another process using the image" in result.stderr), result.stderr
    return result.returncode != 0


def test_qemu_img_neither_writes_nor_copies_an_image_that_is_open_writable(path: Path, tmp_path: Path) -> None:
    with open_image("raw", path):
        assert qemu_img_is_refused("resize", "-f", "raw", path, "2M")
        assert qemu_img_is_refused("convert", "-f", "raw", "-O", "raw", path, tmp_path / "copy")
        assert qemu_img_is_refused("bench", "-w", "-c", "1", "-f", "raw", path)
        assert not qemu_img_is_refused("convert", "-U", "-f", "raw", "-O", "raw", path, tmp_path / "copy")
    assert not qemu_img_is_refused("resize", "-f", "raw", path, "2M")


def test_qemu_img_does_not_even_look_into_metadata_that_is_open_writable(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    assert not qemu_img_is_refused("create", "-f", "qcow2", path, "1M")
    with HostFile.from_path(path):
        assert qemu_img_is_refused("info", path)
        assert qemu_img_is_refused("check", path)
        assert not qemu_img_is_refused("info", "-U", path)
    with HostFile.from_path(path, read_only=True):
        assert not qemu_img_is_refused("info", path)
        assert qemu_img_is_refused("resize", path, "2M")


def test_qemu_may_read_what_is_open_read_only_but_not_write_it(path: Path, tmp_path: Path) -> None:
    with open_image("raw", path, read_only=True):
        assert not qemu_img_is_refused("convert", "-f", "raw", "-O", "raw", path, tmp_path / "copy")
        assert qemu_img_is_refused("resize", "-f", "raw", path, "2M")


def test_the_lock_holds_the_bytes_that_qemu_tests(path: Path) -> None:
    with HostFile.from_path(path):
        assert locked_bytes(path) == {100, 101, 103, 201, 203}
    with HostFile.from_path(path, read_only=True):
        assert locked_bytes(path) == {100, 201, 203}
    assert locked_bytes(path) == set()


def locked_bytes(path: Path) -> set[int]:
    inode = f":{path.stat().st_ino}"
    ranges = [
        words[-2:]
        for words in map(str.split, Path("/proc/locks").read_text().splitlines())
        if words[-3].endswith(inode)
    ]
    return {byte for first, last in ranges for byte in range(int(first), int(last) + 1)}


def test_many_readers_or_one_writer(path: Path) -> None:
    reader, other = (open_image("raw", path, read_only=True) for _ in range(2))
    with pytest.raises(ImageInUse, match="disk is in use: another process forbids others to write to it; close it"):
        open_image("raw", path)
    reader.close()
    other.close()
    with open_image("raw", path):
        with pytest.raises(ImageInUse, match="another process forbids others to write to it"):
            open_image("raw", path)
        with pytest.raises(ImageInUse, match="another process writes to it"):
            open_image("raw", path, read_only=True)


def test_a_refused_open_leaves_no_lock_and_no_descriptor_behind(path: Path) -> None:
    with open_image("raw", path, read_only=True):
        before = (locked_bytes(path), len(os.listdir("/proc/self/fd")))
        with pytest.raises(ImageInUse):
            open_image("raw", path)
        assert (locked_bytes(path), len(os.listdir("/proc/self/fd"))) == before


def test_the_lock_travels_with_the_descriptor_and_ends_with_its_last_duplicate(path: Path) -> None:
    first = HostFile.from_path(path)
    second = HostFile.from_descriptor(os.dup(first.descriptor))
    first.close()
    with pytest.raises(ImageInUse):
        HostFile.from_path(path)
    second.close()
    HostFile.from_path(path).close()


def test_a_lock_over_the_whole_file_is_told_too(path: Path) -> None:
    import fcntl

    with path.open("r+b") as holder, path.open("r+b") as other:
        fcntl.fcntl(holder.fileno(), fcntl.F_OFD_SETLK, byte_locks._FLOCK.pack(fcntl.F_WRLCK, 0, 0, 0, 0))
        with pytest.raises(ImageInUse, match="holds all of it"):
            byte_locks.lock(other.fileno(), "disk", read_only=True)
