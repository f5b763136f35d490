"""The images of a piece of work, opened from inherited descriptors, and held against what their headers say.

The catalog's relations decide which images make a chain. A header that tells another parent than the catalog has been
changed behind its back; then nothing is read, because it would be another disk's content.
"""

import base64
import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import Any

from formats.errors import ImageError, ImageNotFound, UnsupportedFeature
from formats.host_file import HostFile, Opener
from formats.image import Image
from formats.qcow2.image import Qcow2
from formats.qcow2.snapshot_table import Snapshot
from formats.registry import open_image
from vstore.worker.wire import ImageFile

_LOOKS = 3  # at a live image, whose tables may change between two reads


@contextlib.contextmanager
def opened(chain: Sequence[ImageFile]) -> Iterator[list[Image]]:
    """The images of a whole chain, the top one first, closed at the end. Raises ImageError, OSError."""
    with contextlib.ExitStack() as closing:
        images = [closing.enter_context(alone(image)) for image in chain]
        for image, source, parent in zip(images, chain, [*chain[1:], None], strict=True):
            check_parent(image, source.name, parent)
        yield images


@contextlib.contextmanager
def alone(source: ImageFile) -> Iterator[Image]:
    """One image, whatever its parent is; to be read and written if it is not encrypted, or its secret came along."""
    if source.descriptor < 0:
        with open_image(source.format, length=source.length) as image:
            yield image
        return
    with _opened(source) as image:
        if source.secret is not None:
            image.unlock([base64.b64decode(source.secret)])
        yield image


def _opened(source: ImageFile) -> Image:
    for left in reversed(range(_LOOKS if source.live else 1)):
        try:
            return open_image(source.format, host_file(source), opener=_data_opener(source))
        except ImageError:
            if not left:
                raise
    raise AssertionError


def _data_opener(source: ImageFile) -> Opener | None:
    if source.data_descriptor < 0:
        return None
    how: dict[str, Any] = {"name": f"the data file of {source.name}", "read_only": source.read_only}
    return lambda _: HostFile.from_descriptor(os.dup(source.data_descriptor), lock=not source.live, **how)


@contextlib.contextmanager
def at_snapshot(chain: Sequence[ImageFile], name: str) -> Iterator[list[Image]]:
    """As `opened`, but the top one as it was when its snapshot of this name was taken. Raises ImageNotFound too."""
    with opened(chain) as images:
        kept = with_snapshots(images[0], chain[0].name)
        view = kept.become_snapshot(snapshot_named(kept, chain[0].name, name).id)
        with view:
            yield [view, *images[1:]]


def snapshot_named(image: Qcow2, told: str, name: str) -> Snapshot:
    """Raises ImageNotFound."""
    found = next((snapshot for snapshot in image.snapshots if snapshot.name == name), None)
    if found is None:
        raise ImageNotFound(f"{told} has no snapshot {name!r}")
    return found


def host_file(source: ImageFile) -> HostFile:
    """The file of an image, locked unless somebody writes to it meanwhile; the caller's to close."""
    return HostFile.from_descriptor(
        os.dup(source.descriptor), name=source.name, read_only=source.read_only, lock=not source.live
    )


def check_parent(image: Image, name: str, parent: ImageFile | None) -> None:
    """Raises UnsupportedFeature unless the header names the parent that the catalog has."""
    told = image.backing and image.backing.name
    expected = parent and parent.name
    if told != expected:
        raise UnsupportedFeature(
            f"{name} says that its parent is {told or 'nobody'}, the catalog says {expected or 'nobody'}: it was "
            "changed by another program; change it back, or rebase it"
        )


def check_no_snapshots(image: Image, name: str) -> None:
    """Raises UnsupportedFeature: what a snapshot does not hold itself is its parent's, as the disk's own is."""
    if isinstance(image, Qcow2) and len(image.snapshots):
        kept = ", ".join(snapshot.name for snapshot in list(image.snapshots)[:10])
        raise UnsupportedFeature(
            f"{name} keeps snapshots ({kept}), whose content would change with the parent's; "
            "delete them first, or convert them to images"
        )


def with_snapshots(image: Image, name: str) -> Qcow2:
    """Raises UnsupportedFeature."""
    if not isinstance(image, Qcow2):
        raise UnsupportedFeature(f"{name}: {image.format} images hold no snapshots; those of qcow2 do")
    return image
