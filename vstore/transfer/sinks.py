"""Sinks: how the blocks of a new image are written, each kind of image by its shortest way.

    FlatSink         one row (raw): bytes at their own offset, zeros only over what an earlier try left
    MapSink          a map: reserved room in large pieces, data into it, one commit at the end
    CompressingSink  a map: each block compressed by the thread that has it, laid down when its turn comes

Nothing of the image is in use yet, so nothing is durable, and need not be, before `finish`.
"""

import abc
import errno
import itertools
import os
from array import array
from collections import deque
from collections.abc import Iterator, Sequence

from formats import space
from formats.errors import InvalidArgument, UnsupportedFeature
from formats.image import SECTOR, BlockState, Change, Cipher, HostExtent, Image, entry
from formats.qcow2 import compression
from formats.qcow2.image import Qcow2
from vstore.transfer.blocks import Span
from vstore.transfer.line import Turn

_RESERVED = 64 << 20  # bytes of room taken at once
_STAGED = 1 << 10  # changes taken into the map at once
_BATCH = 1 << 18  # and committed
_PLACE = (1 << 48) - 1
_NOWHERE = (1 << 64) - 1

Room = tuple[int, int]


class Sink(abc.ABC):
    """`unit`: bytes that are written or left out as a whole. `ordered`: turns have to come in the order of the disk.
    `takes_stretches`: the data plane may write to `descriptor`: each unit at its own offset from `base` on, or where
    that has none into `rooms`, one behind the other. Raises OSError, ImageError."""

    unit: int
    ordered = True
    takes_stretches = False
    descriptor: int

    @abc.abstractmethod
    def put(self, start: int, view: memoryview, data: Sequence[Span], zeros: Sequence[Span], turn: Turn) -> None:
        """The disk from `start` on is `view`; written are the spans of it (whole units, the last up to the disk's end)
        in `data`, and those in `zeros` are made to read as zeros, whatever lies beneath."""

    def base(self, start: int) -> int | None:
        """The offset of the unit at `start`, and so of all others; None: it gets a place when it is written."""
        raise NotImplementedError

    def rooms(self, start: int, end: int, *, anew: bool) -> Sequence[Room]:
        """Offset and length of where units of the disk from `start` to `end` may lie, in the order of their use: what
        has to be added to the rooms told before, unless it begins `anew`."""
        raise NotImplementedError

    def took(self, start: int, places: "array[int]") -> None:
        """What became of the units from `start` on: their offsets, or NOWHERE for zeros; in the order of `rooms`."""
        raise NotImplementedError

    def note(self) -> None:
        """What was told goes into the map, while the next stretch is on its way."""
        raise NotImplementedError

    @abc.abstractmethod
    def finish(self) -> None:
        """All of it is there, and durable."""


def write(descriptor: int, offset: int, view: memoryview, cipher: Cipher | None = None) -> None:
    """Writes all of it, through the cipher if there is one."""
    if cipher is not None:
        view = memoryview(cipher.encrypt(offset, bytes(view)))
    done = 0
    while done < len(view):
        done += os.pwrite(descriptor, view[done:], offset + done)


class FlatSink(Sink):
    """A new image that is one row, from its first byte on. One that is encrypted reads as noise where nothing was
    written, so that all of it has to be."""

    ordered = False

    def __init__(self, image: Image, unit: int) -> None:
        (run, *_) = image.load(0, 1)
        self.takes_stretches = image.cipher is None
        self.descriptor = image.layers[run.entry >> 48 & 0xFFF].descriptor
        self._first = (run.entry & _PLACE) * SECTOR
        self._cipher = image.cipher
        self.unit = unit

    def put(self, start: int, view: memoryview, data: Sequence[Span], zeros: Sequence[Span], turn: Turn) -> None:  # noqa: ARG002
        for first, end in data:
            write(self.descriptor, self._first + start + first, view[first:end], self._cipher)
        for first, end in zeros:
            self._clear(self._first + start + first, end - first)

    def _clear(self, offset: int, length: int) -> None:
        try:
            space.punch(self.descriptor, offset, length)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.ENOTTY):
                raise
            space.write_zeros(self.descriptor, offset, length)

    def base(self, start: int) -> int | None:
        return self._first + start

    def rooms(self, start: int, end: int, *, anew: bool) -> Sequence[Room]:  # noqa: ARG002
        return ()

    def took(self, start: int, places: "array[int]") -> None:
        """Nobody needs to know."""

    def note(self) -> None:
        """There is no map."""

    def finish(self) -> None:
        os.fdatasync(self.descriptor)


