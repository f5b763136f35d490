"""Commits: room for new blocks ahead of need, and batches of map changes made durable, one after the other.

    volume (C) -- half of the window is used --> reserve: more room, twice as much each time when it goes fast
               -- many changes, or old ones ---> commit
    FLUSH ------------------------------------->   |  begin   blocks are filled; writes go on
    FLUSH --- joins the commit that comes next     |  image   tables, barriers
    FLUSH --/                                      |  end     the map has the blocks for good

`turn` is held for a whole commit, so one runs at a time; `lock` only while the image is at work, so room is found also
while blocks are filled. Whoever needs both takes `turn` first. Writes never wait for either.
"""

import contextlib
import errno
import threading
import time
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from concurrent.futures import Future

from formats.errors import ImageError
from formats.image import SECTOR, Change, HostExtent, Image
from vstore.dataplane import MapChange, Volume
from vstore.kept_places import KeptPlaces

MOST_PENDING = 1 << 16  # changes that wait for a commit
MOST_BLOCKS = 1 << 18  # that the image changes at once; more only take memory
WINDOW_BYTES = 64 << 20  # reserved ahead of need, at first
MOST_WINDOW_BYTES = 1 << 30
FEWEST_RESERVED = 16  # blocks
SOON = 1.0  # seconds in which a window that is used up was too small
PLACE = (1 << 48) - 1  # of an entry, in sectors


class Commits:
    """Raises OSError. `lock` guards the image."""

    def __init__(self, volume: Volume, image: Image, lock: threading.RLock) -> None:
        self._volume = volume
        self._image = image
        self._lock = lock
        self.turn = threading.RLock()
        self.kept = KeptPlaces(volume, image, lock)
        size = image.geometry.block_size
        self._window_blocks = max(FEWEST_RESERVED, WINDOW_BYTES // size)
        self._most_window = max(self._window_blocks, MOST_WINDOW_BYTES // size)
        self._refilled = float("-inf")
        self._reserving = False
        self._freed = False
        self._joining = threading.Lock()
        self._next: Future[None] | None = None
        self.waiting = 0  # flushes that share the next commit

    # ---- room ----

    def refill(self) -> None:
        """Makes room ahead of need, once writing has begun: one to two times what is reserved at once."""
        with self._lock:
            if not self._reserving or self._volume.window >= self._window_blocks:
                return
            now = time.monotonic()
            if now - self._refilled < SOON:
                self._window_blocks = min(2 * self._window_blocks, self._most_window)
            self._refilled = now
            self.reserve()

    def reserve_if_empty(self) -> None:
        """For a write that found no room."""
        with self._lock:
            if not self._volume.window:
                self.reserve()

    def reserve(self) -> None:
        """Adds to the window of room for new blocks; where there is little left, as much as there is."""
        with self._lock:
            self._reserving = True
            self._drain()
            for extent in self._room(self._window_blocks):
                self._volume.give(0, extent.offset, extent.blocks, zeroed=self._image.empty(extent))

    def _room(self, blocks: int) -> Sequence[HostExtent]:
        while True:
            try:
                return self._image.reserve(blocks)
            except OSError as error:
                if error.errno != errno.ENOSPC or blocks == 1:
                    raise
            blocks //= 2

    def _drain(self) -> None:
        """What a commit has freed may still be read or written by I/O that began before; the image hands it out again,
        or makes tables of it, only when that has ended."""
        if self._freed:
            self._volume.drain()
            self._freed = False

    def close(self) -> None:
        """Gives back what is left of the window. Call it after the last commit."""
        for _layer, offset, blocks in self._volume.take_back():
            self._image.free([HostExtent(offset, blocks)])

    # ---- commits ----

    def commit(self) -> bool:
        """Makes what was allocated and zeroed durable with all that was written; False when there was nothing. What one
        block meets (its parent cannot be read, say) is raised when all others are durable."""
        with self.turn:
            done = False
            while self._volume.pending:
                changes, failed = self._volume.commit_begin()
                try:
                    self._commit(changes)
                except ImageError as error:
                    raise OSError(errno.EIO, str(error)) from error
                done |= bool(changes)
                if failed is None:
                    break
                if failed.errno != errno.ENOBUFS:  # what a snapshot holds has to move
                    raise failed
                self.reserve_if_empty()
            return done

    def _commit(self, changes: Sequence[MapChange]) -> None:
        done = False
        try:
            with self._lock, self._losses_shared():
                for batch in _batches(changes):
                    self._drain()
                    self._image.commit(batch)
                    self.kept.note(batch)
                    self._freed = True
            done = True
        finally:
            self._volume.commit_end(committed=done)
            with self._lock:
                self._volume.trim()
            self._free(changes)

    def _free(self, changes: Sequence[MapChange]) -> None:
        """Places that nothing names after all."""
        unused = [HostExtent((change.unused & PLACE) * SECTOR, 1) for change in changes if change.unused]
        if unused:
            with self._lock:
                self._image.free(unused)
                self._freed = True

    @contextlib.contextmanager
    def _losses_shared(self) -> Iterator[None]:
        """The image and the volume flush the same open files, and a lost write is told to one of them only."""
        self._share_losses()
        try:
            yield
        finally:
            self._share_losses()

    def _share_losses(self) -> None:
        for number, layer in enumerate(self._image.layers):
            if layer.file is not None:
                layer.file.lost = self._volume.lost(number, layer.file.lost)

    def flush(self) -> None:
        """Makes all durable that was written before the call. Calls that come while a commit runs share the next."""
        with self._joining:
            shared, first = self._next, self._next is None
            if shared is None:
                shared = self._next = Future()
                self.waiting = 0
            self.waiting += 1
        if first:
            with self.turn:
                with self._joining:
                    self._next = None  # who comes from here on may have written what this one does not see
                self._flush(shared)
        shared.result()

    def _flush(self, shared: Future[None]) -> None:
        try:
            if not self.commit():
                with self._losses_shared():
                    self._volume.flush()
        except BaseException as error:
            shared.set_exception(error)
        else:
            shared.set_result(None)


def _latest(changes: Sequence[MapChange]) -> Iterator[MapChange]:
    """Each block once, as the last of them has it. A row of zeros comes before what was written into it since: were a
    commit that failed to try both again, the zeros would let go of the place that the write has got by then."""
    single = {change.block: change for change in changes if change.blocks == 1}
    if len(single) == len(changes):
        yield from changes
        return
    blocks = sorted(single)
    for change in changes:
        if change.blocks > 1:
            yield from _around(change, blocks)
    yield from single.values()


def _around(row: MapChange, blocks: Sequence[int]) -> Iterator[MapChange]:
    """What is left of it between these blocks, which are sorted."""
    at, end = row.block, row.block + row.blocks
    for place in range(bisect_left(blocks, at), bisect_left(blocks, end)):
        block = blocks[place]
        if at < block:
            yield row._replace(block=at, blocks=block - at)
        at = block + 1
    if at < end:
        yield row._replace(block=at, blocks=end - at)


def _batches(changes: Sequence[MapChange]) -> Iterator[list[Change]]:
    """For the image; rows of zeros may be far longer than it should change at once."""
    batch: list[Change] = []
    room = MOST_BLOCKS
    for change in _latest(changes):
        done = 0
        while done < change.blocks:
            count = min(room, change.blocks - done)
            batch.append(Change(change.block + done, change.entry, change.allocated, change.zero, count))
            done += count
            room -= count
            if not room:
                yield batch
                batch, room = [], MOST_BLOCKS
    if batch:
        yield batch
