"""Making a qcow2 image: the smallest file that is one, then grown by the image's own writer as far as was asked.

cluster 0 header | refcount table | refcount block | L1 table | (preallocated: L2 tables, data)
"""

import contextlib
import os
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from formats.errors import InvalidArgument, UnsupportedFeature
from formats.host_file import HostFile, Opener
from formats.image import Reference, check_length
from formats.qcow2 import structures as disk
from formats.qcow2 import widths
from formats.qcow2.header import Header
from formats.qcow2.image import Qcow2
from formats.qcow2.pages import Stage
from formats.qcow2.resize import resize
from formats.qcow2.structures import Autoclear, Compatible, CompressionType, Extension, Incompatible
from formats.space import write_zeros

_TABLES = 64  # L2 tables preallocated between two flushes


@dataclass(frozen=True)
class Options:
    """What `create` can be told; the names are those of `qemu-img create -o`."""

    version: int = 3
    cluster_size: int = 65536
    refcount_bits: int = 16
    extended_l2: bool = False
    lazy_refcounts: bool = False
    compression_type: str = "zlib"
    backing: Reference | None = None
    data_file: Reference | None = None
    data_file_raw: bool = False
    secret: bytes | None = None  # the passphrase, where it is to be encrypted


_SAME = ("cluster_size", "extended_l2", "refcount_bits", "lazy_refcounts", "compression_type", "data_file_raw")


# What an overlay is made as where nothing is said of it. Measured with random writes of 4 KiB on tmpfs, a flush after
# each 32: with sub-blocks of 4 KiB a write costs a third of the CPU time that copying 64 KiB clusters does, and the
# overlay grows by a twelfth; a read costs half as much again.
OVERLAY: Mapping[str, object] = {"extended_l2": True, "cluster_size": 131072}


def options_named(meant: Mapping[str, object]) -> Options:
    """From parsed values by the names of `formats.qcow2.options`. Errors: InvalidArgument."""
    chosen = {name: meant[name] for name in _SAME if name in meant}
    if "compat" in meant:
        chosen["version"] = meant["compat"]
    if "data_file" in meant:
        chosen["data_file"] = Reference(str(meant["data_file"]), "raw")
    if ("encrypt.format" in meant) != ("secret" in meant):
        raise InvalidArgument("encrypt.format and a secret go together: one was given without the other")
    if "secret" in meant:
        chosen["secret"] = meant["secret"]
    if "backing_file" in meant:
        if "backing_fmt" not in meant:
            raise InvalidArgument("backing_file needs backing_fmt: the format of a parent is never guessed")
        chosen["backing"] = Reference(str(meant["backing_file"]), str(meant["backing_fmt"]))
        if meant.keys().isdisjoint({*OVERLAY, "compat"}):
            chosen |= OVERLAY
    elif "backing_fmt" in meant:
        raise InvalidArgument("backing_fmt is the format of backing_file, which is missing")
    return Options(**chosen)  # type: ignore[arg-type]


_DEFAULT = Options()
_PREALLOCATIONS = ("off", "metadata", "falloc", "full")


def create(
    file: HostFile,
    length: int,
    preallocation: str = "off",
    options: Options = _DEFAULT,
    *,
    opener: Opener | None = None,
) -> None:
    """Makes an empty file an image of `length` bytes, durable. The names in `options` are written, not opened;
    `opener` is asked for the data file when there is one, and that file is given the disk's length.

    Errors: InvalidArgument, UnsupportedFeature, OSError (as ENOSPC).
    """
    if preallocation not in _PREALLOCATIONS:
        raise InvalidArgument(f"preallocation {preallocation!r} is none of {', '.join(_PREALLOCATIONS)}")
    _check(check_length(length), preallocation, options)
    _write(file, _header(length, options))
    own = HostFile.from_descriptor(os.dup(file.descriptor), name=file.name, lock=False)
    with contextlib.closing(own), Qcow2(own, opener=opener) as image:
        _complete(image, length, preallocation, options)
    file.fdatasync()


