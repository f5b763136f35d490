"""World: a chain of images in a folder, a Disk over it, and a model of what must be read.

    operation --> Disk(top, *parents) --> files        after each reopening: qemu-img check finds nothing,
              +-> Model                                qemu-img compare and the disk both agree with the model

A write that was not flushed may be lost when the disk is dropped, but then its sectors are as some operation before it
left them (`History`).
"""

import contextlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from formats import luks
from formats.errors import ImageError
from formats.host_file import HostFile
from formats.image import Image
from formats.qcow2.check import check
from formats.qcow2.image import Qcow2
from formats.registry import open_chain
from tests.copy_on_write import recipe as recipes
from tests.copy_on_write.bitmaps import Bitmaps
from tests.copy_on_write.history import History
from tests.copy_on_write.layer import KEY, SECRET, Layer, options_of
from tests.copy_on_write.model import Model
from tests.copy_on_write.recipe import Recipe
from tests.formats.reference import run
from vstore import block_map, commits
from vstore.chain import Chain
from vstore.disk import Disk
from vstore.transfer.offline import Place

STEP = 1 << 20
LONG = 64 << 20  # disks beyond it are looked at only where something was written, and around it
AROUND = 512
FEW_ITERATIONS = 2000  # of PBKDF2, so that a new LUKS header takes no second


class Disagreement(AssertionError):  # noqa: N818
    """Disk and model, or disk and qemu-img, differ."""


