"""What lies on disk in a qcow2 file: its structures and bits, as QEMU's docs/interop/qcow2.txt prints them.

    cluster 0            header | header extensions | backing file name
    refcount table  -->  refcount blocks  -->  one count of 1 to 64 bits per host cluster
    L1 table        -->  L2 tables        -->  one descriptor of 8 (extended: 16) bytes per guest cluster
    snapshot table  -->  an L1 table each
    bitmap directory ->  bitmap tables    -->  one bit per granule of the disk

All numbers are big-endian. Limits are QEMU's, so that no image is made that it refuses.
"""

from enum import IntEnum, IntFlag

from formats.layout import Structure, big_endian, octets, u8, u16, u32, u64

MAGIC = b"QFI\xfb"


@big_endian
class HeaderStart(Structure):
    """Header, bytes 0 to 71: all of version 2."""

    magic: bytes = octets(4)
    version: int = u32()
    backing_file_offset: int = u64()
    backing_file_size: int = u32()
    cluster_bits: int = u32()
    size: int = u64()
    crypt_method: int = u32()
    l1_size: int = u32()
    l1_table_offset: int = u64()
    refcount_table_offset: int = u64()
    refcount_table_clusters: int = u32()
    nb_snapshots: int = u32()
    snapshots_offset: int = u64()


@big_endian
class HeaderFeatures(Structure):
    """Header, bytes 72 to 103: version 3."""

    incompatible_features: int = u64()
    compatible_features: int = u64()
    autoclear_features: int = u64()
    refcount_order: int = u32()
    header_length: int = u32()


@big_endian
class ExtensionStart(Structure):
    """Before the data of a header extension, which is padded to a multiple of 8."""

    type: int = u32()
    length: int = u32()


@big_endian
class FeatureName(Structure):
    """One row of the feature name table."""

    type: int = u8()
    bit: int = u8()
    name: bytes = octets(46)


@big_endian
class BitmapsPointer(Structure):
    """Data of the bitmaps extension."""

    nb_bitmaps: int = u32()
    reserved: int = u32()
    bitmap_directory_size: int = u64()
    bitmap_directory_offset: int = u64()


@big_endian
class BitmapStart(Structure):
    """Bitmap directory entry, before extra data, name and padding."""

    bitmap_table_offset: int = u64()
    bitmap_table_size: int = u32()
    flags: int = u32()
    type: int = u8()
    granularity_bits: int = u8()
    name_size: int = u16()
    extra_data_size: int = u32()


@big_endian
class EncryptionPointer(Structure):
    """Data of the full disk encryption extension."""

    offset: int = u64()
    length: int = u64()


@big_endian
class SnapshotStart(Structure):
    """Snapshot table entry, before extra data, unique ID, name and padding."""

    l1_table_offset: int = u64()
    l1_size: int = u32()
    id_size: int = u16()
    name_size: int = u16()
    date_seconds: int = u32()
    date_nanoseconds: int = u32()
    vm_clock_nanoseconds: int = u64()
    vm_state_size: int = u32()
    extra_data_size: int = u32()


@big_endian
class SnapshotExtra(Structure):
    """Extra data of a snapshot table entry, as far as it is defined."""

    vm_state_size: int = u64()
    disk_size: int = u64()
    icount: int = u64()


class Extension(IntEnum):
    """Header extension types."""

    END = 0
    BACKING_FORMAT = 0xE2792ACA
    FEATURE_NAMES = 0x6803F857
    BITMAPS = 0x23852875
    ENCRYPTION = 0x0537BE77
    DATA_FILE = 0x44415441
    SKIPPED = 0x76736B70  # ours, and nobody else's: room in the first cluster that is not in use (rewrite.py)


class Incompatible(IntFlag):
    DIRTY = 1
    CORRUPT = 2
    DATA_FILE = 4
    COMPRESSION_TYPE = 8
    EXTENDED_L2 = 16


class Compatible(IntFlag):
    LAZY_REFCOUNTS = 1


class Autoclear(IntFlag):
    BITMAPS = 1
    RAW_DATA = 2


class CompressionType(IntEnum):
    ZLIB = 0
    ZSTD = 1


class BitmapFlags(IntFlag):
    IN_USE = 1
    AUTO = 2
    EXTRA_DATA_COMPATIBLE = 4


FEATURE_NAMES = (
    *((0, flag.value.bit_length() - 1, name) for flag, name in (
        (Incompatible.DIRTY, "dirty bit"),
        (Incompatible.CORRUPT, "corrupt bit"),
        (Incompatible.DATA_FILE, "external data file"),
        (Incompatible.COMPRESSION_TYPE, "compression type"),
        (Incompatible.EXTENDED_L2, "extended L2 entries"),
    )),
    (1, 0, "lazy refcounts"),
    (2, 0, "bitmaps"),
    (2, 1, "raw external data"),
)  # fmt: skip

# Words of L1, L2, refcount and bitmap tables
COPIED = 1 << 63  # L1, L2: refcount is exactly one
COMPRESSED = 1 << 62  # L2
ZERO = 1  # L2: reads as zeros
OFFSET = 0x00FF_FFFF_FFFF_FE00  # L1, L2 and bitmap table: bits 9 to 55
REFCOUNT_BLOCK_OFFSET = 0xFFFF_FFFF_FFFF_FE00
WORD = 8

PLAIN, LUKS = 0, 2  # crypt_method

# QEMU's limits (block/qcow2.h)
MIN_CLUSTER_BITS, MAX_CLUSTER_BITS = 9, 21
MIN_EXTENDED_CLUSTER_BITS = 14
MAX_REFCOUNT_ORDER = 6
MAX_L1_BYTES = 32 << 20
MAX_REFCOUNT_TABLE_BYTES = 8 << 20
MAX_SNAPSHOTS = 65536
MAX_SNAPSHOT_TABLE_BYTES = 64 << 20
MAX_SNAPSHOT_EXTRA = 1024
MAX_BACKING_NAME = 1023
MAX_BITMAPS = 65535
MAX_LUKS_HEADER_BYTES = 64 << 20  # ours: eight slots of the longest keys take 2 MiB
MAX_BITMAP_DIRECTORY_BYTES = 64 << 20
MAX_BITMAP_TABLE_BYTES = 8 << 20
MAX_BITMAP_NAME = 1023
MIN_GRANULARITY_BITS, MAX_GRANULARITY_BITS = 9, 31

SUBCLUSTERS = 32
ALL_SUBCLUSTERS = (1 << SUBCLUSTERS) - 1
