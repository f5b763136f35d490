"""commit: what an overlay has goes into its parent, and the overlay is empty afterwards.

1. the parent grows to the overlay's length, if it is shorter
2. every extent that the overlay has is written into the parent
3. all of that is durable                           a crash up to here: the overlay still has all, and hides it
4. the overlay lets go of its blocks                it shows its parent, which holds the same
"""

import contextlib
from collections.abc import Iterator, Sequence

from formats.errors import InvalidArgument, image_error
from formats.image import BlockState, Change, Image, entry
from vstore.disk import Disk
from vstore.transfer.copying import copy
from vstore.transfer.progress import Cancelled, Meter, Progress, never, silent
from vstore.transfer.reader import Reader, alone

_BATCH = 1 << 16  # blocks emptied at once


def commit(
    chain: Sequence[Image], *, keep: bool = False, progress: Progress = silent, cancelled: Cancelled = never
) -> None:
    """`chain`: the overlay, its parent, which is writable, and the parent's own parents; all are closed here. `keep`:
    the overlay keeps its blocks, and may be read-only. Errors: ImageError, TransferCancelled; then the overlay's disk
    is what it was, its parent's is not."""
    with contextlib.ExitStack() as closing:
        overlay = chain[0]
        closing.callback(overlay.close)
        if len(chain) < 2:
            raise InvalidArgument("the image has no parent to commit into")
        meter = Meter(overlay.geometry.length, progress, cancelled)
        try:
            _write(overlay, chain[1:], meter)
            if not keep:
                _empty(overlay)
        except OSError as error:
            raise image_error(error, "cannot commit") from error
    meter.finish()


def _write(overlay: Image, parents: Sequence[Image], meter: Meter) -> None:
    with contextlib.ExitStack() as closing:
        disk = Disk(*parents)
        closing.callback(disk.close)
        if disk.length < overlay.geometry.length:
            disk.resize(overlay.geometry.length)
        reader = Reader([overlay])
        copy(alone(reader.extents(0, meter.total), lambda extent: extent.present), reader, None, disk, meter)
        disk.flush_blocking()


def _empty(overlay: Image) -> None:
    hole = entry(BlockState.HOLE)
    for first in range(0, overlay.geometry.blocks, _BATCH):
        blocks = list(_held(overlay, first, min(_BATCH, overlay.geometry.blocks - first)))
        if blocks:
            overlay.commit([Change(block, hole) for block in blocks])


def _held(overlay: Image, first: int, count: int) -> Iterator[int]:
    for run in overlay.load(first, count):
        if run.entry >> 60 != BlockState.HOLE:
            yield from range(run.first, run.first + run.count)