class MapSink(Sink):
    """A new image with a map. `placed`: its blocks have places already (preallocation)."""

    def __init__(self, image: Image, *, placed: bool = False) -> None:
        self._image, self._placed = image, placed
        self.unit = image.geometry.block_size
        self._descriptors = [layer.descriptor for layer in image.layers]
        self.descriptor = self._descriptors[0]
        self.takes_stretches = not placed and not image.identity and image.cipher is None
        self._room: deque[tuple[int, int]] = deque()  # offset, blocks
        self._changes: list[Change] = []
        self._staged = 0
        self._promised = 0  # units whose stretches are under way
        self._lent = 0  # rooms that those have heard of
        self._told: deque[tuple[int, array[int]]] = deque()

    def put(self, start: int, view: memoryview, data: Sequence[Span], zeros: Sequence[Span], turn: Turn) -> None:
        with turn:
            places = [(first, end, self._places(start + first, end - first)) for first, end in data]
            self._zero(start, zeros)
            self._stage()
        for first, end, found in places:
            at = first
            for layer, offset, count in found:
                stop = min(at + count * self.unit, end)
                write(self._descriptors[layer], offset, view[at:stop], self._image.cipher)
                at = stop

    def _places(self, start: int, length: int) -> list[tuple[int, int, int]]:
        """Layer, offset and number of blocks in a row, for the blocks that begin at `start`."""
        block, count = start // self.unit, -(-length // self.unit)
        found = self._new_places(block, count)
        for layer, offset, blocks in found:
            first = entry(BlockState.DATA, layer, offset)
            step = self.unit // SECTOR
            self._changes += [Change(block + n, first + n * step) for n in range(blocks)]
            block += blocks
        return found

    def _new_places(self, block: int, count: int) -> list[tuple[int, int, int]]:
        if self._image.identity:
            return [(1, block * self.unit, count)]
        if self._placed:
            return self._old_places(block, count)
        return [(0, offset, blocks) for offset, blocks in self._take(count)]

    def _old_places(self, block: int, count: int) -> list[tuple[int, int, int]]:
        runs = self._image.load(block, count)
        states = {run.entry >> 60 for run in runs}
        assert states <= {BlockState.DATA, BlockState.PARTIAL}, "preallocation gives every block a place"
        return [(run.entry >> 48 & 0xFFF, (run.entry & _PLACE) * SECTOR, run.count) for run in runs]

    def _take(self, count: int) -> list[tuple[int, int]]:
        """Offset and number of blocks, out of what is reserved in advance."""
        taken = []
        while count:
            if not self._room:
                self._reserve(count)
            offset, blocks = self._room.popleft()
            take = min(blocks, count)
            if take < blocks:
                self._room.appendleft((offset + take * self.unit, blocks - take))
            taken.append((offset, take))
            count -= take
        return taken

    def _reserve(self, count: int) -> None:
        most = max(count, _RESERVED // self.unit)
        self._room += [(extent.offset, extent.blocks) for extent in self._image.reserve(most)]

    def base(self, start: int) -> int | None:  # noqa: ARG002
        return None

    def rooms(self, start: int, end: int, *, anew: bool) -> Sequence[Room]:
        if anew:
            self._promised = self._lent = 0
        self._promised += -(-(end - start) // self.unit)
        missing = self._promised - sum(blocks for _, blocks in self._room)
        if missing > 0:
            self._reserve(missing)
        lent, self._lent = self._lent, len(self._room)
        return [(offset, blocks * self.unit) for offset, blocks in itertools.islice(self._room, lent, None)]

    def took(self, start: int, places: "array[int]") -> None:
        before = len(self._room)
        self._take(len(places) - places.count(_NOWHERE))
        self._lent -= before - len(self._room)
        self._promised -= len(places)
        self._told.append((start, places))

    def note(self) -> None:
        while self._told:
            start, places = self._told.popleft()
            block = start // self.unit
            for first, count in _rows(places, self.unit):
                self._image.stage_row(block + first, places[first], count)

    def _zero(self, start: int, zeros: Sequence[Span]) -> None:
        word = entry(BlockState.ZERO)
        for first, end in zeros:
            block, count = (start + first) // self.unit, -(-(end - first) // self.unit)
            self._changes += [Change(block + n, word) for n in range(count)]

    def _stage(self) -> None:
        """What has places so far goes into the map, while other threads move bytes; their data may still be on the
        way, so nothing but memory is saved by a commit now and then."""
        if len(self._changes) < _STAGED:
            return
        changes, self._changes = self._changes, []
        self._staged += len(changes)
        if self._staged < _BATCH:
            self._image.stage(changes)
        else:
            self._staged = 0
            self._image.commit(changes)

    def finish(self) -> None:
        self._image.free([HostExtent(offset, blocks) for offset, blocks in self._room])  # the new tables lie there then
        self._room.clear()
        self._image.commit(self._changes)


def _rows(places: "array[int]", unit: int) -> Iterator[tuple[int, int]]:
    """Index and number of those that follow each other."""
    first, count, following = 0, 0, _NOWHERE
    for n, place in enumerate(places):
        if place == following and count:
            count += 1
        else:
            if count:
                yield first, count
            first, count = n, int(place != _NOWHERE)
        following = place + unit
    if count:
        yield first, count


class CompressingSink(MapSink):
    """As MapSink, each block compressed unless it does not get shorter."""

    def __init__(self, image: Image, level: int | None) -> None:
        super().__init__(image)
        self.takes_stretches = False
        if not isinstance(image, Qcow2) or image.identity:
            kind = image.format if not isinstance(image, Qcow2) else "qcow2 images with a data file"
            raise UnsupportedFeature(f"{kind} hold nothing compressed; compression is for qcow2 images")
        if image.encrypted:
            raise UnsupportedFeature(
                "what is compressed is not encrypted, so an encrypted image holds nothing compressed"
            )
        self._qcow2 = image
        self._kind, self._level = image.header.compression, level
        self._check_level()

    def _check_level(self) -> None:
        try:
            compression.compress(self._kind, bytes(SECTOR), self._level)
        except (ValueError, TypeError) as error:
            raise InvalidArgument(f"level {self._level} is none of this kind of compression: {error}") from error

    def put(self, start: int, view: memoryview, data: Sequence[Span], zeros: Sequence[Span], turn: Turn) -> None:
        blocks = [at for first, end in data for at in range(first, end, self.unit)]
        packed = [(at, self._packed(view[at : at + self.unit])) for at in blocks]
        with turn:
            for at, shorter in packed:
                if shorter is None:
                    self._put_plain(start + at, view[at : at + self.unit])
                else:
                    self._qcow2.put_compressed((start + at) // self.unit, shorter)
            self._zero(start, zeros)
            self._stage()

    def _packed(self, block: memoryview) -> bytes | None:
        """None where it would not get shorter. A block at the end of the disk is filled up with zeros."""
        whole = block if len(block) == self.unit else bytes(block).ljust(self.unit, b"\0")
        data = compression.compress(self._kind, whole, self._level)
        return data if len(data) < self.unit else None

    def _put_plain(self, start: int, block: memoryview) -> None:
        ((layer, offset, _),) = self._places(start, len(block))
        write(self._descriptors[layer], offset, block)
