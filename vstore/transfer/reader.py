"""Reader: the bytes of a chain by many threads at once; Window: the piece of a disk that one of them works on.

    extents (tables are cached, so one thread at a time)  ->  windows  ->  fill (any number of threads)

Whole compressed blocks in a row are read and unpacked by the data plane in one call, without the lock and the GIL. What
it cannot unpack is fetched under the lock, and decompressed outside of it, by the image, which says what is wrong. What
two readers have in the same place of the same file is the same, and what both have as zeros is too: `differing` tells
the rest. What lies behind the end of a file is zeros; but a file that has become shorter is an error.
"""

import mmap
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from formats import direct_io, plain_io
from formats.errors import CorruptImage
from formats.image import SECTOR, Cipher, Image, Layer, LayerFlags
from vstore.transfer.extents import Extent, extents

STEP = 1 << 20  # bytes that one thread moves at once
_ZEROS = bytes(STEP)

Pair = tuple[Extent, Extent | None]


@dataclass(slots=True)
class Window:
    """Bytes `start` to `end` of the disk. `pairs`: what is to be looked at there, in order, with what it is held
    against."""

    start: int
    end: int
    pairs: list[Pair] = field(default_factory=list)


class Reader:
    """Of opened images, the top one first, or of none; they stay the caller's. Raises OSError, ImageError."""

    def __init__(self, images: Sequence[Image]) -> None:
        self._images = images
        self._layers = [image.layers for image in images]
        self._lock = threading.Lock()
        self._files: dict[int, tuple[int, int]] = {}
        self._begun = {
            layer.descriptor: _length(layer.descriptor)
            for layers in self._layers
            for layer in layers
            if layer.descriptor >= 0
        }
        self._ends = dict(self._begun)

    @property
    def length(self) -> int:
        """Bytes of the disk; 0 where there is no image at all."""
        return self._images[0].geometry.length if self._images else 0

    @property
    def waits(self) -> bool:
        """Whether reading may wait for a disk."""
        return not all(layer.flags & LayerFlags.INSTANT for layers in self._layers for layer in layers)

    def extents(self, start: int, end: int) -> Iterator[Extent]:
        """As `extents.extents`, and zeros behind the end of the disk; what is a hole of a file reads as zeros."""
        if start < self.length:
            walk = extents(self._images, start, min(end, self.length), look_into_files=True)
            while (extent := self._next(walk)) is not None:
                yield extent
        if end > self.length and start < end:
            yield Extent(max(start, self.length), end, 0, False, True)

    def _next(self, walk: Iterator[Extent]) -> Extent | None:
        with self._lock:
            return next(walk, None)

    def place(self, extent: Extent) -> tuple[int, int, int] | None:
        """Device, inode and offset of its first byte; None where it has no place of its own."""
        if extent.zero or extent.offset is None:
            return None
        descriptor = self._layers[extent.depth][extent.layer].descriptor
        if descriptor not in self._files:
            status = os.fstat(descriptor)
            self._files[descriptor] = status.st_dev, status.st_ino
        return *self._files[descriptor], extent.offset

    def plain(self, extent: Extent) -> tuple[int, int, int] | None:
        """The descriptor, and offset and number of bytes in its file that can be copied as they are; what the extent
        has more lies behind the end of the file. None: they must be made, or need care in reading."""
        if extent.zero or extent.offset is None or self._images[extent.depth].cipher is not None:
            return None
        layer = self._layers[extent.depth][extent.layer]
        if layer.descriptor < 0 or layer.alignment > 1:
            return None
        offset, length = extent.offset, extent.end - extent.start
        if offset + length > self._ends[layer.descriptor]:  # it may have grown
            self._ends[layer.descriptor] = self._end(layer.descriptor)
            length = max(0, min(length, self._ends[layer.descriptor] - offset))
        return layer.descriptor, offset, length

    def check(self) -> None:
        """That no file is shorter than it was at first. Raises CorruptImage."""
        for descriptor in self._begun:
            self._end(descriptor)

    def _end(self, descriptor: int) -> int:
        length, begun = _length(descriptor), self._begun[descriptor]
        if length < begun:
            raise CorruptImage(
                f"{self._name(descriptor)} was cut from {begun} to {length} bytes while it was read; what it held is "
                "lost, so begin anew with what is left"
            )
        return length

    def _name(self, descriptor: int) -> str:
        for image, layers in zip(self._images, self._layers, strict=True):
            if descriptor in [layer.descriptor for layer in layers]:
                return str(image.info()["filename"])
        return "a file"

    def fill(self, view: memoryview, extent: Extent) -> None:
        """The bytes of the extent, all of them, into as long a view."""
        if extent.zero:
            clear(view)
        elif extent.compressed:
            self._decompress(view, extent)
        else:
            assert extent.offset is not None
            layer = self._layers[extent.depth][extent.layer]
            cipher = self._images[extent.depth].cipher
            if cipher is not None:
                _decrypt(cipher, layer, extent.offset, view)
            elif layer.descriptor < 0:
                clear(view)
            elif layer.alignment > 1:
                data = direct_io.read(layer.descriptor, extent.offset, len(view), layer.alignment)
                view[: len(data)] = data
                self._lack(layer.descriptor, view[len(data) :])
            else:
                self._lack(layer.descriptor, view[_read(layer.descriptor, extent.offset, view) :])

    def _lack(self, descriptor: int, view: memoryview) -> None:
        """What the file does not have, because it ends before, is zeros."""
        if len(view):
            self._end(descriptor)
            clear(view)

    def _decompress(self, view: memoryview, extent: Extent) -> None:
        image = self._images[extent.depth]
        size, at = image.geometry.block_size, extent.start
        while at < extent.end:
            block, within = divmod(at, size)
            with self._lock:
                decompress = image.fetch(block)
            take = min(size - within, extent.end - at)
            view[at - extent.start : at - extent.start + take] = memoryview(decompress())[within : within + take]
            at += take

    def fill_row(self, view: memoryview, start: int, extents_: Iterable[Extent]) -> None:
        """The same of many in order, into the view of the disk from `start` on; gaps between them become zeros."""
        at = start
        packed: list[Extent] = []
        for extent in extents_:
            if packed and (extent.start != at or extent.depth != packed[0].depth or not self._packed(extent)):
                self._unpack(view, start, packed)
                packed = []
            clear(view[at - start : extent.start - start])
            at = extent.end
            if self._packed(extent):
                packed.append(extent)
            else:
                self.fill(view[extent.start - start : at - start], extent)
        self._unpack(view, start, packed)
        clear(view[at - start :])

    def _packed(self, extent: Extent) -> bool:
        """Whether it is one whole block that the data plane may be able to unpack."""
        if not extent.packed:
            return False
        size, layer = self._images[extent.depth].geometry.block_size, self._layers[extent.depth][0]
        return extent.end - extent.start == size and not extent.start % size and layer.alignment == 1

    def _unpack(self, view: memoryview, start: int, packed: Sequence[Extent]) -> None:
        done = 0
        layer = self._layers[packed[0].depth][0] if packed else None
        packing = int(layer.flags & (LayerFlags.DEFLATE | LayerFlags.ZSTD)) if layer is not None else 0
        if layer is not None and packing:
            from vstore.dataplane.native import ffi, lent, lib  # which most sources do without

            size = packed[0].end - packed[0].start
            offsets = ffi.new("uint64_t[]", [extent.packed for extent in packed])
            with lent(view[packed[0].start - start : packed[-1].end - start]) as where:
                done = max(0, lib.vs_unpack(layer.descriptor, packing, offsets, len(packed), where, size))
        for extent in packed[done:]:
            self.fill(view[extent.start - start : extent.end - start], extent)


