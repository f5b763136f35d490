"""Persistent dirty bitmaps: which granules of the disk have changed since a bitmap began, kept true while we write.

    header extension --> directory --> one entry each: name, flags, table --> clusters of bits (bitmap.py)

While an image is open for writing its enabled bitmaps (flag AUTO) are marked IN_USE: after a crash nobody believes
them. With `track`, whoever writes tells every range (`touched`); the bits are collected in memory, only the clusters of
them that change, and stored on closing, after which the mark goes. Without it the mark stays: the bitmap is lost, and
nobody is misled. Disabled bitmaps are never touched.

A directory of another length is written to a new place and named by the header, all at once (rewrite.py).
"""

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from formats.errors import CorruptImage, InvalidArgument, UnsupportedFeature
from formats.qcow2 import bitmap_directory
from formats.qcow2 import structures as disk
from formats.qcow2.bitmap import Bitmap
from formats.qcow2.bitmap_directory import BitmapEntry
from formats.qcow2.rewrite import rewrite
from formats.qcow2.structures import OFFSET, WORD, Autoclear, BitmapFlags, Extension

if TYPE_CHECKING:
    from formats.qcow2.image import Qcow2
    from formats.qcow2.writer import Writer

_USUAL = (4096, 65536)  # the usual granularity is a cluster, but within these


