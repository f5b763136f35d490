"""KeptPlaces: gives the host back what lies in clusters that a discard left to their blocks, and nobody used since.

    commit: the tables say ZERO --> note --> (keeper, later) range held: nobody writes --> still ZERO there? --> punch

A block that keeps its place may be written to again at once, and a hole punched a moment later would swallow that. So
nobody writes to the range meanwhile, and it is looked at again. Lock order: the held range, then `lock`.
"""

import contextlib
import threading
from collections.abc import Iterable, Iterator

from formats.image import SECTOR, BlockState, Change, Discard, HostExtent, Image
from vstore.dataplane import Volume

_AT_ONCE = 4096  # blocks held at once, so that no write waits long
_PLACE = (1 << 48) - 1  # of an entry, in sectors


class KeptPlaces:
    """`lock` guards the image."""

    def __init__(self, volume: Volume, image: Image, lock: threading.RLock) -> None:
        self._volume, self._image, self._lock = volume, image, lock
        self._rows: list[tuple[int, int]] = []

    def note(self, changes: Iterable[Change]) -> None:
        """These changes are durable. Under the lock."""
        if self._image.discard is Discard.PUNCH:
            self._rows += [(change.block, change.count) for change in changes if _is_zeroed(change)]

    def punch(self) -> None:
        """Gives back the space of what was noted. Where the file cannot, it keeps it."""
        with self._lock:
            rows, self._rows = self._rows, []
        for first, count in rows:
            for block in range(first, first + count, _AT_ONCE):
                with contextlib.suppress(OSError):
                    self._punch(block, min(_AT_ONCE, first + count - block))

    def _punch(self, first: int, count: int) -> None:
        size = self._image.geometry.block_size
        end = min((first + count) * size, self._volume.length)
        if end <= first * size:  # the disk has been cut off before it
            return
        with self._volume.held(first * size, end - first * size), self._lock:
            for extent in self._extents(first, count, size):
                self._image.empty(extent)

    def _extents(self, first: int, count: int, size: int) -> Iterator[HostExtent]:
        offset = blocks = 0
        for block in range(first, first + count):
            word = self._volume.get_entry(block)
            place = (word & _PLACE) * SECTOR if word >> 60 == BlockState.ZERO else 0
            if blocks and place == offset + blocks * size:
                blocks += 1
                continue
            if blocks:
                yield HostExtent(offset, blocks)
            offset, blocks = place, int(place > 0)
        if blocks:
            yield HostExtent(offset, blocks)


def _is_zeroed(change: Change) -> bool:
    """Whether nothing of it is left in its place."""
    state = change.entry >> 60
    return state == BlockState.ZERO or (state == BlockState.PARTIAL and not change.allocated)
