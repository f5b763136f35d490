"""BlockMap: the map of a disk, merged over its image chain, as far as Python must lend the data plane a hand.

    image (top) ---+   load: a page of the map, looked up through every parent at once          volume (C)
    parent --------+-> reserve: room for new blocks, ahead of need          ------------------>  reads and writes
    grandparent ---+   commit: what was allocated becomes durable, in the top image's tables
                       compose: the bytes of a block that no single place holds (compressed, or patched together)

Pages are loaded when something is met there for the first time, so opening a gibibyte costs the same as a pebibyte.
Entries name layers by number: the top image's files first, then each parent's. What a parent holds is SHARED, whatever
it is there, because a write has to go to the top.

All calls may come from any thread; `_lock` makes one structural change at a time. Blocking.
"""

import collections
import errno
import threading

from formats.errors import ImageError
from formats.image import BlockState, Change, HostExtent
from vstore.chain import Chain
from vstore.dataplane import Volume

PAGE = 512  # blocks loaded at once, as the data plane keeps them
WINDOW_BYTES = 64 << 20  # reserved ahead of need
FEWEST_RESERVED = 16  # blocks
BATCH = 8192  # changes committed at once
CACHED = 64  # composed blocks kept
COPY_UNIT = 4096  # bytes copied up at once, where the format does not say


