"""Unlocked: an encrypted qcow2 image, or a snapshot of one, to read through its cipher.

Every block that lies somewhere is told as COMPRESSED, which means: ask `materialise`. So whoever moves bytes never
meets the encrypted ones, and need not know of ciphers. The sector numbers that go into the IVs are those of the file.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from formats.errors import UnsupportedFeature
from formats.image import SECTOR, BlockState, Image, Layer, Run, entry
from formats.qcow2.snapshot_table import Snapshot

if TYPE_CHECKING:
    from formats.qcow2.image import Qcow2
    from formats.sector_cipher import SectorCipher

_PLACED = (BlockState.DATA, BlockState.SHARED)


class Unlocked(Image):
    """Takes over the image that it reads, and closes it. Raises UnsupportedFeature."""

    format = "qcow2"

    def __init__(self, image: "Qcow2", cipher: "SectorCipher", which: str | None = None) -> None:
        """`which`: ID or name of a snapshot."""
        if image.header.extended_l2:
            raise UnsupportedFeature(
                f"{image.file.name} is encrypted and has extended L2 entries; convert it with qemu-img"
            )
        self._image, self._cipher = image, cipher
        snapshot = None if which is None else image.snapshots.find(which)
        geometry = image.geometry if snapshot is None else image.snapshots.geometry(snapshot)
        super().__init__(geometry, read_only=True)
        self._tables = image.tables if snapshot is None else image.snapshots.tables(snapshot)
        self.backing = image.backing

    @property
    def layers(self) -> Sequence[Layer]:
        return self._image.layers

    def load(self, first: int, count: int) -> list[Run]:
        hidden = entry(BlockState.COMPRESSED)
        runs = self._tables.load(first, count)
        return [Run(run.first, run.count, hidden) if run.entry >> 60 in _PLACED else run for run in runs]

    def materialise(self, block: int) -> bytes:
        return self.fetch(block)()

    def fetch(self, block: int) -> Callable[[], bytes]:
        meaning, size = self._tables.meaning(block), self.geometry.block_size
        if meaning.state not in _PLACED:
            return self._image.fetch_of(self._tables, block)
        data = (self._image.data_file or self._image.file).pread(meaning.offset, size).ljust(size, b"\0")
        return lambda: self._cipher.decrypt(data, meaning.offset // SECTOR)

    def kept(self) -> Sequence[Snapshot]:
        return self._image.kept()

    def become_snapshot(self, which: str) -> "Unlocked":
        return Unlocked(self._image, self._cipher, which)

    def info(self) -> dict[str, object]:
        return {**self._image.info(), "virtual-size": self.geometry.length}

    def close(self) -> None:
        self._image.close()