def _check(length: int, preallocation: str, options: Options) -> None:
    size = options.cluster_size
    least = disk.MIN_EXTENDED_CLUSTER_BITS if options.extended_l2 else disk.MIN_CLUSTER_BITS
    wrong = (
        (options.version not in (2, 3), f"version {options.version}; it must be 2 or 3"),
        (
            size & size - 1 or not 1 << least <= size <= 1 << disk.MAX_CLUSTER_BITS,
            f"cluster_size {size}; it must be a power of two from {1 << least} to {1 << disk.MAX_CLUSTER_BITS}",
        ),
        (
            options.refcount_bits not in (1, 2, 4, 8, 16, 32, 64),
            f"refcount_bits {options.refcount_bits}; they must be a power of two from 1 to 64",
        ),
        (
            options.compression_type.upper() not in CompressionType.__members__,
            f"compression_type {options.compression_type!r}; it must be zlib or zstd",
        ),
        (options.version == 2 and options != Options(2, size, backing=options.backing), "options of version 3"),
        (options.secret is not None and options.data_file is not None, "data_file together with encrypt.format"),
        (options.secret is not None and preallocation != "off", f"preallocation {preallocation} and encrypt.format"),
        (options.data_file_raw and options.data_file is None, "data_file_raw without data_file"),
        (options.data_file_raw and options.backing is not None, "data_file_raw together with backing"),
        (
            preallocation != "off" and options.backing is not None and not options.extended_l2,
            f"preallocation {preallocation} together with backing (possible with extended_l2 only)",
        ),
    )
    for bad, what in wrong:
        if bad:
            raise InvalidArgument(f"a qcow2 image cannot be made with {what}")
    entries = -(-length // (size * (size // (16 if options.extended_l2 else 8))))
    if entries * disk.WORD > disk.MAX_L1_BYTES:
        raise UnsupportedFeature(
            f"a disk of {length} bytes needs {entries} L1 entries with clusters of {size} bytes; "
            f"at most {disk.MAX_L1_BYTES // disk.WORD} are possible, so use longer clusters"
        )


def _header(length: int, options: Options) -> Header:
    """The header of an image whose L1 table still has one cluster at most; it grows as any other image does."""
    size = options.cluster_size
    per_table = size // (16 if options.extended_l2 else 8)
    l1_size = min(-(-length // (size * per_table)), size // disk.WORD)
    start = disk.HeaderStart(
        magic=disk.MAGIC,
        version=options.version,
        backing_file_offset=0,
        backing_file_size=0,
        cluster_bits=size.bit_length() - 1,
        size=min(length, l1_size * size * per_table),
        crypt_method=0,
        l1_size=l1_size,
        l1_table_offset=3 * size,
        refcount_table_offset=size,
        refcount_table_clusters=1,
        nb_snapshots=0,
        snapshots_offset=0,
    )
    header = Header(start, _features(options))
    if options.backing is not None:
        header.backing = options.backing.name
        if options.backing.format is not None:
            header.set_extension(Extension.BACKING_FORMAT, options.backing.format.encode())
    if options.version == 2:
        return header
    header.additional = bytes([CompressionType[options.compression_type.upper()]]).ljust(8, b"\0")
    if options.data_file is not None:
        header.set_extension(Extension.DATA_FILE, options.data_file.name.encode(errors="surrogateescape"))
    if size > 512:  # QEMU's own table leaves no room for a name in a cluster of 512 bytes
        names = b"".join(disk.FeatureName(kind, bit, name.encode()).pack() for kind, bit, name in disk.FEATURE_NAMES)
        header.set_extension(Extension.FEATURE_NAMES, names)
    return header


def _features(options: Options) -> disk.HeaderFeatures:
    order = options.refcount_bits.bit_length() - 1
    if options.version == 2:
        return disk.HeaderFeatures(0, 0, 0, order, 72)
    incompatible = Incompatible(0)
    incompatible |= Incompatible.DATA_FILE if options.data_file is not None else incompatible
    incompatible |= Incompatible.COMPRESSION_TYPE if options.compression_type != "zlib" else incompatible
    incompatible |= Incompatible.EXTENDED_L2 if options.extended_l2 else incompatible
    compatible = Compatible.LAZY_REFCOUNTS if options.lazy_refcounts else 0
    autoclear = Autoclear.RAW_DATA if options.data_file_raw else 0
    return disk.HeaderFeatures(incompatible, compatible, autoclear, order, 112)


def _write(file: HostFile, header: Header) -> None:
    """Header, refcount table with one block, L1 table: four clusters of one reference each."""
    size, bits = header.cluster_size, header.refcount_bits
    file.truncate(4 * size)
    file.pwrite(0, header.pack())
    file.pwrite(size, (2 * size).to_bytes(disk.WORD, "big"))
    file.pwrite(2 * size, widths.pack([1] * 4 + [0] * (8 // bits), bits))


def _complete(image: Qcow2, length: int, preallocation: str, options: Options) -> None:
    if length > image.geometry.length:
        resize(image, length, shows_parent=True)
    if image.data_file is not None:
        image.data_file.truncate(length)
    if options.secret is not None:
        _encrypt(image, options.secret)
    if preallocation != "off" or options.data_file_raw:
        _place_all(image, masked=options.backing is not None)
    image.commit([])
    holder = image.data_file or image.file
    if preallocation == "falloc":
        holder.fallocate(0, holder.length)
    elif preallocation == "full":
        for start, stop in _holes(holder):
            write_zeros(holder.descriptor, start, stop - start)


def _encrypt(image: Qcow2, secret: bytes) -> None:
    """Adds a LUKS header; from then on whatever is written is encrypted."""
    assert image.writer is not None
    from formats.luks import new  # the cryptography package takes long to load

    head, size = new(secret), image.header.cluster_size
    clusters = -(-len(head) // size)
    offset = image.writer.allocator.take_row(clusters) * size
    image.file.pwrite(offset, head.ljust(clusters * size, b"\0"))
    image.writer.flush()
    image.header.set_extension(Extension.ENCRYPTION, disk.EncryptionPointer(offset, len(head)).pack())
    image.header.start.crypt_method = disk.LUKS
    image.file.pwrite(0, image.header.pack())


def _place_all(image: Qcow2, *, masked: bool) -> None:
    """Gives every block a place, a whole L2 table at a time. `masked`: no sub-cluster of it is allocated, so that the
    parent shows through."""
    writer, size = image.writer, image.geometry.block_size
    assert writer is not None
    per_table, blocks = writer.tables.per_table, image.geometry.blocks
    for index in range(-(-blocks // per_table)):
        count = min(per_table, blocks - index * per_table)
        rows = [(index * per_table, count)] if image.identity else writer.allocator.take(count)
        words = array("Q")
        for first, length in rows:
            start = disk.COPIED + first * size
            words.extend(range(start, start + length * size, size))
        if image.entries.extended:
            bits = 0 if masked else disk.ALL_SUBCLUSTERS
            plain, words = words, array("Q", [bits]) * (2 * count)
            words[::2] = plain
        writer.own_table(index)
        writer.pages.write(writer.tables.table(index), widths.big_endian(words).tobytes(), Stage.POINTER)
        if index % _TABLES == _TABLES - 1:
            writer.flush()


def _holes(file: HostFile) -> Iterator[tuple[int, int]]:
    """Start and end of every part of the file that has no space yet."""
    at, length = 0, file.length
    while at < length:
        start = os.lseek(file.descriptor, at, os.SEEK_HOLE)
        if start < length:
            try:
                at = os.lseek(file.descriptor, start, os.SEEK_DATA)
            except OSError:  # ENXIO: a hole up to the end
                at = length
            yield start, at
        else:
            at = length
