"""Disk: an image on the data plane, awaited by the SCSI model and called by jobs."""

import asyncio
import errno
import gc
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from formats.errors import ImageInUse, InvalidArgument
from formats.image import Geometry, Image, Layer, LayerFlags, Run
from formats.registry import create_image, open_image
from vstore.dataplane import GATE_FLUSH, GATE_READ, GATE_WRITE, Device, LunSettings, Volume
from vstore.disk import Disk
from vstore.scsi.medium import Medium

MIB = 1 << 20


@pytest.fixture
def path(tmp_path: Path) -> Path:
    create_image("raw", tmp_path / "disk", 4 * MIB)
    return tmp_path / "disk"


@pytest.fixture
def disk(path: Path) -> Iterator[Disk]:
    disk = Disk(open_image("raw", path))
    yield disk
    disk.close()


class Gate:
    """Stands in for one call of the volume: it waits until it is opened, and tells when `callers` wait at it."""

    def __init__(self, error: OSError | None = None, *, callers: int = 1) -> None:
        self.opened = threading.Event()
        self.finished = False
        self._arrived = threading.Barrier(callers + 1)
        self._error = error

    def __call__(self, *_: object) -> bytes:
        self._arrived.wait(30)
        assert self.opened.wait(30)
        self.finished = True
        if self._error is not None:
            raise self._error
        return b""

    def wait_for_callers(self) -> None:
        self._arrived.wait(30)


def errno_of(call: Callable[[], object]) -> int | None:
    with pytest.raises(OSError, match="Errno") as caught:
        call()
    return caught.value.errno


async def test_a_disk_is_a_medium_of_the_scsi_model(disk: Disk) -> None:
    medium: Medium = disk
    assert (medium.length, medium.read_only, medium.deallocates) == (4 * MIB, False, True)
    await medium.write(1000, memoryview(b"some bytes"))
    await medium.write(2000, bytearray(b"others"))
    await medium.write_zeroes(1005, 2, deallocate=True)
    await medium.flush()
    assert await medium.read(998, 14) == b"\0\0some \0\0tes\0\0"
    assert await medium.read(2000, 6) == b"others"


async def test_many_calls_at_once_all_come_back(disk: Disk) -> None:
    await asyncio.gather(*(disk.write(place * 777, bytes([place]) * 777) for place in range(200)))
    read = await asyncio.gather(*(disk.read(place * 777, 777) for place in range(200)))
    assert read == [bytes([place]) * 777 for place in range(200)]


async def test_a_failure_is_an_os_error_with_its_number(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OSError, match="Errno") as beyond:
        await disk.read(4 * MIB, 1)
    assert beyond.value.errno == errno.EINVAL

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(disk.volume, "write", fail)
    with pytest.raises(OSError, match="full") as full:
        await disk.write(0, b"x")
    assert full.value.errno == errno.ENOSPC


