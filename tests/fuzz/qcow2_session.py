"""Session: all that vstore does to an image, done to one that lies; in a child process, whose limits are the image's.

    look     opened read-only: every block as far as a look is bounded, snapshots, info, check      only ImageError
    change   opened writable: writes, zeroes, discards, flushes, snapshots, a resize                 and OSError
    repair   check(repair="all"); what could be read before reads the same afterwards, where the     may come out
             damage did not make two things of one cluster

Each phase has a copy of its own, and may take SECONDS of processor time, as they are worth on a quiet machine.
"""

import contextlib
import json
import os
import random
import resource
import select
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from formats.errors import ImageError
from formats.host_file import HostFile
from formats.qcow2.check import check
from formats.qcow2.image import Qcow2
from formats.registry import open_chain
from tests.fuzz import pace
from vstore.chain import Chain
from vstore.disk import Disk

SECONDS = 2.0  # of processor time for one phase
MEMORY = 256 << 20  # bytes resident
HANGS = 60  # seconds after which a child is taken to hang

_REFUSALS = (ImageError, OSError)
_SEEN = 1 << 20  # bytes from the start of a disk that are looked at, and as many at its end
_PIECE = 4096


class SlowError(AssertionError):
    """A phase has taken longer than it may."""


@dataclass
class Told:
    """What a child says: `finding` is empty where all is well; `wrote`: the changes went through without an error;
    `repaired`: the repair says that nothing is wrong any more; `slow`: the finding is that it took too long."""

    finding: str = ""
    slow: bool = False
    wrote: bool = False
    repaired: bool = False
    refused: list[str] = field(default_factory=list)


