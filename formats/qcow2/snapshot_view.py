"""SnapshotView: an internal snapshot as an image of its own, to read; its tables over its files."""

from array import array
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from formats.image import Image, Layer, Masks, Run

if TYPE_CHECKING:
    from formats.qcow2.image import Qcow2


class SnapshotView(Image):
    """A snapshot as a read-only image over the files of the one that holds it, which it closes only when it owns it."""

    format = "qcow2"

    def __init__(self, image: "Qcow2", which: str, *, owning: bool = False) -> None:
        self._image, self._owning = image, owning
        self.snapshot = image.snapshots.find(which)
        super().__init__(image.snapshots.geometry(self.snapshot), read_only=True)
        self.backing, self.cipher = image.backing, image.cipher
        self._tables = image.snapshots.tables(self.snapshot)

    @property
    def encrypted(self) -> bool:
        return self._image.encrypted

    @property
    def layers(self) -> Sequence[Layer]:
        return self._image.layers

    def load(self, first: int, count: int) -> list[Run]:
        return self._tables.load(first, count)

    def masks(self, first: int, count: int) -> list[Masks]:
        return self._tables.masks(first, count)

    def materialise(self, block: int) -> bytes:
        return self.fetch(block)()

    def fetch(self, block: int) -> Callable[[], bytes]:
        return self._image.fetch_of(self._tables, block)

    def load_entries(self, first: int, count: int) -> "array[int]":
        return self._tables.load_entries(first, count)

    def info(self) -> dict[str, object]:
        return {**self._image.info(), "virtual-size": self.geometry.length}

    def close(self) -> None:
        if self._owning:
            self._image.close()
