"""World: a chain of images in a folder, a Disk over it, and a model of what must be read; operations done to both.

    operation --> Disk(top, *parents) --> files        after each reopening: qemu-img check finds nothing,
              +-> Model                                qemu-img compare and the disk both agree with the model

A write that was not flushed may be lost when the disk is dropped, but then its sectors are as some operation before it
left them. So the model's state at the last flush is kept, with all that was done since.
"""

import contextlib
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

from formats.errors import ImageError, UnsupportedFeature
from formats.host_file import HostFile
from formats.image import Image
from formats.qcow2.check import check
from formats.qcow2.image import Qcow2
from formats.qcow2.snapshots import Snapshots
from formats.registry import open_chain
from tests.copy_on_write import recipe as recipes
from tests.copy_on_write.operations import Operation
from tests.copy_on_write.recipe import Recipe
from tests.formats.reference import run
from vstore import block_map, commits
from vstore.chain import Chain
from vstore.disk import Disk

SECTOR = 512
STEP = 1 << 20
LONG = 64 << 20  # disks beyond it are looked at only where something was written, and around it


class Disagreement(AssertionError):  # noqa: N818
    """Disk and model, or disk and qemu-img, differ."""


class World:
    """Owns everything in its folder; a context manager, which closes the disk."""

    def __init__(self, recipe: Recipe, folder: Path) -> None:
        self.recipe, self.folder = recipe, folder
        self.done: Counter[str] = Counter()
        built = recipes.build(recipe, folder)
        self.model, self.snapshots = built.model, built.snapshots
        self._lock = threading.Lock()
        self._tuning = contextlib.ExitStack()
        for name, value in recipe.tuning.items():
            module = next(module for module in (block_map, commits) if hasattr(module, name))
            self._tuning.enter_context(mock.patch.object(module, name, value))
        self._open()

    def __enter__(self) -> "World":
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError, ImageError):
            self.disk.close()
        self._tuning.close()

    # ---- opening and closing ----

    @property
    def path(self) -> Path:
        """The top image."""
        return self.folder / self.recipe.top.name

    def _images(self, *, read_only: bool = False) -> list[Image]:
        return open_chain(self.recipe.top.format, self.path, read_only=read_only, direct=self.recipe.direct)

    def _open(self) -> None:
        self.disk = Disk(*self._images())
        if self.disk.length != self.model.length:
            raise Disagreement(f"a disk of {self.disk.length} bytes instead of {self.model.length}")
        self._forget_history()

    def _forget_history(self) -> None:
        self._durable = self.model.copy()
        self._since: list[tuple[int, bytes]] = []

    def close(self) -> None:
        """Closes the disk, and holds the image against qemu-img."""
        self.disk.close()
        self._ask_qemu()

    def _ask_qemu(self) -> None:
        if self.recipe.top.format == "qcow2":
            checked = run("qemu-img", "check", "-f", "qcow2", self.path)
            if checked.returncode:
                raise Disagreement(f"qemu-img check: {checked.stdout[:2000]}{checked.stderr[:500]}")
        model = self.folder / "model.raw"
        self.model.save(model)
        self._compare(self.path, self.recipe.top.format, model)
        if "data_file_raw" in self.recipe.top.options:
            self._compare(self.folder / f"{self.recipe.top.name}.data", "raw", model)

    def _compare(self, path: Path, format: str, model: Path) -> None:
        same = run("qemu-img", "compare", "-f", format, "-F", "raw", path, model)
        if same.returncode or "mismatch" in same.stdout + same.stderr:
            raise Disagreement(f"qemu-img compare {path.name}: {same.stdout[:500]}{same.stderr[:500]}")

    # ---- looking ----

    def check(self) -> None:
        """Reads the disk, all of it or, where it is long, what was written."""
        for offset, length in self._places():
            self._look(offset, length)

    def _places(self) -> Iterator[tuple[int, int]]:
        if self.model.length <= LONG:
            for offset in range(0, self.model.length, STEP):
                yield offset, min(STEP, self.model.length - offset)
            return
        for offset, data in self.model.written():
            start = max(0, offset - SECTOR)
            yield start, min(offset + len(data) + SECTOR, self.model.length) - start

    def _look(self, offset: int, length: int) -> None:
        self._same(offset, self.disk.read_blocking(offset, length), self.model.read(offset, length))

    def _same(self, offset: int, found: bytes, wanted: bytes) -> None:
        if found == wanted:
            return
        if len(found) != len(wanted):
            raise Disagreement(f"{len(found)} bytes at {offset} instead of {len(wanted)}")
        wrong = [n for n in range(len(wanted)) if found[n] != wanted[n]]
        at, last = wrong[0], wrong[-1]
        block, within = divmod(offset + at, self.recipe.top.cluster)
        raise Disagreement(
            f"{len(wrong)} bytes wrong from {offset + at} to {offset + last} (block {block}, byte {within}): "
            f"{found[at : at + 16].hex(' ')} instead of {wanted[at : at + 16].hex(' ')}"
        )

    # ---- doing ----

    def do(self, operation: Operation) -> None:
        """Raises Disagreement; ImageError and OSError where what was asked for should have been done."""
        self.done[operation.kind] += 1
        _DOERS[operation.kind](self, operation)

    def _range(self, operation: Operation) -> tuple[int, int]:
        offset = operation.offset % self.model.length
        return offset, min(operation.length, self.model.length - offset)

    def _changed(self, offset: int, data: bytes) -> None:
        with self._lock:
            self.model.write(offset, data)
            self._since.append((offset, data))

    def write(self, operation: Operation) -> None:
        offset, length = self._range(operation)
        data = operation.data(length)
        self.disk.write_blocking(offset, data)
        self._changed(offset, data)

    def zero(self, operation: Operation) -> None:
        offset, length = self._range(operation)
        self.disk.write_zeroes_blocking(offset, length, deallocate=operation.kind == "discard")
        self._changed(offset, bytes(length))

    def read(self, operation: Operation) -> None:
        offset, length = self._range(operation)
        found = self.disk.read_blocking(offset, length)
        with self._lock:
            wanted = self.model.read(offset, length)
        self._same(offset, found, wanted)

    def flush(self, _: Operation) -> None:
        self.disk.flush_blocking()
        self._forget_history()

    def pause(self, operation: Operation) -> None:
        """Time for the keeper."""
        threading.Event().wait(operation.stamp % 20 / 1000)

    def resize(self, operation: Operation) -> None:
        length = operation.length
        if self.recipe.top.length > LONG:  # new blocks over a parent are zeroed one by one
            length = self.recipe.top.length + length // 512 % 1000 * 512
        why = self._why_not_resize(length)
        if why:
            with self._refused(why):
                self.disk.resize(length)
            return
        self.disk.resize(length)
        self.model.resize(length)
        self.flush(operation)

    def _why_not_resize(self, length: int) -> str:
        """Version 2 knows neither the length that a snapshot had nor zeros that hide a parent."""
        top = self.recipe.top
        if top.format == "raw" or top.version == 3:
            return ""
        if self.snapshots:
            return "snapshots of version 2"
        grown = -(-length // top.cluster) > -(-self.model.length // top.cluster)
        return "no zero clusters" if grown and len(self.recipe.layers) > 1 else ""

    @contextlib.contextmanager
    def _refused(self, sentence: str) -> Iterator[None]:
        try:
            yield
        except UnsupportedFeature as error:
            self.done["refused"] += 1
            if sentence not in str(error):
                raise
        else:
            raise Disagreement(f"it was done, and should have been refused: {sentence}")

    def side_by_side(self, operation: Operation) -> None:
        """Several writers at once, each in stripes of its own."""
        errors: list[BaseException] = []

        def work(part: tuple[Operation, ...]) -> None:
            try:
                for one in part:
                    if one.offset + one.length <= self.model.length:
                        self.do(one)
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=work, args=(part,)) for part in operation.parts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]

    # ---- with the disk closed ----

    def reopen(self, _: Operation) -> None:
        self.check()
        self.close()
        self._open()
        self.check()

    def kill(self, operation: Operation) -> None:
        """The process is gone: nothing of what only memory held is written any more."""
        drop(self.disk)
        if operation.stamp % 2 and self.recipe.top.format == "qcow2":
            self._only_leaks()
        self.disk = Disk(*self._images())
        self._take_what_is_left()
        self._repair()

    def _only_leaks(self) -> None:
        """A lazy image is marked dirty, and may count wrongly until it is repaired."""
        checked = run("qemu-img", "check", "-f", "qcow2", self.path)
        if checked.returncode not in (0, 3) and "lazy_refcounts" not in self.recipe.top.options:
            raise Disagreement(f"qemu-img check of a dropped disk: {checked.stdout[:2000]}{checked.stderr[:500]}")

    def _repair(self) -> None:
        """What was reserved has leaked."""
        self.disk.close()
        if self.recipe.top.format == "qcow2":
            with HostFile.from_path(self.path) as file:
                left = check(file, repair="all")
            if left.corruptions or left.leaks:
                raise Disagreement(f"left after a repair: {left.corruptions} corruptions, {left.leaks} leaks")
        self._ask_qemu()
        self._open()

    def _take_what_is_left(self) -> None:
        """Each sector is as it was at the last flush, or as an operation since then left it."""
        for offset, length in list(self._places()):
            found, wanted = self.disk.read_blocking(offset, length), self.model.read(offset, length)
            if found == wanted:
                continue
            for at in range(0, length, SECTOR):
                sector, now = found[at : at + SECTOR], wanted[at : at + SECTOR]
                if sector != now:
                    self._accept(offset + at, sector)

    def _accept(self, offset: int, found: bytes) -> None:
        state = self._durable.read(offset, len(found))
        if state != found:
            for at, data in self._since:
                if at < offset + len(found) and at + len(data) > offset:
                    state = _laid_over(state, offset, at, data)
                    if state == found:
                        break
            else:
                self._same(offset, found, state)
        self.model.write(offset, found)

    @contextlib.contextmanager
    def _closed(self) -> Iterator[None]:
        """Nobody has the image open; afterwards it must be in order."""
        self.disk.close()
        yield
        self._ask_qemu()
        self._open()

    @contextlib.contextmanager
    def _offline(self) -> Iterator[list[Image]]:
        """The images without their disk."""
        with self._closed(), contextlib.ExitStack() as closing:
            images = self._images()
            for image in images:
                closing.enter_context(image)
            yield images

    def take(self, operation: Operation) -> None:
        name, options = f"s{operation.stamp}", self.recipe.top.options
        if self.recipe.top.format != "qcow2" or name in self.snapshots or len(self.snapshots) > 4:
            return
        with self._offline() as (image, *_):
            if "data_file" in options:
                with self._refused("data file"):
                    _snapshots(image).take(name)
                return
            try:
                _snapshots(image).take(name)
            except UnsupportedFeature as error:  # counts of few bits are full after few
                if int(options.get("refcount_bits", 16)) > 8 or "no more snapshots fit" not in str(error):
                    raise
                self.done["refused"] += 1
            else:
                self.snapshots[name] = self.model.copy()

    def apply(self, operation: Operation) -> None:
        if self.snapshots:
            name = self._one(operation)
            with self._offline() as (image, *_):
                _snapshots(image).apply(name)
                self.model = self.snapshots[name].copy()

    def delete(self, operation: Operation) -> None:
        if self.snapshots:
            name = self._one(operation)
            with self._offline() as images:
                self._look_at_snapshot(images, name)
                _snapshots(images[0]).delete(name)
                del self.snapshots[name]

    def _one(self, operation: Operation) -> str:
        return sorted(self.snapshots)[operation.stamp % len(self.snapshots)]

    def _look_at_snapshot(self, images: list[Image], name: str) -> None:
        wanted = self.snapshots[name]
        top = images[0]
        assert isinstance(top, Qcow2)
        if wanted.length <= LONG:
            chain = Chain([top.open_snapshot(name), *images[1:]])
            self._same(0, chain.compose(0, wanted.length), wanted.read(0, wanted.length))

    def qemu(self, operation: Operation) -> None:
        """qemu-io changes the image meanwhile."""
        source = random.Random(operation.stamp)
        fills = recipes.fills(source, self.recipe.top, self.model.length, 5, new=False)
        with self._closed():
            recipes.change(self.recipe.top, self.folder, list(map(str, fills)))
            for fill in fills:
                self.model.write(fill.offset, fill.data)


def _snapshots(image: Image) -> Snapshots:
    assert isinstance(image, Qcow2)
    return image.snapshots


def drop(disk: Disk) -> None:
    """Lets go of a disk as the end of its process does: what only memory holds is lost."""
    if disk._keeper:
        disk._keeper.stop()
    disk._closed = True
    disk._threads.shutdown()
    disk.volume.close()
    if isinstance(disk.image, Qcow2):
        disk.image.writer = None
    disk._close_images()


def _laid_over(state: bytes, offset: int, at: int, data: bytes) -> bytes:
    """`state` of a sector at `offset` after `data` was written at `at`."""
    start, stop = max(at, offset), min(at + len(data), offset + len(state))
    return state[: start - offset] + data[start - at : stop - at] + state[stop - offset :]


_DOERS: dict[str, Callable[[World, Operation], None]] = {
    "write": World.write,
    "read": World.read,
    "zero": World.zero,
    "discard": World.zero,
    "flush": World.flush,
    "resize": World.resize,
    "pause": World.pause,
    "side by side": World.side_by_side,
    "reopen": World.reopen,
    "kill": World.kill,
    "take": World.take,
    "apply": World.apply,
    "delete": World.delete,
    "qemu": World.qemu,
}
