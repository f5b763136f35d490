"""Copying into a disk that is there: what rebase, commit and converting in place have in common.

    pairs (what to copy, with what lies there now, or nothing) --> windows --> threads: read, compare, write --> Disk

The disk sees to allocation, partial blocks and durability; here only bytes are chosen.
"""

import os
from collections.abc import Iterable, Iterator, Sequence

from formats.errors import InvalidArgument
from formats.host_file import HostFile, Opener
from formats.image import Image, Reference
from formats.registry import FORMATS
from vstore.disk import Disk
from vstore.transfer.blocks import Span, nonzero, unlike
from vstore.transfer.line import Turn, work_in_line
from vstore.transfer.progress import Meter
from vstore.transfer.reader import STEP, Buffers, Pair, Reader, Window, windows
from vstore.transfer.threads import threads

UNIT = 4096  # bytes that are compared and written as a whole


def copy(pairs: Iterable[Pair], source: Reader, against: Reader | None, disk: Disk, meter: Meter) -> None:
    """Writes what the first extent of each pair holds, which `source` reads, where it differs from what the second one
    holds, which `against` reads; without a second one, all of it. Durable after the disk's next flush."""
    copying = _Copying(source, against, disk, meter)
    work_in_line(copying.windows(pairs), copying.move, threads(), ordered=False)
    for reader in (source, against):
        if reader is not None:
            reader.check()


class _Copying:
    def __init__(self, source: Reader, against: Reader | None, disk: Disk, meter: Meter) -> None:
        self._source, self._against, self._disk, self._meter = source, against, disk, meter
        self._buffers, self._others = Buffers(STEP), Buffers(STEP)

    @staticmethod
    def windows(pairs: Iterable[Pair]) -> Iterator[Window]:
        return windows(pairs, STEP)

    def move(self, window: Window, turn: Turn) -> None:  # noqa: ARG002
        """One window, by any thread: the disk takes writes in any order."""
        # what is held against another parent must hide it, so its zeros are written: this disk sees no need for them
        put = self._put if self._against is None else self._disk.write_blocking
        for extent, other in window.pairs:
            if extent.zero and other is None:
                self._disk.write_zeroes_blocking(extent.start, extent.end - extent.start, deallocate=True)
                continue
            view = self._buffers.view()[: extent.end - extent.start]
            self._source.fill(view, extent)
            spans: Iterable[Span] = [(0, len(view))]
            if other is not None:
                assert self._against is not None
                beneath = self._others.view()[: len(view)]
                self._against.fill(beneath, other)
                spans = unlike(view, beneath, UNIT)
            for first, end in spans:
                put(extent.start + first, view[first:end])
        self._meter.reach(window.end)

    def _put(self, start: int, view: memoryview) -> None:
        at = 0
        for first, end in nonzero(view, UNIT):
            self._zero(start + at, first - at)
            self._disk.write_blocking(start + first, view[first:end])
            at = end
        self._zero(start + at, len(view) - at)

    def _zero(self, start: int, length: int) -> None:
        if length:
            self._disk.write_zeroes_blocking(start, length, deallocate=True)


def second_look(images: Sequence[Image]) -> list[Image]:
    """The same images opened once more, read-only, over the same descriptors and locks: for a reader beside a disk that
    changes them, because an image serves one thread at a time. The caller closes them."""
    again: list[Image] = []
    try:
        for image in images:
            row = FORMATS[image.format]
            if row.open is None:
                raise InvalidArgument(f"{image.format} images have no file, so there is nothing to restructure")
            again.append(row.open(_duplicate(image, 0), _data_opener(image)))
            again[-1].cipher = image.cipher
    except BaseException:
        for image in again:
            image.close()
        raise
    return again


def _duplicate(image: Image, layer: int) -> HostFile:
    descriptor = os.dup(image.layers[layer].descriptor)
    return HostFile.from_descriptor(descriptor, name=str(image.info()["filename"]), read_only=True, lock=False)


def _data_opener(image: Image) -> Opener:
    def open_data_file(_: Reference) -> HostFile:
        return _duplicate(image, 1)

    return open_data_file
