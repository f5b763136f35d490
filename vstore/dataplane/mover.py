"""Mover: long stretches of a disk copied from file to file in C; the functions of mover.h as methods."""

import errno
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

from vstore.dataplane.native import checked, ffi, lib, made

_PATIENCE = 50  # milliseconds between two words on how far it got
NOWHERE = (1 << 64) - 1  # the place of a unit of zeros

Piece = tuple[int, int, int, int]
"""Where it begins on the disk, its length, its offset in the file, the file's descriptor."""
Room = tuple[int, int]
"""Offset and length."""


class Mover:
    """Writes to `target`, a descriptor, units (bytes, a power of two) that hold anything but zeros. Raises OSError."""

    def __init__(self, target: int, unit: int, threads: int) -> None:
        self._unit = unit
        self._mover = made(lib.vs_mover_new(target, unit, threads), f"mover_new({target}, {unit}, {threads})")
        self._line: deque[tuple[array[int], list[Any]]] = deque()  # places, and what C looks into meanwhile

    def start(
        self, start: int, end: int, pieces: Sequence[Piece], rooms: Sequence[Room] = (), *, base: int | None = None
    ) -> None:
        """Begins with bytes `start` to `end` of the disk, of which what is in no piece is zeros; two such stretches may
        be under way. With `base` each unit has a place of its own behind it; else they lie one behind the other in the
        rooms, which are added to those that are left, and `wait` tells where."""
        places = array("Q", bytes(0 if base is not None else -(-(end - start) // self._unit) * 8))
        cells = array("Q", [number for piece in pieces for number in piece])
        bounds = array("Q", [number for room in rooms for number in room])
        held = [ffi.from_buffer(words) for words in (cells, bounds, places)]
        stretch = ffi.new("vs_stretch *")
        stretch.start, stretch.end, stretch.base = start, end, base or 0
        stretch.pieces, stretch.piece_count = ffi.cast("vs_piece *", held[0]), len(pieces)
        stretch.rooms, stretch.room_count = ffi.cast("vs_room *", held[1]), len(rooms)
        stretch.places = ffi.cast("uint64_t *", held[2]) if base is None else ffi.NULL
        checked(lib.vs_mover_start(self._mover, stretch), f"mover_start({start}, {end})")
        self._line.append((places, held))

    def wait(self, reached: Callable[[int], None]) -> "array[int]":
        """When the oldest stretch is written, if not durable: the place of each unit, or NOWHERE; none where they have
        their own. `reached` hears now and then up to where the disk was read; what it raises ends the wait only.
        OSError with ENODATA: a file ended before its piece did."""
        read = ffi.new("uint64_t *")
        while (error := lib.vs_mover_wait(self._mover, _PATIENCE, read)) == -errno.ETIMEDOUT:
            reached(read[0])
        checked(error, "copying")
        return self._line.popleft()[0]

    def close(self) -> None:
        """Waits for what is under way."""
        mover, self._mover = self._mover, ffi.NULL
        lib.vs_mover_free(mover)
        self._line.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
