"""BlockIo: a volume's blocking calls, with the map's help where they stop; and the keeper, who helps ahead of need.

    read ----> volume ----> done                 ENODATA: the map is not loaded there, or a block must be composed
    write       | ^                              ENOBUFS: the window of room for new blocks is empty
    zero        v |
              BlockMap

A range is tried whole first. Where that fails, the map is loaded there and the range is gone through block by block, so
that only the blocks which need help pay for it.
"""

import contextlib
import errno
import itertools
import logging
import os
import select
import threading
import time
from collections.abc import Iterator

from formats.errors import ImageError
from vstore import commits
from vstore.block_map import BlockMap
from vstore.commits import Commits
from vstore.dataplane import Volume

log = logging.getLogger(__name__)

Bytes = bytes | bytearray | memoryview

PAUSE = 1.0
OLDEST_PENDING = 5  # seconds after which what is pending is committed
LOADED_AT_ONCE = 1 << 15  # blocks of a range to be zeroed


class BlockIo:
    """Raises OSError. Offsets and lengths in bytes, of any alignment, inside the disk."""

    def __init__(self, volume: Volume, block_map: BlockMap, block_size: int) -> None:
        self._volume = volume
        self._map = block_map
        self._block_size = block_size
        self._steps = itertools.count(1)
        self._exclusive = 0  # of the last of them: a range began, or ceased, to be held against readers

    def read(self, offset: int, length: int) -> bytes:
        with _unless_unmapped():
            return self._volume.read(offset, length)
        before = self._exclusive
        data = self._read_pieces(offset, length)
        if before == self._exclusive:
            return data
        with self._volume.held(offset, length):  # a step came between two pieces, which is to be seen whole
            return self._read_pieces(offset, length)

    def _read_pieces(self, offset: int, length: int) -> bytes:
        return b"".join(self._read_piece(at, count) for at, count in self._pieces(offset, length, self._block_size))

    def _read_piece(self, offset: int, length: int) -> bytes:
        """Of one block."""
        block, within = divmod(offset, self._block_size)
        while True:  # the map may drop what was just loaded
            self._map.load(offset, length)
            with _unless_unmapped():
                return self._volume.read(offset, length)
            composed = self._map.compose(block)[within : within + length]
            with _unless_unmapped():
                return self._volume.read_over(offset, composed)

    def write(self, offset: int, data: Bytes) -> None:
        loaded = False
        while True:
            try:
                self._volume.write(offset, data)
                return
            except OSError as error:
                self._help(error, offset, len(data), loaded=loaded)
                loaded = error.errno == errno.ENODATA and not loaded

    def _help(self, error: OSError, offset: int, length: int, *, loaded: bool) -> None:
        """Does what a write needs before it is tried again; raises `error` where nothing can be done."""
        if error.errno == errno.ENOBUFS:
            self._map.commits.reserve_if_empty()
        elif error.errno == errno.ENODATA and self._map.allocates:
            self._map.load(offset, length)
            if loaded:
                self._map.settle(offset, length)
        else:
            raise error

    def zero(self, offset: int, length: int, *, deallocate: bool) -> None:
        """The map says so where it can; else what lies in a place of its own is zeroed there, and what shows through
        from elsewhere is written over."""
        if self._zeroed(offset, length, deallocate):
            return
        for at, count in self._pieces(offset, length, LOADED_AT_ONCE * self._block_size):
            self._map.load(at, count)
            if not self._zeroed(at, count, deallocate):
                for place, size in self._pieces(at, count, self._block_size):
                    if not self._zeroed(place, size, deallocate):
                        self.write(place, bytes(size))

    def _zeroed(self, offset: int, length: int, deallocate: bool) -> bool:
        """False where the map must be loaded, or a block composed."""
        while True:
            try:
                self._volume.zero(offset, length, deallocate)
                return True
            except OSError as error:
                if error.errno == errno.ENODATA:
                    return False
                if error.errno != errno.ENOBUFS:
                    raise
            self._map.commits.reserve_if_empty()

    def status(self, offset: int, length: int) -> tuple[int, int]:
        """For how many bytes from `offset` on it is so, as `Volume.status`. Not farther than the map is loaded."""
        length = min(length, LOADED_AT_ONCE * self._block_size)
        with _unless_unmapped():
            return self._volume.status(offset, length)
        self._map.load(offset, 1)
        with _unless_unmapped():
            return self._volume.status(offset, length)
        return min(length, self._block_size - offset % self._block_size), 1  # to be composed, or dropped meanwhile

    @contextlib.contextmanager
    def held(self, offset: int, length: int, *, exclusive: bool = False) -> Iterator[None]:
        """Inside, nobody but this thread writes to the range, on whatever path; others wait. With `exclusive` nobody
        reads there either."""
        with self._volume.held(offset, length, exclusive=exclusive):
            try:
                if exclusive:
                    self._exclusive = next(self._steps)
                yield
            finally:
                if exclusive:
                    self._exclusive = next(self._steps)

    def flush(self) -> None:
        """Makes everything written so far durable, with the tables that name it."""
        if self._map.allocates:
            self._map.commits.flush()
        else:
            self._volume.flush()

    @staticmethod
    def _pieces(offset: int, length: int, size: int) -> Iterator[tuple[int, int]]:
        """The range, cut at multiples of `size`."""
        end = offset + length
        while offset < end:
            count = min(size - offset % size, end - offset)
            yield offset, count
            offset += count


@contextlib.contextmanager
def _unless_unmapped() -> Iterator[None]:
    """Goes on behind the block where the map must be loaded, or a block composed."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENODATA:
            raise


class Keeper:
    """Refills the window, and commits what is much or old, in a thread of its own, so that writes find room at once.

    What fails (the host's disk is full, say) is tried again every PAUSE seconds, and told of once.
    """

    def __init__(self, volume: Volume, commits: Commits) -> None:
        self._volume = volume
        self._commits = commits
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="keeper", daemon=True)
        self._thread.start()

    def _keep(self) -> None:
        descriptor = self._volume.notice_fd()
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        due = time.monotonic() + OLDEST_PENDING
        while not self._stopping.is_set():
            if poll.poll(max(0, due - time.monotonic()) * 1000):
                os.eventfd_read(descriptor)
            old = time.monotonic() >= due
            if old:
                due = time.monotonic() + OLDEST_PENDING
            full = old or self._volume.pending >= commits.MOST_PENDING
            told = False
            while not self._stopping.is_set() and not self._look(told, commit=full):
                told = True
                self._stopping.wait(PAUSE)

    def _look(self, told: bool, *, commit: bool) -> bool:
        """Whether all went well."""
        try:
            self._commits.refill()
            if commit:
                self._commits.commit()
            self._commits.kept.punch()
        except (OSError, ImageError) as error:
            if not told:
                log.warning("room for new blocks, or a commit, must wait: %s", error)
            return False
        except Exception:
            if not told:
                log.exception("room for new blocks, or a commit, must wait because of a defect of vstore")
            return False
        return True

    def stop(self) -> None:
        self._stopping.set()
        os.eventfd_write(self._volume.notice_fd(), 1)
        self._thread.join()
