"""Doing: what each kind of operation does to a world, to its disk and to its model alike.

Raises Disagreement; ImageError, OSError and the like where what was asked for should have been done.
"""

import contextlib
import random
import signal
import threading
from collections.abc import Callable, Iterator

from formats.errors import UnsupportedFeature
from formats.image import Image
from formats.qcow2.image import Qcow2
from formats.qcow2.snapshots import Snapshots
from tests.copy_on_write import guest as guests
from tests.copy_on_write import recipe as recipes
from tests.copy_on_write import restructuring
from tests.copy_on_write.layer import SECRET, options_of
from tests.copy_on_write.operations import WRITERS, Operation
from tests.copy_on_write.world import LONG, Disagreement, World
from tests.crash.guest import abandoned
from tests.formats.reference import run

_FEW_BITS = 8  # counts of so many bits may be full


def do(world: World, operation: Operation) -> None:
    world.done[operation.kind] += 1
    _DOERS[operation.kind](world, operation)


# ---- bytes ----


def _range(world: World, operation: Operation) -> tuple[int, int]:
    offset = operation.offset % world.model.length
    return offset, min(operation.length, world.model.length - offset)


def _write(world: World, operation: Operation) -> None:
    offset, length = _range(world, operation)
    data = operation.data(length)
    world.disk.write_blocking(offset, data)
    world.changed(offset, data)


def _zero(world: World, operation: Operation) -> None:
    offset, length = _range(world, operation)
    world.disk.write_zeroes_blocking(offset, length, deallocate=operation.kind == "discard")
    world.changed(offset, bytes(length))


def _read(world: World, operation: Operation) -> None:
    offset, length = _range(world, operation)
    world.same(offset, world.disk.read_blocking(offset, length), world.history.now(offset, length))


def _flush(world: World, _: Operation) -> None:
    world.disk.flush_blocking()
    world.history.begin()


def _pause(_: World, operation: Operation) -> None:
    """Time for the keeper."""
    threading.Event().wait(operation.stamp % 20 / 1000)


def _all_inside(world: World, operation: Operation) -> tuple[tuple[Operation, ...], ...]:
    """The parts, without what lies behind the end of the disk."""
    length = world.model.length
    return tuple(tuple(one for one in part if one.offset + one.length <= length) for part in operation.parts)


def _side_by_side(world: World, operation: Operation, meanwhile: Callable[[], object] = lambda: None) -> None:
    """Several writers at once, each in stripes of its own, and something else."""
    errors: list[BaseException] = []

    def work(part: tuple[Operation, ...]) -> None:
        try:
            for one in part:
                do(world, one)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(part,)) for part in _all_inside(world, operation)]
    for thread in threads:
        thread.start()
    try:
        meanwhile()
    finally:
        for thread in threads:
            thread.join()
    if errors:
        raise errors[0]


def _forget(world: World, operation: Operation) -> None:
    """The map is dropped, as for a change of the image's structure, while others write; a flat image has none."""

    def drop() -> None:
        if world.is_qcow2:
            with world.disk._map.editing():
                pass

    _side_by_side(world, operation, drop)


def _resize(world: World, operation: Operation) -> None:
    length = operation.length
    if world.recipe.top.length > LONG:  # new blocks over a parent are zeroed one by one
        length = world.recipe.top.length + length // 512 % 1000 * 512
    why = _why_not_resize(world, length)
    if why:
        with _refused(world, why):
            world.disk.resize(length)
        return
    world.disk.resize(length)
    world.bitmaps.resized(world.model.length, length, world.top.cluster)
    world.model.resize(length)
    _flush(world, operation)


