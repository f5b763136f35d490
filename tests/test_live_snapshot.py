"""Live snapshots: what they hold is the disk at one moment, and those who write meanwhile lose nothing."""

import errno
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from formats.errors import ImageInUse, InvalidArgument, UnsupportedFeature
from formats.host_file import HostFile
from formats.image import Image
from formats.qcow2.create import Options, create
from formats.qcow2.freeze import Freeze
from formats.qcow2.image import Qcow2
from formats.registry import create_image, open_chain, open_image
from tests.formats.qcow2.oracle import assert_clean, qemu_create
from tests.formats.qcow2.test_snapshots import content
from tests.formats.reference import run
from vstore.disk import Disk

WRITERS, REGION = 3, 1 << 20
LENGTH = WRITERS * REGION


class Writer(threading.Thread):
    """Writes to a region of its own, one write after the other, and logs each before it begins."""

    def __init__(self, disk: Disk, number: int, content: bytes) -> None:
        super().__init__()
        self.disk, self.first = disk, number * REGION
        self.begin, self.log, self.ended = content, list[tuple[int, bytes]](), 0
        self.stopping, self.error = threading.Event(), None
        self.draw = random.Random(number)

    def run(self) -> None:
        try:
            while not self.stopping.is_set():
                self.write()
        except BaseException as error:
            self.error = error

    def write(self) -> None:
        length = self.draw.choice([512, 4096, 5000, 40000, 70000])
        offset, kind = self.draw.randrange(REGION - length), self.draw.random()
        data = bytes(length) if kind < 0.1 else self.draw.randbytes(length)
        self.log.append((offset, data))
        if kind < 0.1:
            self.disk.write_zeroes_blocking(self.first + offset, length, deallocate=True)
        else:
            self.disk.write_blocking(self.first + offset, data)
        self.ended += 1
        if kind > 0.9:
            self.disk.flush_blocking()

    def after(self, writes: int) -> bytes:
        """What the region holds after so many of its writes."""
        region = bytearray(self.begin)
        for offset, data in self.log[:writes]:
            region[offset : offset + len(data)] = data
        return bytes(region)


@contextmanager
def writing(disk: Disk) -> Iterator[list[Writer]]:
    writers = [Writer(disk, number, disk.read_blocking(number * REGION, REGION)) for number in range(WRITERS)]
    for writer in writers:
        writer.start()
    try:
        yield writers
    finally:
        for writer in writers:
            writer.stopping.set()
        for writer in writers:
            writer.join()
    assert not [writer.error for writer in writers if writer.error]


def note_the_moment(disk: Disk, writers: list[Writer]) -> list[tuple[int, int]]:
    """Per writer, how many writes had ended, and begun, when the image was frozen; filled in then."""
    bounds: list[tuple[int, int]] = []
    freeze = disk.image.freeze

    def noted(name: str) -> object:
        bounds[:] = [(writer.ended, len(writer.log)) for writer in writers]
        return freeze(name)

    disk.image.freeze = noted  # type: ignore[method-assign, assignment]
    return bounds


def held(found: bytes, writer: Writer, least: int, most: int) -> bool:
    """Whether all writes that had ended are there, and of the one under way no more than some of its sectors."""
    before, after = writer.after(least), writer.after(most)
    pieces = (slice(at, at + 512) for at in range(0, REGION, 512))
    return most - least <= 1 and all(found[piece] in (before[piece], after[piece]) for piece in pieces)


def plain(directory: Path, **options: object) -> list[Image]:
    qemu_create(directory / "disk", LENGTH, **options)
    return open_chain("qcow2", directory / "disk")


