"""Bitmap: one persistent bitmap of an image, its bits read where they lie and changed in memory until they are stored.

bitmap table   [ 0 | 1 | offset | ... ]     0: a cluster of zeros, 1: a cluster of ones, else where its bits lie
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from formats.errors import CorruptImage, UnsupportedFeature
from formats.qcow2.bitmap_directory import BitmapEntry
from formats.qcow2.pages import Stage
from formats.qcow2.structures import OFFSET, WORD, BitmapFlags

if TYPE_CHECKING:
    from formats.qcow2.image import Qcow2
    from formats.qcow2.writer import Writer


class Bitmap:
    """One bitmap: bit n stands for bytes n * granularity to (n + 1) * granularity - 1 of the disk."""

    def __init__(self, image: "Qcow2", entry: BitmapEntry) -> None:
        self.entry = entry
        self._image = image
        if entry.extra and not entry.flags & BitmapFlags.EXTRA_DATA_COMPATIBLE:
            raise UnsupportedFeature(f"bitmap {entry.name!r} has extra data of an unknown kind, so it may not be used")
        self._bits_per_cluster = image.header.cluster_size * 8
        self.measure()
        if entry.start.bitmap_table_size != self.clusters:
            raise CorruptImage(
                f"bitmap {entry.name!r} has a table of {entry.start.bitmap_table_size} words; "
                f"the disk needs {self.clusters}"
            )
        self._changed: dict[int, bytearray] = {}

    def measure(self) -> None:
        """Takes over the length of the disk, in bytes, bits, and clusters of bits."""
        self.length = self._image.geometry.length
        self.bits = -(-self.length // self.entry.granularity)
        self.clusters = -(-self.bits // self._bits_per_cluster)

    def _word(self, cluster: int) -> int:
        return self._image.pages.word(self.entry.start.bitmap_table_offset + cluster * WORD)

    def _read(self, cluster: int) -> bytes:
        if cluster in self._changed:
            return bytes(self._changed[cluster])
        word, size = self._word(cluster), self._image.header.cluster_size
        if word & OFFSET:
            return self._image.file.pread(word & OFFSET, size).ljust(size, b"\0")
        return (b"\xff" if word & 1 else b"\0") * size

    def get(self, bit: int) -> bool:
        """Whether the granule is dirty."""
        cluster, within = divmod(bit, self._bits_per_cluster)
        return bool(self._read(cluster)[within // 8] >> within % 8 & 1)

    def read(self) -> bytes:
        """All bits, the first in the lowest bit of the first byte."""
        return b"".join(self._read(cluster) for cluster in range(self.clusters))[: -(-self.bits // 8)]

    def dirty(self) -> Iterator[tuple[int, int]]:
        """Offset and length, in bytes of the disk, of what is dirty, joined where it touches and cut at its end."""
        from formats.qcow2 import arrays  # numpy takes longer to load than an image to open

        granularity, end = self.entry.granularity, self.length
        for cluster in range(self.clusters):
            data = self._read(cluster)
            if any(data):
                first = cluster * self._bits_per_cluster
                for start, stop in arrays.runs(data, min(self._bits_per_cluster, self.bits - first)):
                    offset = (first + start) * granularity
                    yield offset, min((first + stop) * granularity, end) - offset

    def set(self, offset: int, length: int) -> None:
        """The bytes of a range are dirty."""
        if not length:
            return
        bit, end = offset // self.entry.granularity, (offset + length - 1) // self.entry.granularity + 1
        while bit < end:
            cluster, within = divmod(bit, self._bits_per_cluster)
            stop = min(end - cluster * self._bits_per_cluster, self._bits_per_cluster)
            if cluster not in self._changed:
                self._changed[cluster] = bytearray(self._read(cluster))
            _set_bits(self._changed[cluster], within, stop)
            bit += stop - within

    def clear(self) -> list[int]:
        """No bit is set; returns the offsets of the clusters that the table no longer names, once that is flushed."""
        table, named = self.entry.start.bitmap_table_offset, list[int]()
        for cluster in range(self.clusters):
            word = self._word(cluster)
            if word:
                self._image.pages.put_word(table + cluster * WORD, 0, Stage.POINTER)
            if word & OFFSET:
                named.append(word & OFFSET)
        self._changed.clear()
        return named

    def cut(self) -> None:
        """Clears what the last cluster has behind the last bit."""
        last, within = divmod(self.bits, self._bits_per_cluster)
        if within and any(self._read(last)):
            data = bytearray(self._read(last))
            data[-(-within // 8) :] = bytes(len(data) - -(-within // 8))
            if within % 8:
                data[within // 8] &= (1 << within % 8) - 1
            self._changed[last] = data

    def store(self, writer: "Writer") -> None:
        """Puts the changed clusters of bits into the file; the words that name new ones wait for the next flush."""
        size = self._image.header.cluster_size
        for cluster, data in sorted(self._changed.items()):
            offset = self._word(cluster) & OFFSET
            if not offset:
                ((first, _),) = writer.allocator.take(1)
                offset = first * size
                place = self.entry.start.bitmap_table_offset + cluster * WORD
                writer.pages.put_word(place, offset, Stage.POINTER)
                self._image.regions.add(offset, size, f"the data of bitmap {self.entry.name!r}")
            self._image.file.pwrite(offset, bytes(data))
        self._changed.clear()


def _set_bits(data: bytearray, first: int, end: int) -> None:
    """Bits first .. end - 1; whole bytes at once."""
    start, stop = -(-first // 8), end // 8
    for bit in [*range(first, min(end, start * 8)), *range(max(first, stop * 8), end)]:
        data[bit // 8] |= 1 << bit % 8
    if start < stop:
        data[start:stop] = b"\xff" * (stop - start)
