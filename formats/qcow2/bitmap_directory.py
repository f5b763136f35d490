"""The bitmap directory: one entry per persistent bitmap, named by a header extension; parsed, checked, packed."""

from dataclasses import dataclass

from formats.errors import CorruptImage, UnsupportedFeature
from formats.host_file import HostFile
from formats.qcow2 import structures as disk
from formats.qcow2.header import Header, check_span
from formats.qcow2.structures import BitmapFlags, Extension


@dataclass
class BitmapEntry:
    """One entry; offsets are in bytes."""

    start: disk.BitmapStart
    extra: bytes
    name: str

    @property
    def flags(self) -> BitmapFlags:
        return BitmapFlags(self.start.flags)

    @property
    def granularity(self) -> int:
        """Bytes of the disk per bit."""
        return 1 << self.start.granularity_bits

    def pack(self) -> bytes:
        """The entry with its padding."""
        data = self.start.pack() + self.extra + self.name.encode(errors="surrogateescape")
        return data.ljust(-(-len(data) // 8) * 8, b"\0")


def pointer(header: Header) -> disk.BitmapsPointer | None:
    """The extension's data, None where there is no extension."""
    data = header.extension(Extension.BITMAPS)
    if data is None:
        return None
    if len(data) < disk.BitmapsPointer.SIZE:
        raise CorruptImage(f"the bitmaps extension has {len(data)} bytes; it must have {disk.BitmapsPointer.SIZE}")
    return disk.BitmapsPointer.unpack(data)


def read(file: HostFile, header: Header) -> list[BitmapEntry]:
    """All entries, consistent or not. CorruptImage, UnsupportedFeature (QEMU's limits)."""
    where = pointer(header)
    if where is None:
        return []
    size, offset = where.bitmap_directory_size, where.bitmap_directory_offset
    if where.nb_bitmaps > disk.MAX_BITMAPS or size > disk.MAX_BITMAP_DIRECTORY_BYTES:
        raise UnsupportedFeature(
            f"{file.name} has {where.nb_bitmaps} bitmaps in {size} bytes; that is more than is read"
        )
    check_span(file, "bitmap_directory_offset", offset, size, header.cluster_size)
    data = file.pread(offset, size)
    found: list[BitmapEntry] = []
    at = 0
    while at < size:
        entry = _entry(file, header, data, at)
        found.append(entry)
        at += len(entry.pack())
    if len(found) != where.nb_bitmaps or at != size:
        raise CorruptImage(f"{file.name}: the bitmap directory has {len(found)} entries; {where.nb_bitmaps} are told")
    return found


def _entry(file: HostFile, header: Header, data: bytes, at: int) -> BitmapEntry:
    what = f"{file.name}: the bitmap directory entry at byte {at}"
    if at + disk.BitmapStart.SIZE > len(data):
        raise CorruptImage(f"{what} ends behind the directory")
    start = disk.BitmapStart.unpack(data, at)
    at += disk.BitmapStart.SIZE
    end = at + start.extra_data_size + start.name_size
    if end > len(data):
        raise CorruptImage(f"{what} ends behind the directory")
    if start.type != 1 or not 0 < start.name_size <= disk.MAX_BITMAP_NAME:
        raise CorruptImage(f"{what} has type {start.type} and a name of {start.name_size} bytes")
    if not disk.MIN_GRANULARITY_BITS <= start.granularity_bits <= disk.MAX_GRANULARITY_BITS:
        raise UnsupportedFeature(f"{what} has granularity_bits {start.granularity_bits}; 9 to 31 are read")
    if start.bitmap_table_size * disk.WORD > disk.MAX_BITMAP_TABLE_BYTES:
        raise UnsupportedFeature(f"{what} has a table of {start.bitmap_table_size} words")
    check_span(
        file, f"{what}: its table", start.bitmap_table_offset, start.bitmap_table_size * disk.WORD, header.cluster_size
    )
    extra = data[at : at + start.extra_data_size]
    name = data[at + start.extra_data_size : end]
    return BitmapEntry(start, extra, name.decode(errors="surrogateescape"))


def describe(entry: BitmapEntry) -> dict[str, object]:
    """The object that `qemu-img info --output=json` has for it."""
    names = {BitmapFlags.IN_USE: "in-use", BitmapFlags.AUTO: "auto"}
    return {
        "name": entry.name,
        "granularity": entry.granularity,
        "flags": [name for flag, name in names.items() if flag & entry.flags],
    }
