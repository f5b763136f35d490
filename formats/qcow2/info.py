"""What `qemu-img info --output=json` tells of a qcow2 image, under the same keys; no other file is opened for it."""

from typing import TYPE_CHECKING

from formats.qcow2 import bitmap_directory
from formats.qcow2.structures import CompressionType, Incompatible

if TYPE_CHECKING:
    from formats.qcow2.image import Qcow2


def describe(image: "Qcow2") -> dict[str, object]:
    """All keys; those that do not apply are left out, as qemu-img does."""
    header = image.header
    told: dict[str, object] = {
        "filename": image.file.name,
        "format": image.format,
        "virtual-size": header.start.size,
        "actual-size": image.file.allocated,
        "cluster-size": header.cluster_size,
        "dirty-flag": bool(header.incompatible & Incompatible.DIRTY),
        "format-specific": {"type": "qcow2", "data": _specific(image)},
    }
    if image.encrypted:
        told["encrypted"] = True
    if len(image.snapshots):
        told["snapshots"] = [snapshot.as_json() for snapshot in image.snapshots]
    if image.backing is not None:
        told["backing-filename"] = image.backing.name
        if image.backing.format is not None:
            told["backing-filename-format"] = image.backing.format
    return told


def _specific(image: "Qcow2") -> dict[str, object]:
    header = image.header
    told: dict[str, object] = {
        "compat": "0.10" if header.start.version == 2 else "1.1",
        "compression-type": CompressionType(header.compression).name.lower(),
        "refcount-bits": header.refcount_bits,
    }
    if header.start.version > 2:
        told["lazy-refcounts"] = header.lazy_refcounts
        told["corrupt"] = bool(header.incompatible & Incompatible.CORRUPT)
        told["extended-l2"] = header.extended_l2
    if image.encrypted:
        from formats.luks import Luks  # not before it is needed

        told["encrypt"] = Luks(image.file.name, image.luks).describe()
    if len(image.bitmaps):
        told["bitmaps"] = [bitmap_directory.describe(entry) for entry in image.bitmaps.entries]
    if image.data_reference is not None:
        told["data-file"] = image.data_reference.name
        told["data-file-raw"] = header.raw_data
    return told