def _decrypt(cipher: Cipher, layer: Layer, offset: int, view: memoryview) -> None:
    """By whole sectors, as they were encrypted."""
    start, end = offset // SECTOR * SECTOR, -(-(offset + len(view)) // SECTOR) * SECTOR
    if layer.alignment > 1:
        data = direct_io.read(layer.descriptor, start, end - start, layer.alignment)
    else:
        data = plain_io.read(layer.descriptor, start, end - start)
    view[:] = cipher.decrypt(start, data.ljust(end - start, b"\0"))[offset - start : offset - start + len(view)]


def _read(descriptor: int, offset: int, view: memoryview) -> int:
    """How many bytes there were, fewer only at the end of the file."""
    done = 0
    while done < len(view) and (count := os.preadv(descriptor, [view[done:]], offset + done)):
        done += count
    return done


def _length(descriptor: int) -> int:
    return os.lseek(descriptor, 0, os.SEEK_END)


def clear(view: memoryview) -> None:
    """Makes it all zeros."""
    for at in range(0, len(view), STEP):
        part = view[at : at + STEP]
        part[:] = _ZEROS[: len(part)]


class Buffers:
    """One buffer of page-aligned memory for each thread that asks, and freed with it."""

    def __init__(self, length: int) -> None:
        self._length = length
        self._local = threading.local()

    def view(self) -> memoryview:
        """This thread's own."""
        if not hasattr(self._local, "view"):
            self._local.view = memoryview(mmap.mmap(-1, self._length))
        view: memoryview = self._local.view
        return view


def alone(extents_: Iterable[Extent], wanted: Callable[[Extent], bool]) -> Iterator[Pair]:
    """Those that are wanted, each held against nothing."""
    for extent in extents_:
        if wanted(extent):
            yield extent, None


def paired(one: Reader, two: Reader, start: int, end: int) -> Iterator[tuple[Extent, Extent]]:
    """The extents of both, cut to the same pieces."""
    others = two.extents(start, end)
    other: Extent | None = None
    for extent in one.extents(start, end):
        at = extent.start
        while at < extent.end:
            if other is None or other.end <= at:
                other = next(others)
            stop = min(extent.end, other.end)
            yield extent.part(at, stop), other.part(at, stop)
            at = stop


def differing(one: Reader, two: Reader, start: int, end: int) -> Iterator[tuple[Extent, Extent]]:
    """Where the bytes of both may differ."""
    for extent, other in paired(one, two, start, end):
        place = one.place(extent)
        if not (extent.zero and other.zero) and (place is None or place != two.place(other)):
            yield extent, other


def windows(pairs: Iterable[Pair], step: int) -> Iterator[Window]:
    """Pairs as windows that begin at multiples of `step`; where there are no pairs there is no window."""
    window: Window | None = None
    for extent, other in pairs:
        at = extent.start
        if window is not None and extent.end <= window.start + step:  # most extents lie in one window
            window.pairs.append((extent, other))
            window.end = extent.end
            continue
        while at < extent.end:
            start = at // step * step
            stop = min(extent.end, start + step)
            if window is None or window.start != start:
                if window is not None:
                    yield window
                window = Window(start, start)
            window.pairs.append((extent.part(at, stop), None if other is None else other.part(at, stop)))
            window.end = at = stop
    if window is not None:
        yield window