class Bitmaps:
    """Those of one image. Offsets and lengths are in bytes of the disk. Changing them raises InvalidArgument (no such
    bitmap, a name that is taken), UnsupportedFeature, ReadOnlyImage, OSError."""

    def __init__(self, image: "Qcow2") -> None:
        """Reads the directory; what it leads to becomes known metadata. CorruptImage, UnsupportedFeature."""
        self._image = image
        self._tracked: list[Bitmap] = []
        self._tracking = False
        self._offset = 0
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

    def _entry(self, name: str) -> BitmapEntry:
        for entry in self.entries:
            if entry.name == name:
                return entry
        raise InvalidArgument(f"{self._image.file.name} has no bitmap {name!r}")

    def find(self, name: str) -> Bitmap:
        """The bitmap as it is on disk and in memory. InvalidArgument, UnsupportedFeature (extra data not known)."""
        entry = self._entry(name)
        return next((bitmap for bitmap in self._tracked if bitmap.entry is entry), None) or Bitmap(self._image, entry)

    def usable(self, name: str) -> Bitmap:
        """The same, if what it says is true."""
        bitmap = self.find(name)
        if not self.consistent(bitmap.entry):
            raise UnsupportedFeature(
                f"bitmap {name!r} was in use when its image was last closed; all it can be is removed"
            )
        return bitmap

    # kept true while the image is written to

    def begin(self, *, track: bool) -> None:
        """The image is about to be written to: marks the enabled ones, durably."""
        self._tracking = track
        enabled = [entry for entry in self.entries if entry.flags & BitmapFlags.AUTO]
        for entry in enabled:
            if track and _good(entry):
                self._tracked.append(Bitmap(self._image, entry))
            _flag(entry, BitmapFlags.IN_USE)
        if enabled:
            self._write_directory()

    def _write_directory(self) -> None:
        """In its place: only flags have changed, and a word of an entry never lies in two sectors."""
        self._image.file.pwrite(self._offset, _packed(self.entries))
        self._image.file.fdatasync()

    def touched(self, offset: int, length: int) -> None:
        """These bytes have changed."""
        for bitmap in self._tracked:
            bitmap.set(offset, length)

    @property
    def granularity(self) -> int | None:
        """That of the finest bitmap that is kept; None where none is."""
        return min((bitmap.entry.granularity for bitmap in self._tracked), default=None)

    def give_up(self) -> None:
        """Those that are kept are not true any more: their marks stay."""
        self._tracked.clear()

    def store(self, writer: "Writer") -> None:
        """Writes what was tracked, and then takes the marks away."""
        for bitmap in self._tracked:
            bitmap.store(writer)
        writer.flush()
        for bitmap in self._tracked:
            _flag(bitmap.entry, off=BitmapFlags.IN_USE)
        if self._tracked:
            self._write_directory()

    # the verbs

    def add(self, name: str, *, granularity: int | None = None, enabled: bool = True) -> None:
        """A new bitmap, nothing dirty. `granularity`: bytes of the disk per bit, a power of two from 512 to 2^31."""
        writer, size = self._writer("add a bitmap to it", enabled=enabled), self._image.header.cluster_size
        if granularity is None:
            granularity = min(max(size, _USUAL[0]), _USUAL[1])
        self._check_new(name, granularity)
        bits = -(-self._image.geometry.length // granularity)
        words = -(-bits // (size * 8))
        if words * WORD > disk.MAX_BITMAP_TABLE_BYTES:
            raise UnsupportedFeature(f"a bitmap of {granularity} bytes per bit would be too long: take more bytes")
        flags = BitmapFlags.AUTO | BitmapFlags.IN_USE if enabled else BitmapFlags(0)
        table = self._table(writer, [0] * words)
        start = disk.BitmapStart(
            bitmap_table_offset=table,
            bitmap_table_size=words,
            flags=int(flags),
            type=1,
            granularity_bits=granularity.bit_length() - 1,
            name_size=len(name.encode(errors="surrogateescape")),
            extra_data_size=0,
        )
        entry = BitmapEntry(start, b"", name)
        try:
            self._become([*self.entries, entry])
        except BaseException:
            self._drop(writer, [(table, self._clusters(words))])
            raise
        self._image.regions.add(table, words * WORD, f"the table of bitmap {name!r}")
        if enabled:
            self._tracked.append(Bitmap(self._image, entry))

    def _check_new(self, name: str, granularity: int) -> None:
        if any(entry.name == name for entry in self.entries):
            raise InvalidArgument(f"{self._image.file.name} has a bitmap {name!r} already")
        if not 0 < len(name.encode(errors="surrogateescape")) <= disk.MAX_BITMAP_NAME:
            raise InvalidArgument(f"the name of a bitmap has 1 to {disk.MAX_BITMAP_NAME} bytes")
        least, most = 1 << disk.MIN_GRANULARITY_BITS, 1 << disk.MAX_GRANULARITY_BITS
        if granularity & granularity - 1 or not least <= granularity <= most:
            raise InvalidArgument(f"granularity {granularity}: it must be a power of two from {least} to {most}")
        if len(self.entries) >= disk.MAX_BITMAPS:
            raise UnsupportedFeature(f"{self._image.file.name} has {disk.MAX_BITMAPS} bitmaps; no more are possible")
        if self._image.header.start.version == 2:
            raise UnsupportedFeature(f"{self._image.file.name} is of version 2, which has no bitmaps; upgrade it")

    def remove(self, name: str) -> None:
        """The bitmap is gone, also one that cannot be used."""
        writer, entry = self._writer("remove a bitmap of it"), self._entry(name)
        named = [word & OFFSET for word in self._words(entry) if word & OFFSET]
        self._become([other for other in self.entries if other is not entry])
        self._tracked = [bitmap for bitmap in self._tracked if bitmap.entry is not entry]
        self._drop(writer, [(offset, 1) for offset in named])
        self._drop(writer, [(entry.start.bitmap_table_offset, self._clusters(entry.start.bitmap_table_size))])
        writer.allocator.settle()

    def enable(self, name: str) -> None:
        """From now on what changes becomes dirty."""
        self._writer("enable a bitmap of it", enabled=True)
        entry = self.usable(name).entry
        if not entry.flags & BitmapFlags.AUTO:
            bitmap = Bitmap(self._image, entry)
            _flag(entry, BitmapFlags.AUTO | BitmapFlags.IN_USE)
            self._write_directory()
            self._tracked.append(bitmap)

    def disable(self, name: str) -> None:
        """It stays as it is."""
        writer, entry = self._writer("disable a bitmap of it"), self.usable(name).entry
        for bitmap in [bitmap for bitmap in self._tracked if bitmap.entry is entry]:
            bitmap.store(writer)
            writer.flush()
            self._tracked.remove(bitmap)
        _flag(entry, off=BitmapFlags.AUTO | BitmapFlags.IN_USE)
        self._write_directory()

    def clear(self, name: str) -> None:
        """No granule of it is dirty any more."""
        writer, bitmap = self._writer("clear a bitmap of it"), self.usable(name)
        with self._in_use(bitmap.entry):
            named = bitmap.clear()
            writer.flush()
            self._drop(writer, [(offset, 1) for offset in named])
            writer.allocator.settle()

    def merge(self, name: str, sources: Iterable[Bitmap]) -> None:
        """What is dirty in any of the sources, of this image or another of the same length, is dirty in it too."""
        writer, bitmap, sources = self._writer("merge into a bitmap of it"), self.usable(name), list(sources)
        for source in sources:
            if source.length != self._image.geometry.length:
                raise InvalidArgument(
                    f"bitmap {source.entry.name!r} is of a disk of {source.length} bytes, "
                    f"{name!r} of one of {self._image.geometry.length}"
                )
        with self._in_use(bitmap.entry):
            for source in sources:
                for offset, length in source.dirty():
                    bitmap.set(offset, length)
            if bitmap not in self._tracked:
                bitmap.store(writer)
                writer.flush()

    # the disk gets another length

    @contextlib.contextmanager
    def resizing(self) -> Iterator[None]:
        """Around that: bitmaps keep what they say of bytes that stay; what is new is not dirty."""
        if not self.entries:
            yield
            return
        writer = self._writer("resize it")
        bitmaps = [self.find(entry.name) for entry in self.entries if self.consistent(entry)]
        for bitmap in bitmaps:  # before anything changes: a table of the wrong length is forgiven only to such
            bitmap.store(writer)
            _flag(bitmap.entry, BitmapFlags.IN_USE)
        writer.flush()
        self._write_directory()
        length = self._image.header.start.size
        try:
            yield
        except BaseException:
            if self._image.header.start.size == length:
                self._unmark(bitmaps)
            raise
        gone = [span for bitmap in bitmaps for span in self._resize(writer, bitmap)]
        self._become(self.entries)
        self._drop(writer, gone)
        self._unmark(bitmaps)
        writer.allocator.settle()

    def _unmark(self, bitmaps: list[Bitmap]) -> None:
        """They are true, as they lie on disk; those that are tracked only when they have been stored."""
        for bitmap in bitmaps:
            if bitmap not in self._tracked:
                _flag(bitmap.entry, off=BitmapFlags.IN_USE)
        self._write_directory()

    def _resize(self, writer: "Writer", bitmap: Bitmap) -> list[tuple[int, int]]:
        """Lays out a table for the new length; returns what is not needed any more, as (offset, clusters)."""
        start, old = bitmap.entry.start, self._words(bitmap.entry)
        bitmap.measure()
        words = (old + [0] * bitmap.clusters)[: bitmap.clusters]
        table = self._table(writer, words)
        self._image.regions.add(table, len(words) * WORD, f"the table of bitmap {bitmap.entry.name!r}")
        bitmap.entry.start = dataclasses.replace(start, bitmap_table_offset=table, bitmap_table_size=len(words))
        bitmap.cut()
        bitmap.store(writer)
        dropped = [(word & OFFSET, 1) for word in old[len(words) :] if word & OFFSET]
        return [*dropped, (start.bitmap_table_offset, self._clusters(start.bitmap_table_size))]

    # their parts

    def _writer(self, doing: str, *, enabled: bool = False) -> "Writer":
        if enabled and not self._tracking:
            raise UnsupportedFeature(
                f"{self._image.file.name} is open with nobody to tell what changes: cannot {doing}"
            )
        return self._image.require_writer(doing)

    def consistent(self, entry: BitmapEntry) -> bool:
        """Whether what it says is true: it was stored, or is being kept."""
        return not entry.flags & BitmapFlags.IN_USE or any(bitmap.entry is entry for bitmap in self._tracked)

    @contextlib.contextmanager
    def _in_use(self, entry: BitmapEntry) -> Iterator[None]:
        """Nobody believes it if a crash comes between."""
        if entry.flags & BitmapFlags.IN_USE:
            yield
            return
        _flag(entry, BitmapFlags.IN_USE)
        self._write_directory()
        yield
        _flag(entry, off=BitmapFlags.IN_USE)
        self._write_directory()

    def _table(self, writer: "Writer", words: list[int]) -> int:
        """Lays out a bitmap table; its offset."""
        size = self._image.header.cluster_size
        offset = writer.allocator.take_row(self._clusters(len(words))) * size if words else 0
        if words:
            writer.pages.begin(offset, b"".join(word.to_bytes(WORD, "big") for word in words).ljust(size, b"\0"))
        return offset

    def _words(self, entry: BitmapEntry) -> list[int]:
        return list(self._image.pages.words(entry.start.bitmap_table_offset, entry.start.bitmap_table_size))

    def _clusters(self, words: int) -> int:
        return -(-words * WORD // self._image.header.cluster_size)

    def _drop(self, writer: "Writer", spans: Iterable[tuple[int, int]]) -> None:
        """What nothing on disk names any more, as (offset, clusters)."""
        size = self._image.header.cluster_size
        for offset, clusters in spans:
            self._image.regions.remove(offset)
            writer.pages.forget(offset, clusters * size)
            writer.allocator.drop(offset // size, clusters)

    def _become(self, entries: list[BitmapEntry]) -> None:
        """A directory of these entries, in a new place, named by the header."""
        image, size, data = self._image, self._image.header.cluster_size, _packed(entries)
        writer = image.require_writer("change its bitmaps")
        if len(data) > disk.MAX_BITMAP_DIRECTORY_BYTES:
            raise UnsupportedFeature(f"{image.file.name} would need a bitmap directory of {len(data)} bytes")
        old, old_length = self._offset, len(_packed(self.entries))
        offset = writer.allocator.take_row(-(-len(data) // size)) * size if entries else 0
        if entries:
            writer.pages.begin(offset, data)
        writer.flush()
        self._name(disk.BitmapsPointer(len(entries), 0, len(data), offset) if entries else None)
        self.entries, self._offset = entries, offset
        self._drop(writer, [(old, -(-old_length // size))] if old else [])
        image.regions.add(offset, len(data), "the bitmap directory")
        writer.allocator.settle()

    def _name(self, where: disk.BitmapsPointer | None) -> None:
        """The extension in the header. It stays as it was, in memory, where that fails."""
        header = self._image.header
        start, extensions, autoclear = header.start, header.extensions, header.features.autoclear_features
        header.set_extension(Extension.BITMAPS, None if where is None else where.pack())
        header.features.autoclear_features = autoclear & ~int(Autoclear.BITMAPS) | int(where is not None)
        try:
            rewrite(self._image.file, header)
        except BaseException:
            header.start, header.extensions, header.features.autoclear_features = start, extensions, autoclear
            raise


def _good(entry: BitmapEntry) -> bool:
    known = not entry.extra or bool(entry.flags & BitmapFlags.EXTRA_DATA_COMPATIBLE)
    return known and not entry.flags & BitmapFlags.IN_USE


def _flag(entry: BitmapEntry, on: int = 0, *, off: int = 0) -> None:
    entry.start = dataclasses.replace(entry.start, flags=(entry.start.flags | on) & ~off)


def _packed(entries: Iterable[BitmapEntry]) -> bytes:
    return b"".join(entry.pack() for entry in entries)
