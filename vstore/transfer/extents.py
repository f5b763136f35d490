"""Extents: the disk of a chain as pieces of bytes in a row, each with the image, the file and the place that hold it.

    top      |data.....|hole................|zero...|hole..|     only through holes the parent is looked at, so each
    parent             |data.|hole..........|       |data..|     image's extents are told only where they show
    bottom                   |zero|data.....|       |
    told     |depth 0  |1....|2...|2........|0......|1.....|

What nobody has reads as zeros; it is told with the depth of the image whose parent ends there, as `qemu-img map` does.
"""

import errno
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from formats.image import BlockState, Image, Masks, Run

_STEP = 1 << 13  # blocks asked for together
_ENDLESS = 1 << 63
_PLACE = (1 << 48) - 1  # of an entry, in sectors


@dataclass(frozen=True, slots=True)
class Extent:
    """Bytes `start` to `end` of the disk. `present`: the image at `depth` says what they are; else nobody does.

    `offset`: where they lie in file `layer` of that image; None where they read as zeros without a place, and where
    they have to be decompressed. `packed`: where in layer 0 the compressed bytes of each of its blocks begin, at most a
    block of them; 0 where only the image can tell.
    """

    start: int
    end: int
    depth: int
    present: bool
    zero: bool
    layer: int = 0
    offset: int | None = None
    compressed: bool = False
    packed: int = 0

    def part(self, start: int, end: int) -> "Extent":
        """What of it lies between two offsets of the disk."""
        start, end = max(start, self.start), min(end, self.end)
        offset = None if self.offset is None else self.offset + start - self.start
        return Extent(start, end, self.depth, self.present, self.zero, self.layer, offset, self.compressed, self.packed)


def extents(images: Sequence[Image], start: int, end: int, *, look_into_files: bool = False) -> Iterator[Extent]:
    """Of bytes `start` to `end`, in order and without a gap; neighbours are not joined. Raises ImageError, OSError.

    Holes of the file are told of images whose map is one row, as zeros in a place; with `look_into_files` of all.
    """
    return _Walk(images, look_into_files=look_into_files).extents(start, end)


@dataclass(frozen=True, slots=True)
class _Below:
    """What the image at `depth` has to tell."""

    depth: int
    start: int
    end: int


class _Walk:
    def __init__(self, images: Sequence[Image], *, look_into_files: bool) -> None:
        self._images = images
        self._layers = [image.layers for image in images]
        self._look = look_into_files
        self._files: dict[int, _FileExtents] = {}

    def extents(self, start: int, end: int) -> Iterator[Extent]:
        """A stack of its own in the place of calls, because a chain may be a thousand images deep."""
        under_way = [self._over(0, start, end)]
        while under_way:
            told = next(under_way[-1], None)
            if told is None:
                under_way.pop()
            elif isinstance(told, _Below):
                under_way.append(self._over(told.depth, told.start, told.end))
            else:
                yield told

    def _over(self, depth: int, start: int, end: int) -> Iterator[Extent | _Below]:
        image = self._images[depth]
        size = image.geometry.block_size
        block, stop = start // size, -(-end // size)
        while block < stop:
            count = min(_STEP, stop - block)
            for run in image.load(block, count):
                yield from self._run(depth, run, start, end)
            block += count

    def _run(self, depth: int, run: Run, start: int, end: int) -> Iterator[Extent | _Below]:
        image = self._images[depth]
        size = image.geometry.block_size
        begin = run.first * size
        first, last = max(start, begin), min(end, begin + run.count * size)
        state, layer = BlockState(run.entry >> 60), run.entry >> 48 & 0xFFF
        match state:
            case BlockState.HOLE:
                yield from self._hole(depth, first, last)
            case BlockState.ZERO:
                yield Extent(first, last, depth, True, True)
            case BlockState.COMPRESSED:
                yield Extent(first, last, depth, True, False, compressed=True, packed=run.entry & _PLACE)
            case BlockState.PARTIAL:
                yield from self._partial(depth, run, first, last)
            case _:
                offset = (run.entry & _PLACE) * 512 + first - begin
                yield from self._stored(depth, first, last, layer, offset)

    def _hole(self, depth: int, start: int, end: int) -> Iterator[Extent | _Below]:
        below = self._images[depth + 1].geometry.length if depth + 1 < len(self._images) else 0
        if start < below:
            yield _Below(depth + 1, start, min(end, below))
        if end > below:
            yield Extent(max(start, below), end, depth, False, True)

    def _partial(self, depth: int, run: Run, start: int, end: int) -> Iterator[Extent | _Below]:
        image = self._images[depth]
        size, sub = image.geometry.block_size, image.geometry.sub_block_size
        assert sub is not None
        block = run.first
        offset = (run.entry & _PLACE) * 512
        for masks in image.masks(block, run.count):
            for first, last, bit in _alike(masks, size // sub):
                at = block * size + first * sub
                begin, stop = max(start, at), min(end, block * size + last * sub)
                if begin >= stop:
                    continue
                if masks.allocated & bit:
                    place = offset + first * sub + begin - at
                    yield from self._stored(depth, begin, stop, run.entry >> 48 & 0xFFF, place)
                elif masks.zero & bit:
                    yield Extent(begin, stop, depth, True, True)
                else:
                    yield from self._hole(depth, begin, stop)
            block += 1
            offset += size

    def _stored(self, depth: int, start: int, end: int, layer: int, offset: int) -> Iterator[Extent]:
        encrypted = self._images[depth].cipher is not None  # where a hole of the file would not be zeros
        if encrypted or not (self._look or self._images[depth].flat):
            yield Extent(start, end, depth, True, False, layer, offset)
            return
        descriptor = self._layers[depth][layer].descriptor
        if descriptor not in self._files:
            self._files[descriptor] = _FileExtents(descriptor)
        for first, last, data in self._files[descriptor].over(offset, offset + end - start):
            yield Extent(start + first - offset, start + last - offset, depth, True, not data, layer, first)


def _alike(masks: Masks, count: int) -> Iterator[tuple[int, int, int]]:
    """First and end of sub-blocks in a row of the same kind, with the bit of the first."""
    first = 0
    for n in range(1, count + 1):
        if n == count or _kind(masks, n) != _kind(masks, first):
            yield first, n, 1 << first
            first = n


def _kind(masks: Masks, sub_block: int) -> tuple[int, int]:
    return masks.allocated >> sub_block & 1, masks.zero >> sub_block & 1


class _FileExtents:
    """Data and holes of one file. Its last answer is kept, because the kernel looks through all of a long extent each
    time it is asked where that ends."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._known = (0, 0, False)

    def over(self, start: int, end: int) -> Iterator[tuple[int, int, bool]]:
        """Start and end of what is data (True) or a hole; what cannot be asked, as a device, is all data."""
        while start < end:
            first, last, data = self._known
            if not first <= start < last:
                first, last, data = self._known = self._ask(start)
            yield start, min(last, end), data
            start = last

    def _ask(self, start: int) -> tuple[int, int, bool]:
        data = self._seek(start, os.SEEK_DATA)
        if data > start:
            return start, data, False
        return start, max(self._seek(start, os.SEEK_HOLE), start + 1), True

    def _seek(self, offset: int, whence: int) -> int:
        try:
            return os.lseek(self._descriptor, offset, whence)
        except OSError as error:
            if error.errno == errno.ENXIO:  # behind the end of the file, or a hole up to it
                return _ENDLESS
            if error.errno in (errno.EINVAL, errno.EBADF, errno.ESPIPE):
                return offset if whence == os.SEEK_DATA else _ENDLESS
            raise
