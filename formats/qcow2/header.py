"""The header of a qcow2 file with its extensions and the backing file's name: parsed, checked, written back.

Checked here is what can be seen in the header alone and against the file's length. What is not understood but may be
kept (additional fields, extensions, compatible and autoclear bits) is kept as it was.
"""

import dataclasses
import errno
import os
from dataclasses import dataclass, field
from typing import Self

from formats.errors import CorruptImage, InvalidImage, UnsupportedFeature
from formats.host_file import HostFile
from formats.image import MAX_LENGTH, SECTOR
from formats.qcow2 import structures as disk
from formats.qcow2.structures import Autoclear, Compatible, CompressionType, Extension, Incompatible

_LONGEST = 2 << 20  # cluster 0 may be so long
_KNOWN = 31  # a plain number: ~ of an IntFlag forgets the bits that have no name
_V2_LENGTH, _V3_LENGTH = 72, 104
_EXTENSION = disk.ExtensionStart.SIZE


@dataclass
class Header:
    """The header's meaning; offsets and lengths are in bytes, names are text."""

    start: disk.HeaderStart
    features: disk.HeaderFeatures
    additional: bytes = b""  # version 3, from byte 104 on: compression type and what came later
    extensions: list[tuple[int, bytes]] = field(default_factory=list)
    backing: str | None = None
    lost: bool = False  # a write of it has failed, and so has undoing that: what the file says is not known

    @classmethod
    def read(cls, file: HostFile) -> Self:
        """Parses and checks. InvalidImage, CorruptImage, UnsupportedFeature."""
        data = file.pread(0, 4096)
        if data[:4] != disk.MAGIC:
            raise InvalidImage(f"{file.name} is not a qcow2 image: it begins with {data[:4]!r}, not {disk.MAGIC!r}")
        if len(data) < _V2_LENGTH:
            raise InvalidImage(f"{file.name} has {len(data)} bytes; a qcow2 header has at least {_V2_LENGTH}")
        start = disk.HeaderStart.unpack(data)
        if start.version not in (2, 3):
            raise UnsupportedFeature(f"{file.name} is qcow2 version {start.version}; versions 2 and 3 are known")
        bits = start.cluster_bits
        if not disk.MIN_CLUSTER_BITS <= bits <= disk.MAX_CLUSTER_BITS:
            raise _corrupt(file, "cluster_bits", bits, f"{disk.MIN_CLUSTER_BITS} to {disk.MAX_CLUSTER_BITS}")
        data = file.pread(0, 1 << bits) if len(data) < 1 << bits else data[: 1 << bits]
        header = cls(start, _features(file, data, start))
        header._read_rest(file, data)
        header._check(file)
        return header

    def _read_rest(self, file: HostFile, data: bytes) -> None:
        length = self.features.header_length
        self.additional = data[_V3_LENGTH:length]
        start = self.start
        end = len(data)
        if start.backing_file_offset:
            size = start.backing_file_size
            if size > disk.MAX_BACKING_NAME:
                raise _corrupt(file, "backing_file_size", size, f"at most {disk.MAX_BACKING_NAME}")
            if not length <= start.backing_file_offset <= len(data) - size:
                raise _corrupt(file, "backing_file_offset", start.backing_file_offset, "behind the header in cluster 0")
            end = start.backing_file_offset
            self.backing = os.fsdecode(data[end : end + size]) if size else None
        self.extensions = _extensions(file, data[:end], length)

    def _check(self, file: HostFile) -> None:
        features, start = self.features, self.start
        unknown = features.incompatible_features & ~_KNOWN
        if unknown:
            raise UnsupportedFeature(f"{file.name} needs {self._names_of(unknown)}, which is not known here")
        if features.refcount_order > disk.MAX_REFCOUNT_ORDER:
            raise _corrupt(file, "refcount_order", features.refcount_order, f"at most {disk.MAX_REFCOUNT_ORDER}")
        if self.extended_l2 and start.cluster_bits < disk.MIN_EXTENDED_CLUSTER_BITS:
            raise _corrupt(file, "cluster_bits", start.cluster_bits, "at least 14 with extended L2 entries")
        if start.size > MAX_LENGTH:
            raise UnsupportedFeature(f"{file.name} is a disk of {start.size} bytes; at most {MAX_LENGTH} are served")
        self._check_encryption(file)
        self._check_compression(file)
        if self.raw_data and not self.has_data_file:
            raise _corrupt(file, "autoclear_features", features.autoclear_features, "without raw data: no data file")
        if self.raw_data and self.backing is not None:
            raise CorruptImage(f"{file.name} has both a raw external data file and a backing file")
        self._check_tables(file)

    def _check_encryption(self, file: HostFile) -> None:
        method = self.start.crypt_method
        if method not in (disk.PLAIN, disk.LUKS):
            name = "AES, as QEMU once did" if method == 1 else f"method {method}"
            raise UnsupportedFeature(f"{file.name} is encrypted ({name}), which is not read; convert it with qemu-img")
        if self.encrypted:
            if self.has_data_file:
                raise UnsupportedFeature(f"{file.name} is encrypted in an external data file, which is not served")
            where = self.encryption
            if where.length > disk.MAX_LUKS_HEADER_BYTES:
                raise UnsupportedFeature(
                    f"{file.name} has a LUKS header of {where.length} bytes; that is more than is read"
                )
            check_span(file, "the LUKS header's offset", where.offset, where.length, self.cluster_size)

    def _check_compression(self, file: HostFile) -> None:
        kind, told = self.compression, bool(self.incompatible & Incompatible.COMPRESSION_TYPE)
        if kind not in tuple(CompressionType):
            raise UnsupportedFeature(f"{file.name} is compressed by method {kind}; 0 (zlib) and 1 (zstd) are known")
        if told != bool(kind):
            raise _corrupt(file, "compression_type", kind, "0 exactly when the incompatible feature bit 3 is clear")

    def _check_tables(self, file: HostFile) -> None:
        start = self.start
        entries = -(-start.size // (self.cluster_size * self.l2_entries))
        if start.l1_size < entries:
            raise _corrupt(file, "l1_size", start.l1_size, f"at least {entries} for {start.size} bytes")
        spans = (
            ("l1_table_offset", start.l1_table_offset, start.l1_size * disk.WORD, disk.MAX_L1_BYTES),
            (
                "refcount_table_offset",
                start.refcount_table_offset,
                start.refcount_table_clusters * self.cluster_size,
                disk.MAX_REFCOUNT_TABLE_BYTES,
            ),
        )
        for name, offset, length, most in spans:
            if length > most:
                raise UnsupportedFeature(f"{file.name}: {name}: a table of {length} bytes; at most {most} are read")
            check_span(file, name, offset, length, self.cluster_size)
        if not start.refcount_table_clusters:
            raise _corrupt(file, "refcount_table_clusters", 0, "at least 1")
        if start.nb_snapshots > disk.MAX_SNAPSHOTS:
            raise UnsupportedFeature(f"{file.name} has {start.nb_snapshots} snapshots; {disk.MAX_SNAPSHOTS} are served")

    def _names_of(self, bits: int) -> str:
        names = self.extension(Extension.FEATURE_NAMES) or b""
        table = {}
        for at in range(0, len(names) - disk.FeatureName.SIZE + 1, disk.FeatureName.SIZE):
            row = disk.FeatureName.unpack(names, at)
            if row.type == 0:
                table[row.bit] = row.name.rstrip(b"\0").decode(errors="replace")
        wanted = [bit for bit in range(64) if bits >> bit & 1]
        return ", ".join(f"{table.get(bit, 'a feature')!r} (incompatible bit {bit})" for bit in wanted)

    # what the fields mean

    @property
    def cluster_size(self) -> int:
        return 1 << self.start.cluster_bits

    @property
    def incompatible(self) -> Incompatible:
        return Incompatible(self.features.incompatible_features)

    @property
    def encrypted(self) -> bool:
        return self.start.crypt_method == disk.LUKS

    @property
    def encryption(self) -> disk.EncryptionPointer:
        """Where the LUKS header of an encrypted image is. CorruptImage where it is not told."""
        data = self.extension(Extension.ENCRYPTION)
        if data is None or len(data) < disk.EncryptionPointer.SIZE:
            raise CorruptImage("an image encrypted by LUKS has no header extension that says where the LUKS header is")
        return disk.EncryptionPointer.unpack(data)

    @property
    def extended_l2(self) -> bool:
        return bool(self.features.incompatible_features & int(Incompatible.EXTENDED_L2))  # asked often, so no new flags

    @property
    def has_data_file(self) -> bool:
        return bool(self.features.incompatible_features & int(Incompatible.DATA_FILE))

    @property
    def raw_data(self) -> bool:
        return bool(self.features.autoclear_features & Autoclear.RAW_DATA)

    @property
    def lazy_refcounts(self) -> bool:
        return bool(self.features.compatible_features & Compatible.LAZY_REFCOUNTS)

    @property
    def compression(self) -> int:
        return self.additional[0] if self.additional else 0

    @property
    def refcount_bits(self) -> int:
        return 1 << self.features.refcount_order

    @property
    def l2_entry_size(self) -> int:
        return 16 if self.extended_l2 else 8

    @property
    def l2_entries(self) -> int:
        """Guest clusters per L2 table."""
        return self.cluster_size // self.l2_entry_size

    def extension(self, kind: int) -> bytes | None:
        """The data of the extension of this type."""
        return next((data for key, data in self.extensions if key == kind), None)

    def set_extension(self, kind: int, data: bytes | None) -> None:
        """Replaces, adds or (None) removes it."""
        kept = [row for row in self.extensions if row[0] != kind]
        self.extensions = kept if data is None else [*kept, (kind, data)]

    def require_known(self, file: HostFile) -> None:
        """OSError where it is `lost`."""
        if self.lost:
            raise OSError(
                errno.EIO, f"the header of {file.name} could not be written; nothing is, until it is opened anew"
            )

    # bytes

    def pack_fixed(self) -> bytes:
        """The fields before the extensions; those behind the first sector are kept, and never change."""
        if self.start.version == 2:
            return self.start.pack()
        return self.start.pack() + self.features.pack() + self.additional

    def pack(self) -> bytes:
        """Cluster 0 as far as it is used. UnsupportedFeature where a cluster is too short for it."""
        name = os.fsencode(self.backing or "")
        tail = b"".join(pack_extension(kind, data) for kind, data in [*self.extensions, (Extension.END, b"")])
        if self.start.version == 3:
            self.features.header_length = _V3_LENGTH + len(self.additional)
        offset = len(self.pack_fixed()) + len(tail)
        if offset + len(name) > self.cluster_size:
            raise UnsupportedFeature(
                f"header, extensions and backing file name take {offset + len(name)} bytes, "
                f"but must fit into one cluster of {self.cluster_size}"
            )
        self.start = dataclasses.replace(
            self.start, backing_file_offset=offset if name else 0, backing_file_size=len(name)
        )
        return self.pack_fixed() + tail + name


def _features(file: HostFile, data: bytes, start: disk.HeaderStart) -> disk.HeaderFeatures:
    if start.version == 2:
        return disk.HeaderFeatures(0, 0, 0, 4, _V2_LENGTH)
    if len(data) < _V3_LENGTH:
        raise InvalidImage(f"{file.name} has {len(data)} bytes; a header of version 3 has at least {_V3_LENGTH}")
    features = disk.HeaderFeatures.unpack(data, _V2_LENGTH)
    length = features.header_length
    if length < _V3_LENGTH or length % 8 or length > len(data):
        raise _corrupt(file, "header_length", length, f"a multiple of 8 from {_V3_LENGTH} to the end of cluster 0")
    return features


def _extensions(file: HostFile, data: bytes, at: int) -> list[tuple[int, bytes]]:
    found: list[tuple[int, bytes]] = []
    while at + _EXTENSION <= len(data):
        start = disk.ExtensionStart.unpack(data, at)
        if start.type == Extension.END:
            break
        at += _EXTENSION
        if start.length > len(data) - at:
            raise CorruptImage(
                f"{file.name}: header extension {start.type:#x} has {start.length} bytes; {len(data) - at} are left"
            )
        if start.type != Extension.SKIPPED:
            found.append((start.type, data[at : at + start.length]))
        at += -(-start.length // 8) * 8
    return found


def pack_extension(kind: int, data: bytes) -> bytes:
    """One extension with its padding."""
    return disk.ExtensionStart(kind, len(data)).pack() + data.ljust(-(-len(data) // 8) * 8, b"\0")


def _corrupt(file: HostFile, name: str, value: int, right: str) -> CorruptImage:
    return CorruptImage(f"{file.name}: {name} is {value}; it must be {right}")


def check_span(file: HostFile, name: str, offset: int, length: int, cluster_size: int) -> None:
    """CorruptImage unless a table begins at a cluster boundary behind the header and lies inside the file."""
    if offset % cluster_size or (length and offset == 0):
        raise CorruptImage(f"{file.name}: {name} is {offset:#x}; it must be a multiple of {cluster_size}, not 0")
    if offset + length > file.length:
        raise CorruptImage(
            f"{file.name}: {name} is {offset:#x} with {length} bytes, but the file ends at {file.length:#x}"
        )


def write_fixed(file: HostFile, header: Header) -> None:
    """Writes the header's fields, as far as any is ever changed, in one sector, and makes them durable."""
    if file.read_only:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))
    header.require_known(file)
    file.pwrite(0, header.pack_fixed()[:SECTOR])
    file.fdatasync()


def replace_start(file: HostFile, header: Header, start: disk.HeaderStart) -> None:
    """Puts these fields into the header, durably; where that fails (OSError), it is as it was, or `lost`."""
    old, header.start = header.start, start
    try:
        write_fixed(file, header)
    except OSError:
        header.start = old
        restore(file, header, header.pack_fixed()[:SECTOR])
        raise


def restore(file: HostFile, header: Header, old: bytes) -> None:
    """After the first sector could not be written: has these first bytes in the file again, or else it is `lost`."""
    try:
        if file.pread(0, len(old)) != old:  # else it was refused before anything had happened
            file.pwrite(0, old)
            file.fdatasync()
    except OSError:
        header.lost = True