def run(paths: Sequence[Path], seed: int, *, keeps: bool) -> Told:
    """All phases, in a child of this process. `keeps`: a repair changes nothing that can be read."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(reader)
        _in_child(writer, paths, seed, keeps=keeps)
    os.close(writer)
    told = _hear(reader, child)
    _, status, usage = os.wait4(child, 0)
    if os.WIFSIGNALED(status):
        return Told(f"ended by signal {os.WTERMSIG(status)}")
    if told is None:
        return Told(f"ended with {status} and no word")
    if usage.ru_maxrss << 10 > MEMORY and not told.finding:
        told.finding = f"took {usage.ru_maxrss >> 10} MiB of memory"
    return told


def _hear(reader: int, child: int) -> Told | None:
    data, end = b"", time.monotonic() + HANGS
    with open(reader, "rb", buffering=0) as pipe:
        while select.select([pipe], [], [], max(0, end - time.monotonic()))[0]:
            more = pipe.read(65536)
            if not more:
                return Told(**json.loads(data)) if data else None
            data += more
    os.kill(child, 9)
    return Told(f"hangs: not done after {HANGS} s")


def _in_child(writer: int, paths: Sequence[Path], seed: int, *, keeps: bool) -> None:
    look, change, repair = paths
    told = Told()
    resource.setrlimit(resource.RLIMIT_CPU, (10 * int(SECONDS), 10 * int(SECONDS)))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        with phase("look", told):
            _look(look)
        with phase("change", told):
            told.wrote = _change(change, random.Random(seed), told)
        with phase("repair", told):
            told.repaired = _repair(repair, keeps=keeps)
    except BaseException as error:
        told.slow = isinstance(error, SlowError)
        told.finding = traceback.format_exc()[-3000:]
    os.write(writer, json.dumps(asdict(told)).encode())
    os._exit(0)


@contextlib.contextmanager
def phase(name: str, told: Told) -> Iterator[None]:
    before = time.process_time()
    try:
        yield
    except _REFUSALS as error:
        told.refused.append(f"{name}: {type(error).__name__}: {error}")
    took = time.process_time() - before
    if took > SECONDS and took > SECONDS * (stretch := pace.stretch()):
        raise SlowError(f"{name} took {took:.1f} s of processor time, where {SECONDS * stretch:.1f} s are allowed")


# ---- looking ----


def _places(length: int) -> Iterator[int]:
    yield from range(0, min(length, _SEEN), _PIECE)
    yield from range(max(_SEEN, (length - _SEEN) // _PIECE * _PIECE), length, _PIECE)


def content(path: Path) -> list[bytes | None]:
    """Pieces of the disk from both its ends, None where reading is refused."""
    with _disk(path, read_only=True) as disk:
        return [_piece(disk, at) for at in _places(disk.length)]


def _piece(disk: Disk, at: int) -> bytes | None:
    try:
        return disk.read_blocking(at, min(_PIECE, disk.length - at))
    except _REFUSALS:
        return None


@contextlib.contextmanager
def _disk(path: Path, *, read_only: bool) -> Iterator[Disk]:
    disk = Disk(*open_chain("qcow2", path, read_only=read_only))
    try:
        yield disk
    finally:
        disk.close()


def _look(path: Path) -> None:
    with contextlib.suppress(*_REFUSALS):
        content(path)
    with contextlib.suppress(*_REFUSALS), HostFile.from_path(path, read_only=True) as file:
        check(file)
    with contextlib.ExitStack() as closing:
        images = open_chain("qcow2", path, read_only=True)
        for image in images:
            closing.enter_context(image)
        top = images[0]
        assert isinstance(top, Qcow2)
        top.info()
        for snapshot in list(top.snapshots)[:4]:
            with contextlib.suppress(*_REFUSALS):
                view = top.open_snapshot(snapshot.id)
                Chain([view, *images[1:]]).compose(0, min(view.geometry.length, _SEEN))


# ---- changing ----


def _change(path: Path, source: random.Random, told: Told) -> bool:
    """Whether all of it went through."""
    refused = len(told.refused)
    with _disk(path, read_only=False) as disk:
        for step in source.choices(_STEPS, k=12):
            try:
                step(disk, source)
            except _REFUSALS as error:
                told.refused.append(f"change: {type(error).__name__}: {error}")
    return len(told.refused) == refused


def _range(disk: Disk, source: random.Random) -> tuple[int, int]:
    near = source.choice([disk.length, min(disk.length, _SEEN), min(disk.length, 1 << 16)])
    offset = source.randrange(near) if near else 0
    return offset, min(source.choice([1, 512, 4096, 20000, 70000]), disk.length - offset)


def _write(disk: Disk, source: random.Random) -> None:
    offset, length = _range(disk, source)
    disk.write_blocking(offset, source.randbytes(length))
    disk.read_blocking(offset, length)  # perhaps not what was written: two blocks may lie in one cluster


def _zero(disk: Disk, source: random.Random) -> None:
    offset, length = _range(disk, source)
    disk.write_zeroes_blocking(offset, length, deallocate=source.random() < 0.5)


def _flush(disk: Disk, _: random.Random) -> None:
    disk.flush_blocking()


def _take(disk: Disk, source: random.Random) -> None:
    disk.snapshot(f"taken {source.randrange(1 << 30)}")


def _delete(disk: Disk, _: random.Random) -> None:
    for snapshot in list(disk.snapshots())[:1]:
        disk.delete_snapshot(snapshot.id)


def _resize(disk: Disk, source: random.Random) -> None:
    disk.resize(max(512, (disk.length + source.choice([-70000, -512, 512, 70000])) // 512 * 512))


_Step = Callable[[Disk, random.Random], None]
_STEPS: list[_Step] = [*[_write] * 5, _zero, _zero, _flush, _flush, _take, _delete, _resize]


# ---- repairing ----


def _repair(path: Path, *, keeps: bool) -> bool:
    before: list[bytes | None] = []
    with contextlib.suppress(*_REFUSALS):
        before = content(path)
    with HostFile.from_path(path) as file:
        report = check(file, repair="all")
    if report.corruptions or report.leaks:
        return False
    after = content(path)
    changed = [n for n, (old, new) in enumerate(zip(before, after, strict=False)) if old is not None and old != new]
    assert not (keeps and changed), (
        f"the repair changed piece {changed[0]} of {_PIECE} bytes, and {len(changed) - 1} more"
    )
    return True
