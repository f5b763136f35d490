"""Layout: where in a whole qcow2 image each number stands, by the structure that it belongs to.

header, extensions --> L1, snapshots' L1 --> L2 --> compressed data      a Place: offset, width in bytes, kind
                   --> refcount table --> refcount blocks                kinds are what a mutation chooses first,
                   --> bitmap directory --> bitmap tables                so that a rare structure is damaged as
                   --> snapshot table                                    often as one of ten thousand words
"""

import dataclasses
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from formats.layout import Structure
from formats.qcow2 import structures as disk

_WORDS = 600  # places of one table that are told


@dataclass(frozen=True)
class Place:
    """A number: `size` bytes at `offset`."""

    kind: str
    offset: int
    size: int


class Layout:
    """Of an image that is whole; `places` by kind, `clusters`: offsets at which its structures begin."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.places: dict[str, list[Place]] = {}
        self.clusters: set[int] = {0}
        self.start = disk.HeaderStart.unpack(data)
        self.cluster_size = 1 << self.start.cluster_bits
        version3 = self.start.version == 3
        self.features = disk.HeaderFeatures.unpack(data, disk.HeaderStart.SIZE) if version3 else None
        self._header()
        self._l1(self.start.l1_table_offset, self.start.l1_size, "L1 table")
        self._refcounts()
        self._snapshots()

    def kinds_at(self, offset: int) -> set[str]:
        """Of the places that hold this byte."""
        held = (place for row in self.places.values() for place in row)
        return {place.kind for place in held if place.offset <= offset < place.offset + place.size}

    def _add(self, kind: str, offset: int, size: int) -> None:
        if offset + size <= len(self._data):
            self.places.setdefault(kind, []).append(Place(kind, offset, size))

    def _structure(self, kind: str, declared: type[Structure], offset: int) -> None:
        for field in dataclasses.fields(declared):  # type: ignore[arg-type]
            size = struct.calcsize(">" + field.metadata["struct code"])
            self._add(kind, offset, size)
            offset += size

    def _word(self, offset: int) -> int:
        return int.from_bytes(self._data[offset : offset + disk.WORD], "big")

    def _table(self, kind: str, offset: int, count: int) -> Iterator[int]:
        """Its words; those that are not 0, and some that are, become places."""
        self.clusters.add(offset)
        for number in range(min(count, (len(self._data) - offset) // disk.WORD)):
            word = self._word(offset + number * disk.WORD)
            if word or (number % 50 == 0 and len(self.places.get(kind, ())) < _WORDS):
                self._add(kind, offset + number * disk.WORD, disk.WORD)
            yield word

    def _header(self) -> None:
        self._structure("header", disk.HeaderStart, 0)
        at = disk.HeaderStart.SIZE
        if self.features is not None:
            self._structure("header", disk.HeaderFeatures, at)
            self._add("header", 104, 1)
            at = self.features.header_length
        while True:
            extension = disk.ExtensionStart.unpack(self._data, at)
            self._structure("extension", disk.ExtensionStart, at)
            at += disk.ExtensionStart.SIZE
            if not extension.type:
                break
            if extension.type == disk.Extension.BITMAPS:
                self._bitmaps(at)
            elif extension.length:
                self._add("extension data", at, extension.length)
            at += -(-extension.length // 8) * 8
        if self.start.backing_file_size:
            self._add("backing name", self.start.backing_file_offset, self.start.backing_file_size)

    def _l1(self, offset: int, size: int, kind: str) -> None:
        extended = self.features is not None and self.features.incompatible_features & disk.Incompatible.EXTENDED_L2
        for word in self._table(kind, offset, size):
            if word & disk.OFFSET:
                table = word & disk.OFFSET
                for number, descriptor in enumerate(self._table("L2 table", table, self.cluster_size // disk.WORD)):
                    if descriptor & disk.COMPRESSED and not (extended and number % 2):
                        self._compressed(descriptor)
                    elif descriptor & disk.OFFSET and not (extended and number % 2):
                        self.clusters.add(descriptor & disk.OFFSET)

    def _compressed(self, descriptor: int) -> None:
        shift = 62 - (self.start.cluster_bits - 8)
        self._add("compressed data", descriptor & (1 << shift) - 1, 8)

    def _refcounts(self) -> None:
        count = self.start.refcount_table_clusters * self.cluster_size // disk.WORD
        for word in self._table("refcount table", self.start.refcount_table_offset, count):
            if word:
                list(self._table("refcount block", word, min(self.cluster_size // disk.WORD, 64)))

    def _snapshots(self) -> None:
        at = self.start.snapshots_offset
        for _ in range(self.start.nb_snapshots):
            entry = disk.SnapshotStart.unpack(self._data, at)
            self.clusters.add(at)
            self._structure("snapshot table", disk.SnapshotStart, at)
            at += disk.SnapshotStart.SIZE
            if entry.extra_data_size >= disk.SnapshotExtra.SIZE:
                self._structure("snapshot table", disk.SnapshotExtra, at)
            self._add("snapshot name", at + entry.extra_data_size, entry.id_size + entry.name_size)
            at += -(-(entry.extra_data_size + entry.id_size + entry.name_size + disk.SnapshotStart.SIZE) // 8) * 8
            at -= disk.SnapshotStart.SIZE
            self._l1(entry.l1_table_offset, entry.l1_size, "snapshot L1 table")

    def _bitmaps(self, at: int) -> None:
        self._structure("bitmaps pointer", disk.BitmapsPointer, at)
        pointer = disk.BitmapsPointer.unpack(self._data, at)
        at = pointer.bitmap_directory_offset
        for _ in range(pointer.nb_bitmaps):
            entry = disk.BitmapStart.unpack(self._data, at)
            self._structure("bitmap directory", disk.BitmapStart, at)
            self.clusters |= set(self._table("bitmap table", entry.bitmap_table_offset, entry.bitmap_table_size))
            at += -(-(disk.BitmapStart.SIZE + entry.extra_data_size + entry.name_size) // 8) * 8