def _why_not_resize(world: World, length: int) -> str:
    """Version 2 knows neither the length that a snapshot had nor zeros that hide a parent."""
    top = world.top
    if not world.is_qcow2 or top.version == 3:
        return ""
    if world.snapshots:
        return "snapshots of version 2"
    grown = -(-length // top.cluster) > -(-world.model.length // top.cluster)
    return "no zero clusters" if grown and len(world.chain) > 1 else ""


@contextlib.contextmanager
def _refused(world: World, sentence: str) -> Iterator[None]:
    try:
        yield
    except UnsupportedFeature as error:
        world.done["refused"] += 1
        if sentence not in str(error):
            raise
    else:
        raise Disagreement(f"it was done, and should have been refused: {sentence}")


# ---- opening anew ----


def _reopen(world: World, _: Operation) -> None:
    world.check()
    world.close()
    world.open()
    world.check()


def _kill(world: World, operation: Operation) -> None:
    """The process is gone: nothing of what only memory held is written any more."""
    abandoned(world.disk)
    world.bitmaps.lost()
    if operation.stamp % 2:
        _only_leaks(world)
    world.open_after_a_crash()
    world.take_what_is_left()
    world.repair()


def _only_leaks(world: World) -> None:
    """A lazy image is marked dirty, and may count wrongly until it is repaired."""
    if world.is_qcow2 and "lazy_refcounts" not in world.top.options:
        checked = run("qemu-img", "check", *SECRET, "--image-opts", options_of(world.chain, world.folder))
        if checked.returncode not in (0, 3):
            raise Disagreement(f"qemu-img check of a dropped disk: {checked.stdout[:2000]}{checked.stderr[:500]}")


def _guest(world: World, operation: Operation) -> None:
    """Through SCSI commands on several queues; half of them is flushed, half of the ends are crashes."""
    world.disk.close()
    parts, killed = _all_inside(world, operation), operation.stamp % 2

    def done(one: Operation, data: bytes) -> None:
        if one.kind == "read":
            world.same(one.offset, data, world.history.now(one.offset, one.length))
        else:
            world.changed(one.offset, one.data(one.length) if one.kind == "write" else bytes(one.length))

    with guests.started(world.path, world.top.format, WRITERS, direct=world.recipe.direct) as guest:
        if guest.length != world.model.length:
            raise Disagreement(f"the guest sees {guest.length} bytes instead of {world.model.length}")
        guest.drive([part[: len(part) // 2] for part in parts], done)
        guest.flush()
        world.history.begin()
        guest.drive([part[len(part) // 2 :] for part in parts], done)
        guest.end(signal.SIGKILL if killed else signal.SIGTERM)
    if killed:
        world.bitmaps.lost()
        world.open_after_a_crash()
        world.take_what_is_left()
        world.repair()
    else:
        world.ask_qemu()
        world.open()
        world.check()


def _qemu(world: World, operation: Operation) -> None:
    """qemu-io changes the image meanwhile."""
    source = random.Random(operation.stamp)
    fills = recipes.fills(source, world.top, world.model.length, 5, new=False)
    with world.closed():
        recipes.change(world.chain, world.folder, list(map(str, fills)))
        for fill in fills:
            world.model.write(fill.offset, fill.data)
            world.bitmaps.touched(fill.offset, fill.end - fill.offset)


# ---- snapshots ----


def _may_take(world: World, name: str) -> bool:
    return world.is_qcow2 and name not in world.snapshots and len(world.snapshots) < 5


def _take(world: World, operation: Operation) -> None:
    name = f"s{operation.stamp}"
    if _may_take(world, name):
        with world.offline() as (image, *_):
            _taken(world, name, lambda: _snapshots(image).take(name))


def _take_live(world: World, operation: Operation) -> None:
    """With nobody writing, or, where all of the disk can be looked at, several at once."""
    name = f"s{operation.stamp}"
    if not _may_take(world, name):
        return
    if world.top.encrypted:
        with _refused(world, "encrypted"):
            world.disk.snapshot(name)
        return
    if operation.stamp % 2 or world.model.length > LONG:
        _taken(world, name, lambda: world.disk.snapshot(name))
        return
    _flush(world, operation)
    before = world.model.copy()
    _side_by_side(world, operation, lambda: _taken(world, name, lambda: world.disk.snapshot(name)))
    if name in world.snapshots:
        world.snapshots[name], history = before, world.history
        with world.offline() as images:
            world.look_at_snapshot(images, name, history)


def _taken(world: World, name: str, take: Callable[[], object]) -> None:
    if "data_file" in world.top.options:
        with _refused(world, "data file"):
            take()
        return
    with _unless_full(world):
        take()
        world.snapshots[name] = world.model.copy()


@contextlib.contextmanager
def _unless_full(world: World) -> Iterator[None]:
    """Counts of few bits are full after few snapshots."""
    try:
        yield
    except UnsupportedFeature as error:
        if int(world.top.options.get("refcount_bits", 16)) > _FEW_BITS or "snapshots fit" not in str(error):
            raise
        world.done["refused"] += 1


def _snapshots(image: Image) -> Snapshots:
    assert isinstance(image, Qcow2)
    return image.snapshots


def _one(world: World, operation: Operation) -> str:
    return sorted(world.snapshots)[operation.stamp % len(world.snapshots)]


def _apply(world: World, operation: Operation) -> None:
    if not world.snapshots:
        return
    name = _one(world, operation)
    with world.offline() as (image, *_):
        if len(world.bitmaps) and world.snapshots[name].length != world.model.length:
            with _refused(world, "another length than the bitmaps"):
                _snapshots(image).apply(name)
            return
        with _unless_full(world):
            world.bitmaps.perhaps_touched(0, world.model.length)
            _snapshots(image).apply(name)
            world.model = world.snapshots[name].copy()
            world.bitmaps.touched(0, world.model.length)


def _delete(world: World, operation: Operation) -> None:
    if world.snapshots:
        name = _one(world, operation)
        with world.offline() as images:
            world.look_at_snapshot(images, name)
            _snapshots(images[0]).delete(name)
            del world.snapshots[name]


def _delete_live(world: World, operation: Operation) -> None:
    if world.snapshots and not world.top.encrypted:
        name = _one(world, operation)
        del world.snapshots[name]
        if operation.stamp % 2:
            world.disk.delete_snapshot(name)
        else:
            _side_by_side(world, operation, lambda: world.disk.delete_snapshot(name))


_DOERS: dict[str, Callable[[World, Operation], None]] = {
    "write": _write,
    "read": _read,
    "zero": _zero,
    "discard": _zero,
    "flush": _flush,
    "resize": _resize,
    "pause": _pause,
    "side by side": _side_by_side,
    "forget": _forget,
    "guest": _guest,
    "reopen": _reopen,
    "kill": _kill,
    "take": _take,
    "take live": _take_live,
    "apply": _apply,
    "delete": _delete,
    "delete live": _delete_live,
    "commit": restructuring.commit,
    "rebase": restructuring.rebase,
    "clone": restructuring.clone,
    "convert": restructuring.convert,
    "bitmap": restructuring.bitmap,
    "qemu": _qemu,
}
