"""The snapshot table: one entry per internal snapshot, each of its own length; parsed, checked, packed."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

from formats.errors import CorruptImage, UnsupportedFeature
from formats.host_file import HostFile
from formats.qcow2 import structures as disk
from formats.qcow2.header import Header, replace_start

REQUIRED_EXTRA = 16  # bytes, by version 3: the size of the VM state and that of the disk

_NO_ICOUNT = (1 << 64) - 1

_LONGEST = disk.SnapshotStart.SIZE + disk.MAX_SNAPSHOT_EXTRA + 2 * 0xFFFF  # bytes of one entry
_WINDOW = 8 * _LONGEST  # read at once


class Snapshot(NamedTuple):
    """One entry. `id` is unique in the image, `name` need not be."""

    start: disk.SnapshotStart
    extra: bytes
    id: str
    name: str

    @property
    def vm_state_size(self) -> int:
        """Bytes of VM state behind the disk."""
        return int.from_bytes(self.extra[:8], "big") if len(self.extra) >= 8 else self.start.vm_state_size

    @property
    def disk_size(self) -> int | None:
        """Bytes of the disk when it was taken; None where the entry does not tell."""
        return int.from_bytes(self.extra[8:16], "big") if len(self.extra) >= 16 else None

    def completed(self, disk_size: int) -> "Snapshot":
        """The entry with all the extra data that version 3 demands. `disk_size`: for an entry that does not tell."""
        told = disk_size if self.disk_size is None else self.disk_size
        extra = disk.SnapshotExtra(self.vm_state_size, told, 0).pack()[:REQUIRED_EXTRA] + self.extra[REQUIRED_EXTRA:]
        return self._replace(start=dataclasses.replace(self.start, extra_data_size=len(extra)), extra=extra)

    @property
    def size(self) -> int:
        """Bytes of the entry with its padding."""
        start = self.start
        return -(-(start.SIZE + start.extra_data_size + start.id_size + start.name_size) // 8) * 8

    def pack(self) -> bytes:
        """The entry with its padding."""
        data = self.start.pack() + self.extra + self.id.encode(errors="surrogateescape")
        data += self.name.encode(errors="surrogateescape")
        return data.ljust(-(-len(data) // 8) * 8, b"\0")

    def as_json(self) -> dict[str, object]:
        """The object that `qemu-img info --output=json` has for it."""
        clock = self.start.vm_clock_nanoseconds
        told: dict[str, object] = {
            "id": self.id,
            "name": self.name,
            "vm-state-size": self.vm_state_size,
            "date-sec": self.start.date_seconds,
            "date-nsec": self.start.date_nanoseconds,
            "vm-clock-sec": clock // 10**9,
            "vm-clock-nsec": clock % 10**9,
        }
        icount = int.from_bytes(self.extra[16:24], "big") if len(self.extra) >= 24 else _NO_ICOUNT
        return told if icount == _NO_ICOUNT else {**told, "icount": icount}


def make(identity: str, name: str, l1: tuple[int, int], disk_size: int, taken: int) -> Snapshot:
    """A new entry without VM state. `l1`: offset and number of words; `taken`: nanoseconds since the Epoch."""
    extra = disk.SnapshotExtra(0, disk_size, 0).pack()
    start = disk.SnapshotStart(
        l1_table_offset=l1[0],
        l1_size=l1[1],
        id_size=len(identity.encode()),
        name_size=len(name.encode(errors="surrogateescape")),
        date_seconds=taken // 10**9,
        date_nanoseconds=taken % 10**9,
        vm_clock_nanoseconds=0,
        vm_state_size=0,
        extra_data_size=len(extra),
    )
    return Snapshot(start, extra, identity, name)


def read(file: HostFile, header: Header) -> list[Snapshot]:
    """All entries. CorruptImage, UnsupportedFeature (QEMU's limits)."""
    count, offset = header.start.nb_snapshots, header.start.snapshots_offset
    if not count:
        return []
    if offset % header.cluster_size or not offset:
        raise CorruptImage(
            f"{file.name}: snapshots_offset is {offset:#x}; it must be a multiple of {header.cluster_size}"
        )
    end = min(file.length, offset + disk.MAX_SNAPSHOT_TABLE_BYTES)
    found: list[Snapshot] = []
    at = begin = offset
    data = b""
    for number in range(count):
        if begin + len(data) < min(at + _LONGEST, end):
            data, begin = file.pread(at, max(0, min(_WINDOW, end - at))), at
        snapshot = _entry(file, data, at - begin, number)
        found.append(snapshot)
        at += snapshot.size
    return found


def _entry(file: HostFile, data: bytes, at: int, number: int) -> Snapshot:
    if at + disk.SnapshotStart.SIZE > len(data):
        raise CorruptImage(f"{file.name}: snapshot {number} lies behind the end of the file, or of the longest table")
    start = disk.SnapshotStart.unpack(data, at)
    if start.extra_data_size > disk.MAX_SNAPSHOT_EXTRA:
        raise UnsupportedFeature(
            f"{file.name}: snapshot {number} has {start.extra_data_size} bytes of extra data; "
            f"at most {disk.MAX_SNAPSHOT_EXTRA} are read"
        )
    at += disk.SnapshotStart.SIZE
    sizes = (start.extra_data_size, start.id_size, start.name_size)
    if at + sum(sizes) > len(data):
        raise CorruptImage(f"{file.name}: snapshot {number} ends behind the end of the file")
    parts = []
    for size in sizes:
        parts.append(data[at : at + size])
        at += size
    extra, identity, name = parts
    return Snapshot(start, extra, identity.decode(errors="surrogateescape"), name.decode(errors="surrogateescape"))


def length(snapshots: list[Snapshot]) -> int:
    """Bytes of the table with these entries."""
    return sum(snapshot.size for snapshot in snapshots)


def incomplete(snapshots: Sequence[Snapshot], version: int) -> list[int]:
    """Numbers of the entries that lack extra data which the version of their image demands."""
    return [n for n, each in enumerate(snapshots) if version >= 3 and len(each.extra) < REQUIRED_EXTRA]


def move_completed(file: HostFile, header: Header, snapshots: Sequence[Snapshot]) -> None:
    """Has a table of complete entries behind all that the file has, and the header name it. Nobody uses the image, and
    counting the new table and not the old one is left to the caller. UnsupportedFeature, OSError."""
    data = b"".join(snapshot.completed(header.start.size).pack() for snapshot in snapshots)
    if len(data) > disk.MAX_SNAPSHOT_TABLE_BYTES:
        raise UnsupportedFeature(f"{file.name} would need a snapshot table of {len(data)} bytes")
    offset = -(-file.length // header.cluster_size) * header.cluster_size
    file.pwrite(offset, data.ljust(-(-len(data) // header.cluster_size) * header.cluster_size, b"\0"))
    file.fdatasync()
    replace_start(file, header, dataclasses.replace(header.start, snapshots_offset=offset))
