"""bench: how fast a disk answers, as `qemu-img bench` asks: many requests of one size, so many of them at once."""

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from formats.errors import InvalidArgument, ReadOnlyImage, image_error
from formats.image import Image
from vstore.disk import Disk
from vstore.transfer.line import Turn, work_in_line
from vstore.transfer.progress import Cancelled, Meter, Progress, never, silent


@dataclass(frozen=True, slots=True)
class Load:
    """`count` requests of `size` bytes from `offset` on, each `step` bytes behind the one before (0: its size), over
    and over; `depth` at once. `write`: bytes of `pattern`; a flush after every `flush_interval` requests (0: none)."""

    count: int = 75000
    depth: int = 64
    size: int = 4096
    offset: int = 0
    step: int = 0
    write: bool = False
    pattern: int = 0
    flush_interval: int = 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was done, in how many seconds."""

    load: Load
    seconds: float

    def as_json(self) -> dict[str, object]:
        rate = self.load.count / self.seconds if self.seconds else 0.0
        names = ("count", "depth", "size", "offset", "step", "write", "pattern", "flush_interval")
        told = {name.replace("_", "-"): getattr(self.load, name) for name in names}
        numbers = {"seconds": self.seconds, "iops": rate, "bytes-per-second": rate * self.load.size}
        return told | numbers


def bench(chain: Sequence[Image], load: Load, *, progress: Progress = silent, cancelled: Cancelled = never) -> Outcome:
    """Of a chain of opened images, which are closed here. A run that writes overwrites the disk. Errors: ImageError,
    TransferCancelled."""
    disk = Disk(*chain)
    try:
        _check(load, disk)
        running = _Running(disk, load, Meter(load.count, progress, cancelled))
        began = time.monotonic()
        work_in_line(running.offsets(), running.request, min(load.depth, load.count), ordered=False)
        return Outcome(load, time.monotonic() - began)
    except OSError as error:
        raise image_error(error, "cannot measure") from error
    finally:
        disk.close()


def _check(load: Load, disk: Disk) -> None:
    if load.write and disk.read_only:
        raise ReadOnlyImage("the image is open read-only; a bench that writes needs it writable")
    if min(load.count, load.depth, load.size) < 1 or min(load.offset, load.step, load.flush_interval) < 0:
        raise InvalidArgument("count, depth and size must be at least 1, offset, step and flush interval at least 0")
    if load.offset + load.size > disk.length:
        raise InvalidArgument(
            f"{load.size} bytes at offset {load.offset} do not lie inside the disk of {disk.length} bytes"
        )
    if not 0 <= load.pattern <= 255:
        raise InvalidArgument(f"pattern {load.pattern} is no byte; it must be 0 to 255")
    if load.flush_interval and not load.write:
        raise InvalidArgument("a flush interval makes sense only when writing")


class _Running:
    def __init__(self, disk: Disk, load: Load, meter: Meter) -> None:
        self._disk, self._load, self._meter = disk, load, meter
        self._data = bytes([load.pattern]) * load.size
        self._done = 0
        self._lock = threading.Lock()

    def offsets(self) -> Iterator[int]:
        load = self._load
        step, room = load.step or load.size, self._disk.length - load.size + 1
        offset = load.offset
        for _ in range(load.count):
            yield offset
            offset += step
            if offset >= room:
                offset %= room

    def request(self, offset: int, turn: Turn) -> None:
        """One request, by any thread."""
        del turn
        if self._load.write:
            self._disk.write_blocking(offset, self._data)
        else:
            self._disk.read_blocking(offset, self._load.size)
        with self._lock:
            self._done += 1
            done = self._done
        if self._load.flush_interval and done % self._load.flush_interval == 0:
            self._disk.flush_blocking()
        self._meter.reach(done)
