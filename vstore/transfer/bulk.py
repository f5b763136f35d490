"""Bulk: what lies in files as it is, moved in stretches of 64 MiB by the data plane; Python says only where all lies.

    here       |plan 1|plan 2|      |plan 3|note 1|plan 4|note 2|   plan: pieces of the source, rooms of the target
    C threads         |copy 1 .........|copy 2 .........|copy 3 ..   note: the target's map learns what became of one

Stretches in which something has to be decompressed, decrypted or aligned are left to others.
"""

import itertools
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING

from vstore.transfer.progress import Meter
from vstore.transfer.reader import Reader, Window
from vstore.transfer.sinks import Sink

if TYPE_CHECKING:
    from vstore.dataplane.mover import Mover, Piece

STRETCH = 64 << 20  # bytes
_LINE = 2  # stretches under way

Plan = tuple[Window, "list[Piece] | None"]


class Bulk:
    """From `source` into `sink`, which takes stretches. Raises OSError, ImageError."""

    def __init__(self, source: Reader, sink: Sink, threads: int, meter: Meter) -> None:
        self._source, self._sink, self._threads, self._meter = source, sink, threads, meter

    @property
    def step(self) -> int:
        """Bytes of a window to be planned; whole units of the sink."""
        return max(STRETCH, self._sink.unit)

    def planned(self, windows: Iterator[Window]) -> Iterator[tuple[bool, Iterator[Plan]]]:
        """Windows one after the other that can be moved here (True), and those that cannot."""
        plans = ((window, self._pieces(window)) for window in windows)
        return itertools.groupby(plans, lambda plan: plan[1] is not None)

    def _pieces(self, window: Window) -> "list[Piece] | None":
        pieces = []
        for extent, _ in window.pairs:
            place = self._source.plain(extent)
            if place is None:
                return None
            descriptor, offset, length = place
            if length:
                pieces.append((extent.start, length, offset, descriptor))
        return pieces

    def move(self, plans: Iterator[Plan]) -> None:
        """All of them; when this returns, they are written, if not durable, and the sink knows."""
        from vstore.dataplane.mover import Mover  # which is loaded only where it is of use

        with Mover(self._sink.descriptor, self._sink.unit, self._threads) as mover:
            line: deque[Window] = deque()
            for window, pieces in plans:
                if len(line) == _LINE:
                    self._await(mover, line.popleft())
                if pieces:
                    self._start(mover, window, pieces, anew=not line)
                    line.append(window)
                self._sink.note()
            while line:
                self._await(mover, line.popleft())
                self._sink.note()

    def _start(self, mover: "Mover", window: Window, pieces: "list[Piece]", *, anew: bool) -> None:
        start, end = self._bounds(window)
        mover.start(start, end, pieces, self._sink.rooms(start, end, anew=anew), base=self._sink.base(start))

    def _await(self, mover: "Mover", window: Window) -> None:
        places = mover.wait(self._meter.reach)
        self._sink.took(self._bounds(window)[0], places)
        self._meter.reach(window.end)

    def _bounds(self, window: Window) -> tuple[int, int]:
        """The whole units that it touches."""
        unit = self._sink.unit
        end = -(-window.end // unit) * unit
        return window.pairs[0][0].start // unit * unit, min(end, self._source.length)
