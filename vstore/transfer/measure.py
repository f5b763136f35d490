"""measure: how long the file of a new image gets, with the numbers of `qemu-img measure --output=json`.

A qcow2 file has its data, in whole clusters, and the tables for all of the disk: L2, L1, refcounts, header.
"""

from collections.abc import Mapping, Sequence

from formats.errors import InvalidArgument, UnsupportedFeature
from formats.image import Image, check_length
from formats.options import parsed
from formats.registry import FORMATS
from vstore.transfer.extents import extents

_L1_ENTRY = 8


def measure(source: Sequence[Image] | int, format: str, options: Mapping[str, object]) -> dict[str, int]:
    """`source`: a chain of opened images, or the length of an empty disk. `required`: bytes of a new file with the same
    content, `fully-allocated`: once all of it was written. Errors: ImageError, OSError."""
    length = check_length(source) if isinstance(source, int) else source[0].geometry.length
    if format not in _MEASURES:
        raise UnsupportedFeature(f"new {format} images cannot be measured; {', '.join(_MEASURES)} can")
    meant = parsed(format, FORMATS[format].options, options)
    return _MEASURES[format](source, length, meant)


def _raw(source: Sequence[Image] | int, length: int, meant: Mapping[str, object]) -> dict[str, int]:
    del source, meant
    return {"required": length, "fully-allocated": length}


def _qcow2(source: Sequence[Image] | int, length: int, meant: Mapping[str, object]) -> dict[str, int]:
    cluster, bits = _whole(meant, "cluster_size", 65536), _whole(meant, "refcount_bits", 16)
    least = 1 << 14 if meant.get("extended_l2") else 512
    if cluster & cluster - 1 or not least <= cluster <= 1 << 21 or bits not in (1, 2, 4, 8, 16, 32, 64):
        raise InvalidArgument(f"a qcow2 image cannot have clusters of {cluster} bytes with refcounts of {bits} bits")
    data = -(-length // cluster) * cluster
    tables = _tables(data, cluster, 16 if meant.get("extended_l2") else 8, bits)
    used = 0 if isinstance(source, int) else _used(source, length, cluster)
    told = {"required": tables + used, "fully-allocated": tables + data}
    return told if isinstance(source, int) or source[0].format != "qcow2" else told | {"bitmaps": 0}


def _whole(meant: Mapping[str, object], name: str, default: int) -> int:
    value = meant.get(name, default)
    assert isinstance(value, int)
    return value


def _used(source: Sequence[Image], length: int, cluster: int) -> int:
    """Bytes in whole clusters in which there is data."""
    used = done = 0
    for extent in extents(source, 0, length):
        if not extent.zero:
            start, end = max(done, extent.start // cluster * cluster), -(-extent.end // cluster) * cluster
            used += max(0, end - start)
            done = max(done, end)
    return used


def _tables(data: int, cluster: int, l2_entry: int, refcount_bits: int) -> int:
    """Bytes of all but the data, once every cluster has its place."""
    l2 = _whole_tables(data // cluster, l2_entry, cluster)
    l1 = _whole_tables(l2 // cluster, _L1_ENTRY, cluster)
    rest = (cluster + l2 + l1 + data) // cluster
    counted = blocks = table = 0
    while counted != rest + blocks + table:
        counted = rest + blocks + table
        blocks = -(-counted * refcount_bits // (cluster * 8))
        table = -(-blocks * _L1_ENTRY // cluster)
    return cluster + l2 + l1 + (blocks + table) * cluster


def _whole_tables(entries: int, entry: int, cluster: int) -> int:
    return -(-entries * entry // cluster) * cluster


_MEASURES = {"raw": _raw, "qcow2": _qcow2}
