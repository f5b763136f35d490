"""The images of a LUN from the descriptors that came with it: what each one is was said beside it, never by its bytes.

map_lun   image, data_file, secret, parents[0], parents[1] ...      what they are
SCM_RIGHTS   fd    fd         fd       fd          fd               in the same order
"""

import os
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import pairwise

from formats.errors import InvalidArgument, SecretNeeded
from formats.host_file import HostFile
from formats.image import Image, Reference
from formats.registry import open_image
from vstore.target.errors import ErrorCode, TargetError
from vstore.target.packet import Descriptors
from vstore.target.verbs import ImageSource, MapLun, ParentSource

Source = ImageSource | ParentSource

LONGEST_SECRET = 65536  # bytes


def images_handed(settings: MapLun, descriptors: Descriptors) -> list[Image]:
    """The image, then its parents, each the owner of its descriptors. Raises TargetError, ImageError."""
    top = settings.image
    sources: list[Source] = [top, *top.parents]
    _check_count(sources, len(descriptors))
    with ExitStack() as undo:
        images = [_opened(top, descriptors, undo, read_only=settings.read_only, length=top.length)]
        for child, source in pairwise(sources):
            _check_overlay(images[-1], child, source)
            images.append(_opened(source, descriptors, undo, read_only=True))
        undo.pop_all()
    return images


def _check_count(sources: Sequence[Source], came: int) -> None:
    """A format without a file has no descriptor. One too few or too many for a single image is told when it is opened,
    which knows the format."""
    wanted = sum(1 + source.data_file + source.secret for source in sources)
    if came != wanted and wanted > 1:
        detail = (
            f"{name_of(sources[0])}: {came} descriptors came for a chain of {wanted} files; send each one, in order"
        )
        raise TargetError(ErrorCode.INVALID_REQUEST, detail)


def _check_overlay(image: Image, source: Source, parent: Source) -> None:
    """Over another parent the disk would have another content."""
    if image.backing is None:
        raise InvalidArgument(f"{name_of(source)} is no overlay, but a parent of it was handed over")
    expected = parent.file if isinstance(parent, ParentSource) else ""
    if expected not in ("", image.backing.name):
        raise InvalidArgument(
            f"{name_of(source)} says that its parent is {image.backing.name!r}, but {expected!r} was handed over; "
            "change it back, or rebase it"
        )


def _opened(
    source: Source, descriptors: Descriptors, undo: ExitStack, *, read_only: bool, length: int | None = None
) -> Image:
    file = _file(source, descriptors, undo, read_only=read_only)
    data_file = _file(source, descriptors, undo, read_only=read_only) if source.data_file else None

    def data_opener(_: Reference) -> HostFile:
        assert data_file is not None
        return data_file

    image = open_image(source.format, file, length=length, opener=data_opener if data_file else None)
    undo.callback(image.close)
    if source.secret:
        image.unlock([_secret(source, descriptors)])
    if data_file is not None and len(image.layers) < 2:
        raise InvalidArgument(f"{name_of(source)} has no data file, but one was handed over")
    return image


def _secret(source: Source, descriptors: Descriptors) -> bytes:
    """What the descriptor's file holds."""
    descriptor = descriptors.take()
    if descriptor is None:
        raise SecretNeeded(f"{name_of(source)} is encrypted, and the file with its secret did not come along")
    try:
        return os.pread(descriptor, LONGEST_SECRET, 0)
    finally:
        os.close(descriptor)


def _file(source: Source, descriptors: Descriptors, undo: ExitStack, *, read_only: bool) -> HostFile | None:
    descriptor = descriptors.take()
    if descriptor is None:
        return None
    file = HostFile.from_descriptor(descriptor, name=name_of(source), read_only=read_only)
    undo.callback(file.close)
    return file


def name_of(source: Source) -> str:
    """What messages call it."""
    return source.name or "the image"