async def test_the_event_loop_runs_on_while_a_call_waits(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate()
    monkeypatch.setattr(disk.volume, "flush", gate)
    flushing = asyncio.create_task(disk.flush())
    await asyncio.to_thread(gate.wait_for_callers)
    assert await disk.read(0, 4) == bytes(4)
    assert not flushing.done()
    gate.opened.set()
    await flushing


@pytest.mark.parametrize("error", [None, OSError(errno.EIO, "broken")])
async def test_a_cancelled_command_ends_only_when_its_call_no_longer_runs(
    disk: Disk, monkeypatch: pytest.MonkeyPatch, error: OSError | None
) -> None:
    gate = Gate(error)
    monkeypatch.setattr(disk.volume, "write", gate)
    writing = asyncio.create_task(disk.write(0, b"x"))
    await asyncio.to_thread(gate.wait_for_callers)
    for _ in range(3):
        writing.cancel()
        await asyncio.sleep(0.005)
        assert not writing.done()
    gate.opened.set()
    with pytest.raises(asyncio.CancelledError):
        await writing
    assert gate.finished
    gc.collect()  # an error that nobody took would be reported here, and reports are failures


async def test_a_cancelled_command_that_still_waited_for_a_thread_never_starts(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(callers=4)
    monkeypatch.setattr(disk.volume, "flush", gate)
    flushing = [asyncio.create_task(disk.flush()) for _ in range(4)]
    await asyncio.to_thread(gate.wait_for_callers)
    writing = asyncio.create_task(disk.write(0, b"never"))
    await asyncio.sleep(0.01)
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    gate.opened.set()
    await asyncio.gather(*flushing)
    assert await disk.read(0, 5) == bytes(5)


async def test_closing_finishes_what_waits_flushes_and_gives_everything_back(path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    disk = Disk(open_image("raw", path))
    writes = [asyncio.create_task(disk.write(place * 512, b"w" * 512)) for place in range(100)]
    await asyncio.sleep(0)  # each has handed its call over
    await asyncio.to_thread(disk.close)
    await asyncio.gather(*writes)
    disk.close()
    assert len(os.listdir("/proc/self/fd")) == before
    with open_image("raw", path) as image:
        assert os.pread(image.layers[0].descriptor, 100 * 512, 0) == b"w" * 100 * 512


async def test_a_closed_disk_refuses_everything_as_a_bad_descriptor(path: Path) -> None:
    disk = Disk(open_image("raw", path))
    await disk.read(0, 1)
    disk.close()
    with pytest.raises(OSError, match="the disk is closed") as caught:
        await disk.read(0, 1)
    assert caught.value.errno == errno.EBADF
    assert errno_of(lambda: disk.read_blocking(0, 1)) == errno.EBADF
    assert errno_of(lambda: disk.write_blocking(0, b"x")) == errno.EBADF
    assert errno_of(lambda: disk.resize(MIB)) == errno.EBADF


def test_closing_waits_for_a_job_that_is_reading(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate()
    monkeypatch.setattr(disk.volume, "read", gate)
    job = threading.Thread(target=disk.read_blocking, args=(0, 1))
    job.start()
    gate.wait_for_callers()
    closing = threading.Thread(target=disk.close)
    closing.start()
    closing.join(0.05)
    assert closing.is_alive()
    gate.opened.set()
    closing.join(30)
    job.join(30)
    assert not closing.is_alive()


def test_a_flush_that_fails_at_closing_is_told_after_everything_was_released(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(open_image("raw", path))

    def fail() -> None:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(disk.volume, "flush", fail)
    with pytest.raises(OSError, match="broken"):
        disk.close()
    open_image("raw", path).close()


def test_the_lock_lasts_as_long_as_the_disk(path: Path) -> None:
    disk = Disk(open_image("raw", path))
    with pytest.raises(ImageInUse):
        open_image("raw", path, read_only=True)
    disk.close()
    readers = [Disk(open_image("raw", path, read_only=True)) for _ in range(2)]
    assert [reader.read_blocking(0, 1) for reader in readers] == [b"\0", b"\0"]
    for reader in readers:
        reader.close()


def test_a_logical_unit_that_still_serves_the_volume_keeps_the_lock(path: Path) -> None:
    disk = Disk(open_image("raw", path))
    device = Device(vrings=3)
    gate = GATE_READ | GATE_WRITE | GATE_FLUSH
    device.lun_set(0, 0, disk.volume, LunSettings(9, gate, False, 2048, 256, True, 4 * MIB // 512, 2048))
    disk.close()
    with pytest.raises(ImageInUse):
        open_image("raw", path)
    device.lun_remove(0, 0)
    open_image("raw", path).close()
    device.close()


def test_a_length_that_no_disk_can_have_is_refused_before_anything_changes(disk: Disk, path: Path) -> None:
    for length in (0, 1000, -512):
        with pytest.raises(InvalidArgument, match="multiple of 512"):
            disk.resize(length)
    assert disk.length == 4 * MIB == path.stat().st_size
    assert len(disk.read_blocking(0, 4 * MIB)) == 4 * MIB


def test_growing_by_many_steps_keeps_every_byte(disk: Disk) -> None:
    for step in range(1, 12):
        old = disk.length
        disk.write_blocking(old - 512, bytes([step]) * 512)
        disk.resize(old * 3)
        assert disk.read_blocking(old - 512, 1024) == bytes([step]) * 512 + bytes(512)


def test_what_was_cut_off_reads_as_zeros_even_where_it_was_cached(disk: Disk) -> None:
    for seed in range(3):
        data = os.urandom(3 * MIB)
        disk.write_blocking(MIB, data)
        assert disk.read_blocking(MIB, 3 * MIB) == data
        disk.resize(2 * MIB)
        disk.resize(4 * MIB)
        assert disk.read_blocking(MIB, 3 * MIB) == data[:MIB] + bytes(2 * MIB), seed


def test_a_file_that_another_cuts_short_reads_as_zeros_there_and_hurts_nobody(disk: Disk, path: Path) -> None:
    disk.write_blocking(0, b"x" * 4 * MIB)
    assert disk.read_blocking(3 * MIB, 4096) == b"x" * 4096
    os.truncate(path, 2 * MIB - 100)
    assert disk.read_blocking(2 * MIB - 200, 2 * MIB) == b"x" * 100 + bytes(2 * MIB - 100)
    disk.write_blocking(4 * MIB - 1, b"y")
    assert disk.read_blocking(3 * MIB, MIB) == bytes(MIB - 1) + b"y"


class Broken(Image):
    """An image whose map cannot be loaded."""

    format = "broken"
    flat = True
    closed = False

    @property
    def layers(self) -> list[Layer]:
        return []

    def load(self, first: int, count: int) -> list[Run]:  # noqa: ARG002
        raise OSError(errno.EIO, "no map")

    def info(self) -> dict[str, object]:
        return {}

    def close(self) -> None:
        self.closed = True


def test_an_image_that_cannot_be_opened_on_the_data_plane_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[Volume] = []
    release = Volume.close

    def close(volume: Volume) -> None:
        closed.append(volume)
        release(volume)

    monkeypatch.setattr(Volume, "close", close)
    image = Broken(Geometry(4096, 512))
    with pytest.raises(OSError, match="no map"):
        Disk(image)
    assert image.closed
    assert len(closed) == 1


def test_the_alignment_of_a_disk_is_that_of_its_strictest_layer(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    assert disk.alignment == 1
    monkeypatch.setattr(type(disk.image), "layers", [Layer(-1, alignment=512), Layer(-1, alignment=4096)])
    assert disk.alignment == 4096


def test_only_a_disk_without_direct_io_is_cached_by_the_host(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    assert disk.caches
    direct = [Layer(layer.descriptor, layer.flags | LayerFlags.DIRECT, 512) for layer in disk.image.layers]
    monkeypatch.setattr(type(disk.image), "layers", direct)
    assert not disk.caches