class World:
    """Owns everything in its folder; a context manager, which closes the disk."""

    def __init__(self, recipe: Recipe, folder: Path) -> None:
        self.recipe, self.folder = recipe, folder
        self.done: Counter[str] = Counter()
        self.chain, self.under = recipe.layers, recipe.layers[:-1]  # `under`: what the top was made over
        self.bitmaps = Bitmaps()
        self._tuning = contextlib.ExitStack()
        self._tuning.enter_context(mock.patch.object(luks, "_ITERATIONS", FEW_ITERATIONS))
        built = recipes.build(recipe, folder)
        self.model, self.snapshots = built.model, built.snapshots
        for name, value in recipe.tuning.items():
            module = next(module for module in (block_map, commits) if hasattr(module, name))
            self._tuning.enter_context(mock.patch.object(module, name, value))
        self.open()

    def __enter__(self) -> "World":
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError, ImageError):
            self.disk.close()
        self._tuning.close()

    # ---- opening and closing ----

    @property
    def top(self) -> Layer:
        """The image that the disk writes to."""
        return self.chain[-1]

    @property
    def place(self) -> Place:
        return Place(str(self.path), self.top.format, secrets=[KEY])

    @property
    def path(self) -> Path:
        return self.folder / self.top.name

    @property
    def is_qcow2(self) -> bool:
        return self.top.format == "qcow2"

    def images(self, *, read_only: bool = False) -> list[Image]:
        """The whole chain."""
        return open_chain(self.top.format, self.path, read_only=read_only, direct=self.recipe.direct, secrets=[KEY])

    def open(self) -> None:
        """Puts a disk over the images; what they hold is durable."""
        self.open_after_a_crash()
        self.history = History(self.model)

    def open_after_a_crash(self) -> None:
        """The same, with the history that there is."""
        self.disk = Disk(*self.images())
        if self.recipe.map_limit:
            self.disk.volume.set_map_limit(self.recipe.map_limit)
        if self.disk.length != self.model.length:
            raise Disagreement(f"a disk of {self.disk.length} bytes instead of {self.model.length}")

    def close(self) -> None:
        """Closes the disk, and holds the image against qemu-img."""
        self.disk.close()
        self.ask_qemu()

    def ask_qemu(self) -> None:
        """Nobody has the image open."""
        options = options_of(self.chain, self.folder)
        if self.is_qcow2:
            checked = run("qemu-img", "check", *SECRET, "--image-opts", options)
            if checked.returncode:
                raise Disagreement(f"qemu-img check: {checked.stdout[:2000]}{checked.stderr[:500]}")
            if wrong := self.bitmaps.wrong(self.chain, self.folder):
                raise Disagreement(wrong)
        self.model.save(self.folder / "model.raw")
        self._compare(options)
        if "data_file_raw" in self.top.options:
            # it may end with a whole cluster, or sub-cluster, behind the disk's end; qemu-img makes it so too
            self._compare(f"driver=raw,size={self.model.length},file.filename={self.path}.data")

    def _compare(self, options: str) -> None:
        model = f"driver=raw,file.filename={self.folder / 'model.raw'}"
        same = run("qemu-img", "compare", *SECRET, "--image-opts", options, model)
        if same.returncode or "mismatch" in same.stdout + same.stderr:
            raise Disagreement(f"qemu-img compare {options}: {same.stdout[:500]}{same.stderr[:500]}")

    def changed(self, offset: int, data: bytes) -> None:
        """A write, whoever made it, has ended."""
        self.history.changed(offset, data)
        self.bitmaps.touched(offset, len(data))

    @contextlib.contextmanager
    def closed(self) -> Iterator[None]:
        """Nobody has the image open; afterwards it must be in order."""
        self.disk.close()
        yield
        self.ask_qemu()
        self.open()

    @contextlib.contextmanager
    def offline(self) -> Iterator[list[Image]]:
        """The images without their disk."""
        with self.closed(), contextlib.ExitStack() as closing:
            images = self.images()
            for image in images:
                closing.enter_context(image)
            yield images

    def goes_on_in(self, layer: Layer, under: tuple[Layer, ...]) -> None:
        """Nobody has any image open; the disk reads the same in this one, which has no snapshots and no bitmaps."""
        self.chain, self.under = (*under, layer), under
        self.snapshots, self.bitmaps = {}, Bitmaps()

    def repair(self) -> None:
        """After a crash: what was reserved has leaked, and nothing else is wrong."""
        self.disk.close()
        if self.is_qcow2:
            with HostFile.from_path(self.path) as file:
                left = check(file, repair="all")
            if left.corruptions or left.leaks:
                raise Disagreement(f"left after a repair: {left.corruptions} corruptions, {left.leaks} leaks")
        self.ask_qemu()
        self.open()

    # ---- looking ----

    def check(self) -> None:
        """Reads the disk, all of it or, where it is long, what was written."""
        for offset, length in self._places():
            self.same(offset, self.disk.read_blocking(offset, length), self.model.read(offset, length))

    def _places(self) -> Iterator[tuple[int, int]]:
        if self.model.length <= LONG:
            for offset in range(0, self.model.length, STEP):
                yield offset, min(STEP, self.model.length - offset)
            return
        for offset, data in list(self.model.written()):
            start = max(0, offset - AROUND)
            yield start, min(offset + len(data) + AROUND, self.model.length) - start

    def take_what_is_left(self) -> None:
        """After a crash the model becomes what the disk has, if it may have it."""
        for offset, length in self._places():
            found, wanted = self.disk.read_blocking(offset, length), self.model.read(offset, length)
            if found != wanted:
                self._accept(self.history, offset, found, wanted)
                self.model.write(offset, found)

    def _accept(self, history: History, offset: int, found: bytes, wanted: bytes) -> None:
        wrong = history.wrong_sector(offset, found, wanted)
        if wrong:
            self.same(*wrong)

    def look_at_snapshot(self, images: list[Image], name: str, history: History | None = None) -> None:
        """The snapshot holds what it should. With a `history`, the disk was written to while it was taken: then it
        holds what the disk may have had meanwhile, and that from here on."""
        wanted, top = self.snapshots[name], images[0]
        assert isinstance(top, Qcow2)
        if wanted.length > LONG:
            return
        found = Chain([top.open_snapshot(name), *images[1:]]).compose(0, wanted.length)
        if history is None:
            self.same(0, found, wanted.read(0, wanted.length))
            return
        self._accept(history, 0, found, wanted.read(0, wanted.length))
        self.snapshots[name] = Model(wanted.length)
        self.snapshots[name].write(0, found)

    def same(self, offset: int, found: bytes, wanted: bytes) -> None:
        """Raises Disagreement that says where they differ."""
        if found == wanted:
            return
        if len(found) != len(wanted):
            raise Disagreement(f"{len(found)} bytes at {offset} instead of {len(wanted)}")
        wrong = [n for n in range(len(wanted)) if found[n] != wanted[n]]
        at, last = wrong[0], wrong[-1]
        block, within = divmod(offset + at, self.top.cluster)
        raise Disagreement(
            f"{len(wrong)} bytes wrong from {offset + at} to {offset + last} (block {block}, byte {within}): "
            f"{found[at : at + 16].hex(' ')} instead of {wanted[at : at + 16].hex(' ')}"
        )
