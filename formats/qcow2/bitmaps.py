"""Persistent dirty bitmaps: which granules of the disk have changed since a bitmap began, kept true while we write.

    directory entry --> bitmap table --> clusters of bits      word 0: all zeros, word 1: all ones, else an offset

While an image is open for writing its enabled bitmaps (flag AUTO) are marked IN_USE: after a crash nobody believes
them. With `track`, whoever writes tells every range (`touched`); the bits are collected in memory, only the clusters of
them that change, and stored on closing, after which the mark goes. Without it the mark stays: the bitmap is lost, and
nobody is misled. Disabled bitmaps are never touched.
"""

import dataclasses
from typing import TYPE_CHECKING

from formats.errors import CorruptImage, InvalidArgument, UnsupportedFeature
from formats.qcow2 import bitmap_directory
from formats.qcow2.bitmap_directory import BitmapEntry
from formats.qcow2.pages import Stage
from formats.qcow2.structures import OFFSET, WORD, Autoclear, BitmapFlags

if TYPE_CHECKING:
    from formats.qcow2.image import Qcow2
    from formats.qcow2.writer import Writer


class Bitmaps:
    """Those of one image. Offsets and lengths are in bytes of the disk."""

    def __init__(self, image: "Qcow2") -> None:
        """Reads the directory; what it leads to becomes known metadata. CorruptImage, UnsupportedFeature."""
        self._image = image
        self._tracked: list[Bitmap] = []
        self.entries: list[BitmapEntry] = []
        if not image.header.features.autoclear_features & Autoclear.BITMAPS:
            return  # inconsistent as a whole: some program wrote without knowing of them
        where = bitmap_directory.pointer(image.header)
        if where is None:
            raise CorruptImage(f"{image.file.name}: autoclear feature bit 0 is set, but there is no bitmaps extension")
        self._offset = where.bitmap_directory_offset
        self.entries = bitmap_directory.read(image.file, image.header)
        image.regions.add(self._offset, where.bitmap_directory_size, "the bitmap directory")
        for entry in self.entries:
            self._map(entry)

    def _map(self, entry: BitmapEntry) -> None:
        regions, size = self._image.regions, self._image.header.cluster_size
        offset, words = entry.start.bitmap_table_offset, entry.start.bitmap_table_size
        regions.add(offset, words * WORD, f"the table of bitmap {entry.name!r}")
        for word in self._image.pages.words(offset, words):
            if word & OFFSET:
                if (word & OFFSET) % size or (word & OFFSET) >= self._image.file.length:
                    raise CorruptImage(f"{self._image.file.name}: the table of bitmap {entry.name!r} has {word:#x}")
                regions.add(word & OFFSET, size, f"the data of bitmap {entry.name!r}")

    def __len__(self) -> int:
        return len(self.entries)

    def find(self, name: str) -> "Bitmap":
        """The bitmap as it is on disk and in memory. InvalidArgument, UnsupportedFeature (extra data not known)."""
        for bitmap in self._tracked:
            if bitmap.entry.name == name:
                return bitmap
        for entry in self.entries:
            if entry.name == name:
                return Bitmap(self._image, entry)
        raise InvalidArgument(f"{self._image.file.name} has no bitmap {name!r}")

    def begin(self, *, track: bool) -> None:
        """The image is about to be written to: marks the enabled ones, durably."""
        enabled = [entry for entry in self.entries if entry.flags & BitmapFlags.AUTO]
        for entry in enabled:
            good = not entry.flags & BitmapFlags.IN_USE and (
                not entry.extra or entry.flags & BitmapFlags.EXTRA_DATA_COMPATIBLE
            )
            if track and good:
                self._tracked.append(Bitmap(self._image, entry))
            entry.start = dataclasses.replace(entry.start, flags=entry.start.flags | BitmapFlags.IN_USE)
        if enabled:
            self._write_directory()

    def _write_directory(self) -> None:
        self._image.file.pwrite(self._offset, b"".join(entry.pack() for entry in self.entries))
        self._image.file.fdatasync()

    def touched(self, offset: int, length: int) -> None:
        """These bytes have changed."""
        for bitmap in self._tracked:
            bitmap.set(offset, length)

    def store(self, writer: "Writer") -> None:
        """Writes what was tracked, and then takes the marks away."""
        for bitmap in self._tracked:
            bitmap.store(writer)
        writer.flush()
        for bitmap in self._tracked:
            start = bitmap.entry.start
            bitmap.entry.start = dataclasses.replace(start, flags=start.flags & ~int(BitmapFlags.IN_USE))
        if self._tracked:
            self._write_directory()


class Bitmap:
    """One bitmap: bit n stands for bytes n * granularity to (n + 1) * granularity - 1 of the disk."""

    def __init__(self, image: "Qcow2", entry: BitmapEntry) -> None:
        self.entry = entry
        self._image = image
        if entry.extra and not entry.flags & BitmapFlags.EXTRA_DATA_COMPATIBLE:
            raise UnsupportedFeature(f"bitmap {entry.name!r} has extra data of an unknown kind, so it may not be used")
        size = image.header.cluster_size
        self._bits_per_cluster = size * 8
        self.bits = -(-image.geometry.length // entry.granularity)
        clusters = -(-self.bits // self._bits_per_cluster)
        if entry.start.bitmap_table_size != clusters:
            raise CorruptImage(
                f"bitmap {entry.name!r} has a table of {entry.start.bitmap_table_size} words; the disk needs {clusters}"
            )
        self._changed: dict[int, bytearray] = {}

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
        clusters = -(-self.bits // self._bits_per_cluster)
        return b"".join(self._read(cluster) for cluster in range(clusters))[: -(-self.bits // 8)]

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
