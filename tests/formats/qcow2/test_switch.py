"""Whatever write fails while a snapshot comes, goes or is applied: the image stays whole, and nobody writes to one
whose header is not known any more."""

import contextlib
import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from formats.errors import CorruptImage, ImageError
from formats.host_file import HostFile
from formats.qcow2.check import check
from formats.qcow2.header import Header
from formats.qcow2.image import Qcow2
from formats.qcow2.structures import Incompatible
from tests.formats.qcow2.oracle import assert_clean, open_qcow2, qemu_create
from tests.formats.qcow2.volume import AllocatingVolume
from tests.formats.reference import qemu_io, run

LENGTH = 256 << 10
SIZE = 4096


class TiredFile(HostFile):
    """Fails its n-th change or barrier from now on, and, if it is `worn`, every one after it. `reaches`: what failed
    has been done all the same, as far as anybody can see who looks later."""

    countdown = -1
    worn = False
    reaches = False

    def _fails(self) -> bool:
        self.countdown -= 1
        return self.countdown == 0 or (self.worn and self.countdown < 0 and self.countdown > -(1 << 20))

    def pwrite(self, offset: int, data: bytes) -> None:
        fails = self._fails()
        if not fails or self.reaches:
            super().pwrite(offset, data)
        if fails:
            raise OSError(errno.EIO, "the disk is tired")

    def fdatasync(self) -> None:
        if self._fails():
            raise OSError(errno.EIO, "the disk is tired")

    def punch(self, offset: int, length: int) -> None:
        if self._fails():
            raise OSError(errno.EIO, "the disk is tired")
        super().punch(offset, length)


VERBS: dict[str, Callable[[Qcow2], object]] = {
    "take": lambda image: image.snapshots.take("new"),
    "delete": lambda image: image.snapshots.delete("old"),
    "apply": lambda image: image.snapshots.apply("old"),
}


def prepared(path: Path, compat: str) -> dict[str, bytes]:
    """An image with a snapshot; the bytes of both, by name."""
    qemu_create(path, LENGTH, cluster_size=SIZE, compat=compat)
    qemu_io("qcow2", path, "write -P 1 0 60k")
    assert run("qemu-img", "snapshot", "-c", "old", path).returncode == 0
    qemu_io("qcow2", path, "write -P 2 20k 60k", "discard 0 16k")
    before = b"\1" * (60 << 10) + bytes(LENGTH - (60 << 10))
    now = bytes(16 << 10) + b"\1" * (4 << 10) + b"\2" * (60 << 10) + bytes(LENGTH - (80 << 10))
    return {"": now, "old": before}


def write(volume: AllocatingVolume, block: int) -> bool:
    """A block of threes; whether it is durable."""
    try:
        volume.write(block * SIZE, b"\3" * SIZE)
        volume.flush()
    except (OSError, ImageError):
        return False
    return True


@pytest.mark.parametrize("compat", ["0.10", "1.1"])
@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(("worn", "reaches"), [(False, False), (False, True), (True, False), (True, True)])
def test_whatever_write_of_a_snapshot_verb_fails_nothing_is_lost(
    tmp_path: Path, verb: str, compat: str, worn: bool, reaches: bool
) -> None:
    path = tmp_path / "disk"
    held = prepared(path, compat)
    begun = path.read_bytes()
    at, ended = 0, False
    while not ended:
        at += 1
        path.write_bytes(begun)
        file = TiredFile.from_path(path, lock=False)
        image = Qcow2(file)
        file.countdown, file.worn, file.reaches = at, worn, reaches
        try:
            VERBS[verb](image)
            ended = file.countdown > 0
            file.countdown = -(1 << 20) if ended else file.countdown
        except OSError as error:
            assert error.errno == errno.EIO  # noqa: PT017
        written = write(AllocatingVolume(image), 50) if verb != "apply" else False
        with contextlib.suppress(OSError, ImageError):
            image.close()
        assert file.descriptor < 0
        assert_whole(path, held, written, verb)
    assert at > 10
    assert_clean(path)


def assert_whole(path: Path, held: dict[str, bytes], written: bool, verb: str) -> None:
    with HostFile.from_path(path, read_only=True) as file:
        assert not check(file).corruptions
    with open_qcow2(path, read_only=True) as image:
        kept = {snapshot.name for snapshot in image.snapshots}
        found = AllocatingVolume(image).read(0, LENGTH)
        expected = bytearray(held[""])
        if found[50 * SIZE : 51 * SIZE] == b"\3" * SIZE:
            expected[50 * SIZE : 51 * SIZE] = b"\3" * SIZE
        assert not written or expected[50 * SIZE] == 3
        assert found == expected or (verb == "apply" and found == held["old"])
        assert {"old"} <= kept or verb == "delete"
        for name in kept:
            view = AllocatingVolume(image.open_snapshot(name), files=image)  # type: ignore[arg-type]
            assert view.read(0, LENGTH) == held["old" if name == "old" else ""]


def lie(path: Path) -> None:
    """An L2 entry of the disk leads to the refcount table."""
    with path.open("r+b") as file:
        file.seek(40)
        file.seek(int.from_bytes(file.read(8), "big"))
        l2 = int.from_bytes(file.read(8), "big") & 0x00FF_FFFF_FFFF_FE00
        file.seek(l2)
        file.write((1 << 63 | SIZE).to_bytes(8, "big"))


def test_an_old_image_that_contradicts_itself_is_not_written_any_more(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    qemu_create(path, LENGTH, cluster_size=SIZE, compat="0.10")
    qemu_io("qcow2", path, "write -P 1 0 60k")
    lie(path)
    with open_qcow2(path) as image:
        image.reserve(4)
        image.commit([])
        before = path.read_bytes()
        with pytest.raises(CorruptImage, match="lies on the refcount table"):
            image.load(0, 1)
        for change in (lambda: image.reserve(1), lambda: image.commit([]), lambda: image.snapshots.take("one")):
            with pytest.raises(CorruptImage, match="contradicts itself; repair it"):
                change()
    assert path.read_bytes() == before


@pytest.mark.parametrize("verb", VERBS)
def test_a_contradiction_met_by_a_snapshot_verb_marks_the_image(tmp_path: Path, verb: str) -> None:
    path = tmp_path / "disk"
    prepared(path, "1.1")
    with path.open("r+b") as file:
        file.seek(48)
        file.seek(int.from_bytes(file.read(8), "big"))
        block = int.from_bytes(file.read(8), "big")
        size = os.stat(path).st_size // SIZE
        file.seek(block + 8 * 2)
        file.write(bytes(2 * (size - 8)))  # nothing behind the first few clusters is counted
    image = open_qcow2(path)
    with pytest.raises(CorruptImage):
        VERBS[verb](image)
    with pytest.raises(CorruptImage, match="marked corrupt"):
        image.reserve(1)
    image.close()
    with HostFile.from_path(path, read_only=True) as file:
        assert Header.read(file).incompatible & Incompatible.CORRUPT
