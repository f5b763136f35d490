"""Naming another parent: fields, extensions and name change together, or not at all (rewrite.py)."""

import dataclasses
from typing import TYPE_CHECKING

from formats.errors import UnsupportedFeature
from formats.image import Reference
from formats.qcow2.rewrite import rewrite
from formats.qcow2.structures import Extension

if TYPE_CHECKING:
    from formats.qcow2.image import Qcow2


def name_parent(image: "Qcow2", reference: Reference | None) -> None:
    """See `Qcow2.name_parent`. UnsupportedFeature where the header has no room for the name; OSError."""
    writer = image.require_still("name another parent of it")
    if reference is not None and image.header.raw_data:
        raise UnsupportedFeature(f"{image.file.name} has a raw external data file, so it cannot have a parent")
    header = dataclasses.replace(image.header, extensions=list(image.header.extensions))
    header.backing = None if reference is None else reference.name
    told = None if reference is None or reference.format is None else reference.format.encode()
    header.set_extension(Extension.BACKING_FORMAT, told)
    try:
        rewrite(image.file, header)
    finally:
        image.header.lost = header.lost
    image.header.start.backing_file_offset = header.start.backing_file_offset
    image.header.start.backing_file_size = header.start.backing_file_size
    image.header.backing, image.header.extensions = header.backing, header.extensions
    image.backing = reference
    writer.has_backing = reference is not None
    image.zeroes = image.header.start.version > 2 or reference is None