def compressed(directory: Path) -> list[Image]:
    (directory / "base").write_bytes(random.Random(0).randbytes(64) * (LENGTH // 64))
    made = run("qemu-img", "convert", "-c", "-O", "qcow2", directory / "base", directory / "disk")
    assert made.returncode == 0, made.stderr
    return open_chain("qcow2", directory / "disk")


def overlay(directory: Path) -> list[Image]:
    (directory / "base").write_bytes(random.Random(1).randbytes(LENGTH - 70000))
    return plain(directory, backing_file=directory / "base", backing_fmt="raw", cluster_size=16384)


KINDS: dict[str, Callable[[Path], list[Image]]] = {
    "plain": plain,
    "small clusters": lambda directory: plain(directory, cluster_size=4096),
    "version 2": lambda directory: plain(directory, compat="0.10"),
    "sub-clusters": lambda directory: plain(directory, extended_l2="on", cluster_size=32768),
    "overlay": overlay,
    "compressed": compressed,
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_snapshot_is_one_moment_of_a_disk_that_is_written_to(tmp_path: Path, kind: str) -> None:
    disk = Disk(*KINDS[kind](tmp_path))
    moments = {}
    with writing(disk) as writers:
        for name in ("one", "two", "three"):
            time.sleep(0.05)
            bounds = note_the_moment(disk, writers)
            snapshot, pause = disk.snapshot(name)
            moments[name] = list(bounds)
            assert snapshot.name == name
            assert pause >= 0
        disk.delete_snapshot("two")
        time.sleep(0.05)
    assert [snapshot.name for snapshot in disk.snapshots()] == ["one", "three"]
    for writer in writers:
        assert disk.read_blocking(writer.first, REGION) == writer.after(len(writer.log))
    disk.close()
    assert_clean(tmp_path / "disk")
    for name in ("one", "three"):
        found = content(tmp_path / "disk", tmp_path, name)
        for writer, moment in zip(writers, moments[name], strict=True):
            assert held(found[writer.first : writer.first + REGION], writer, *moment), name


def test_what_was_written_before_is_in_and_what_is_written_afterwards_is_not(tmp_path: Path) -> None:
    disk = Disk(*plain(tmp_path))
    disk.write_blocking(0, b"before" * 1000)
    disk.snapshot("kept")
    disk.write_blocking(0, b"behind" * 1000)
    disk.close()
    assert content(tmp_path / "disk", tmp_path, "kept")[:6000] == b"before" * 1000
    assert content(tmp_path / "disk", tmp_path)[:6000] == b"behind" * 1000


@pytest.mark.parametrize("kind", KINDS)
def test_a_snapshot_is_read_as_a_disk_of_its_own(tmp_path: Path, kind: str) -> None:
    disk = Disk(*KINDS[kind](tmp_path))
    disk.write_blocking(5000, os.urandom(100_000))
    moment = disk.read_blocking(0, LENGTH)
    disk.snapshot("one")
    disk.write_blocking(0, os.urandom(LENGTH // 2))
    disk.close()
    disk = Disk(*open_chain("qcow2", tmp_path / "disk", read_only=True, snapshot="one"))
    assert disk.read_blocking(0, LENGTH) == moment
    assert errno_of(lambda: disk.write_blocking(0, b"x")) == errno.EROFS
    disk.close()
    with pytest.raises(InvalidArgument, match="can only be read"):
        open_chain("qcow2", tmp_path / "disk", snapshot="one")
    with pytest.raises(InvalidArgument, match="no snapshot 'two'"):
        open_chain("qcow2", tmp_path / "disk", snapshot="two", read_only=True)


def errno_of(call: Callable[[], object]) -> int | None:
    with pytest.raises(OSError, match="Errno") as caught:
        call()
    return caught.value.errno


def test_formats_without_snapshots_and_unknown_names_are_told_apart(tmp_path: Path) -> None:
    create_image("raw", tmp_path / "raw", LENGTH)
    raw = Disk(open_image("raw", tmp_path / "raw"))
    with pytest.raises(UnsupportedFeature, match="raw images have no internal snapshots"):
        raw.snapshot("one")
    raw.close()
    disk = Disk(*plain(tmp_path))
    with pytest.raises(InvalidArgument, match="no snapshot 'none'"):
        disk.delete_snapshot("none")
    disk.close()
    disk = Disk(*open_chain("qcow2", tmp_path / "disk", read_only=True))
    assert errno_of(lambda: disk.snapshot("one")) == errno.EROFS
    disk.close()


def test_closing_the_disk_gives_up_a_snapshot_on_its_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(*plain(tmp_path, cluster_size=512))
    disk.write_blocking(0, os.urandom(LENGTH))
    disk.flush_blocking()
    monkeypatch.setattr("formats.qcow2.freeze._SLICE", 1)
    begun, errors = threading.Event(), list[BaseException]()
    step = Freeze.step

    def slowly(freeze: Freeze) -> bool:
        begun.set()
        time.sleep(0.01)
        return step(freeze)

    monkeypatch.setattr(Freeze, "step", slowly)

    def take() -> None:
        try:
            disk.snapshot("lost")
        except OSError as error:
            errors.append(error)

    taker = threading.Thread(target=take)
    taker.start()
    assert begun.wait(30)
    with pytest.raises(ImageInUse):
        disk.snapshot("another")
    disk.close()
    taker.join()
    assert [error.errno for error in errors if isinstance(error, OSError)] == [errno.ECANCELED]
    assert_clean(tmp_path / "disk")
    assert run("qemu-img", "snapshot", "-l", tmp_path / "disk").stdout == ""


@pytest.mark.parametrize("gibibytes", [16, 1024])
def test_the_pause_does_not_grow_with_the_disk(tmp_path: Path, gibibytes: int) -> None:
    """Told, not judged: the times of a machine that others use as well say nothing."""
    with HostFile.create(tmp_path / "disk") as file:
        create(file, gibibytes << 30, "metadata" if gibibytes == 16 else "off", Options())
    disk = Disk(Qcow2(HostFile.from_path(tmp_path / "disk")))
    draw = random.Random(gibibytes)
    for _ in range(200):
        disk.write_blocking(draw.randrange(disk.length >> 16 << 4) << 12, b"x" * 4096)
    begun = time.perf_counter()
    _, pause = disk.snapshot("one")
    print(f"{gibibytes} GiB: writes waited {pause} µs, the snapshot took {time.perf_counter() - begun:.3f} s")
    disk.close()
    assert_clean(tmp_path / "disk")


def test_the_map_is_locked_for_one_barrier_only_once_the_moment_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(*plain(tmp_path))
    disk.write_blocking(0, os.urandom(LENGTH))
    lock, fdatasync, prepare = disk._map.lock, os.fdatasync, Freeze._prepare
    moments, barriers = list[int](), list[bool]()

    def begun(freeze: Freeze) -> Iterator[None]:
        moments.append(len(barriers))
        return prepare(freeze)

    def barrier(descriptor: int) -> None:
        barriers.append(lock._is_owned())  # type: ignore[attr-defined]
        fdatasync(descriptor)

    monkeypatch.setattr(Freeze, "_prepare", begun)
    monkeypatch.setattr(os, "fdatasync", barrier)
    disk.snapshot("one")
    assert sum(barriers[moments[0] :]) == 1
    disk.write_blocking(0, b"x" * 512)
    disk.close()
    assert_clean(tmp_path / "disk")
