"""rebase: another parent under an overlay, or none, while the disk stays what it is.

1. where the overlay has nothing, old parents and new ones are compared; what differs is written into the overlay
2. all of that is durable                            a crash up to here: the old parent is named, and still right
3. the overlay names its new parent, durable
"""

import contextlib
from collections.abc import Iterator, Sequence

from formats.errors import image_error
from formats.image import Image, Reference
from vstore.disk import Disk
from vstore.transfer.copying import copy, second_look
from vstore.transfer.progress import Cancelled, Meter, Progress, never, silent
from vstore.transfer.reader import Pair, Reader, paired


def rebase(
    chain: Sequence[Image],
    parents: Sequence[Image],
    reference: Reference | None,
    *,
    progress: Progress = silent,
    cancelled: Cancelled = never,
) -> None:
    """`chain`: the overlay, writable, and its old parents; all are closed here. `parents`: the new ones, nearest first,
    or none at all; they stay the caller's. `reference` is what the overlay then says of the nearest.

    Errors: ImageError, TransferCancelled; then the overlay is over its old parent, and its disk has not changed."""
    meter = Meter(chain[0].geometry.length, progress, cancelled)
    with contextlib.ExitStack() as closing:
        disk = _disk(chain, closing)
        looks = second_look(chain)
        for image in looks:
            closing.callback(image.close)
        try:
            old, new = Reader(looks), Reader(parents)
            copy(_unlike(old, new, meter.total), old, new, disk, meter)
            disk.name_parent(reference)
        except OSError as error:
            raise image_error(error, "cannot rebase") from error
    meter.finish()


def _disk(chain: Sequence[Image], closing: contextlib.ExitStack) -> Disk:
    disk = Disk(*chain)
    closing.callback(disk.close)
    return disk


def _unlike(old: Reader, new: Reader, length: int) -> Iterator[Pair]:
    """Where the overlay itself has nothing, and what shows through may change."""
    for extent, other in paired(old, new, 0, length):
        own = extent.present and not extent.depth
        place = old.place(extent)
        if not own and not (extent.zero and other.zero) and (place is None or place != new.place(other)):
            yield extent, other


def rename_parent(overlay: Image, reference: Reference | None) -> None:
    """The overlay names another parent, and nothing else is looked at: for one that was moved, or whose format was not
    said. The caller knows that the new one holds what the old one did. Errors: ImageError."""
    try:
        overlay.name_parent(reference)
    except OSError as error:
        raise image_error(error, "cannot rebase") from error