class BlockMap:
    """Raises OSError, ImageError."""

    def __init__(self, volume: Volume, chain: Chain) -> None:
        self._volume = volume
        self._chain = chain
        self._top = chain.top
        self._block_size = self._top.geometry.block_size
        self._lock = threading.RLock()
        self._composed: collections.OrderedDict[int, bytes] = collections.OrderedDict()
        self._window_blocks = max(FEWEST_RESERVED, WINDOW_BYTES // self._block_size)
        self._reserving = False
        self._freed = False
        for number, layer in enumerate(chain.layers):
            volume.set_layer(number, layer.descriptor, layer.flags, layer.alignment)
        if self._top.flat:
            self._load_all()
        elif not self._top.read_only:
            self._allow_allocation()

    def _load_all(self) -> None:
        """A flat image's map is one run, or none for a disk without a block."""
        if self._top.geometry.blocks:
            for run in self._top.load(0, self._top.geometry.blocks):
                self._volume.set_run(run.first, run.count, run.entry)

    def _allow_allocation(self) -> None:
        unit = max(min(COPY_UNIT, self._block_size), self._block_size >> 9)
        self._volume.allocates(unit, keeps_masks=False, batch_limit=BATCH)

    # ---- resizing ----

    def resize(self, length: int) -> None:
        """The image and the volume become `length` bytes long. Nobody may use what is cut off any more."""
        with self._lock:
            self.commit_all()  # the image knows nothing of blocks that only the volume has
            if length < self._top.geometry.length:
                self._shrink(length)
            else:
                self._grow(length)

    def _shrink(self, length: int) -> None:
        old = self._top.geometry
        self._volume.resize(length)  # first, so that nothing is written where the file is about to end
        self._volume.drain()
        try:
            self._top.resize(length)
        except BaseException:
            self._volume.resize(old.length)
            self._load_grown(-(-length // old.block_size))
            raise
        self._volume.resize(length)  # again, to let go of what it has mapped of the cut-off part

    def _grow(self, length: int) -> None:
        blocks = self._top.geometry.blocks
        self._top.resize(length)
        self._volume.resize(length)
        self._load_grown(blocks)

    def _load_grown(self, blocks: int) -> None:
        """The disk had this many blocks, and has more now. A page of the map is loaded as a whole or not at all."""
        if self._top.flat:
            self._load_all()
            return
        end = min(-(-blocks // PAGE) * PAGE, self._top.geometry.blocks)
        if blocks < end and self._volume.get_entry(blocks // PAGE * PAGE) >> 60 != BlockState.NOT_LOADED:
            for run in self._chain.merged(blocks, end - blocks):
                self._volume.set_run(run.first, run.count, run.entry)

    # ---- loading ----

    def load(self, offset: int, length: int) -> None:
        """Makes sure that the map knows what lies in this range of the disk."""
        first, last = offset // self._block_size, (offset + length - 1) // self._block_size
        with self._lock:
            for page in range(first // PAGE, last // PAGE + 1):
                self._load_page(page * PAGE)

    def _load_page(self, first: int) -> None:
        # under the lock, and only once: what the data plane has allocated there since must not be overwritten
        if self._volume.get_entry(first) >> 60 != BlockState.NOT_LOADED:
            return
        count = min(PAGE, self._top.geometry.blocks - first)
        # backwards, so that the first entry, which says that a page is loaded, comes last
        for run in reversed(self._chain.merged(first, count)):
            self._volume.set_run(run.first, run.count, run.entry)

    # ---- composing ----

    def compose(self, block: int) -> bytes:
        """The whole bytes of a block that no single place holds; zeros behind the end of the disk."""
        with self._lock:
            data = self._composed.get(block)
            if data is None:
                data = self._chain.compose(block * self._block_size, self._block_size)
                self._composed[block] = data
                while len(self._composed) > CACHED:
                    self._composed.popitem(last=False)
            self._composed.move_to_end(block)
            return data

    def composed(self, offset: int) -> bool:
        """Whether the block there has to be composed."""
        return self._volume.get_entry(offset // self._block_size) >> 60 == BlockState.COMPRESSED

    def settle(self, offset: int, length: int) -> None:
        """Gives composed blocks in this range places of their own, so that they can be written to in part."""
        with self._lock:
            for block in range(offset // self._block_size, (offset + length - 1) // self._block_size + 1):
                if self._volume.get_entry(block) >> 60 == BlockState.COMPRESSED:
                    self._settle(block)

    def _settle(self, block: int) -> None:
        end = min(self._block_size, self._volume.length - block * self._block_size)
        data = self.compose(block)[:end]
        while True:
            self.reserve_if_empty()
            try:
                self._volume.replace(block, data)
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:  # the loops took the last of the room in between
                    raise
        self._composed.pop(block, None)

    # ---- allocating ----

    def refill(self) -> None:
        """Makes room ahead of need, once writing has begun: one to two times what is reserved at once."""
        with self._lock:
            if self._reserving and self._volume.window < self._window_blocks:
                self.reserve()

    def reserve_if_empty(self) -> None:
        """For a write that found no room."""
        with self._lock:
            if not self._volume.window:
                self.reserve()

    def reserve(self) -> None:
        """Adds to the window of room for new blocks."""
        with self._lock:
            self._reserving = True
            self._drain()
            for extent in self._top.reserve(self._window_blocks):
                self._volume.give(0, extent.offset, extent.blocks, zeroed=self._top.empty(extent))

    def _drain(self) -> None:
        """What a commit has freed may still be read or written by I/O that began before; the image hands it out again,
        or makes tables of it, only when that has ended."""
        if self._freed:
            self._volume.drain()
            self._freed = False

    def commit(self) -> bool:
        """Makes what was allocated durable with all that was written; False when there was nothing to do."""
        with self._lock:
            if not self._volume.pending:
                return False
            changes = self._volume.commit_begin(BATCH)
            done = False
            try:
                if changes:
                    self._drain()
                    self._top.commit([Change(block, word) for block, word, _ in changes])
                    self._freed = True
                done = True
            except ImageError as error:
                raise OSError(errno.EIO, str(error)) from error
            finally:
                self._volume.commit_end(committed=done)
            for block, _, _ in changes:
                self._composed.pop(block, None)
            return bool(changes)

    def commit_all(self) -> bool:
        """As `commit`, until nothing is left that was there when it began."""
        with self._lock:
            rounds = -(-self._volume.pending // BATCH)
            done = False
            for _ in range(rounds):
                done |= self.commit()
            return done

    @property
    def allocates(self) -> bool:
        """Whether writes may need new blocks."""
        return not (self._top.flat or self._top.read_only)

    def close(self) -> None:
        """Gives back what is left of the window. Call it after the last commit."""
        for _layer, offset, blocks in self._volume.take_back():
            self._top.free([HostExtent(offset, blocks)])
