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
import os
import threading
from collections.abc import Sequence

from formats.errors import ImageError, UnsupportedFeature
from formats.image import BlockState, Change, HostExtent, Image, Run, entry
from vstore.dataplane import Volume

PAGE = 512  # blocks loaded at once, as the data plane keeps them
WINDOW_BYTES = 64 << 20  # reserved ahead of need
FEWEST_RESERVED = 16  # blocks
BATCH = 8192  # changes committed at once
CACHED = 64  # composed blocks kept
COPY_UNIT = 4096  # bytes copied up at once, where the format does not say

_OFFSET = (1 << 48) - 1


class BlockMap:
    """`chain`: the image, then its parents, nearest first. Raises OSError, ImageError."""

    def __init__(self, volume: Volume, chain: Sequence[Image]) -> None:
        self._volume = volume
        if (missing := chain[-1].backing) is not None:
            raise UnsupportedFeature(
                f"the image is an overlay on {missing.name!r}, which was not handed over: give its whole chain"
            )
        self._chain = chain
        self._top = chain[0]
        self._block_size = self._top.geometry.block_size
        self._lock = threading.RLock()
        self._composed: collections.OrderedDict[int, bytes] = collections.OrderedDict()
        self._first_layer: list[int] = []
        self._window_blocks = max(FEWEST_RESERVED, WINDOW_BYTES // self._block_size)
        self._reserving = False
        self._add_layers()
        if self._top.flat:
            self._load_all()
        elif not self._top.read_only:
            self._allow_allocation()

    def _load_all(self) -> None:
        """A flat image's map is one run, or none for a disk without a block."""
        if self._top.geometry.blocks:
            for run in self._top.load(0, self._top.geometry.blocks):
                self._volume.set_run(run.first, run.count, run.entry)

    def _add_layers(self) -> None:
        number = 0
        for image in self._chain:
            self._first_layer.append(number)
            for layer in image.layers:
                self._volume.set_layer(number, layer.descriptor, layer.flags, layer.alignment)
                number += 1

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
            for run in self._merged(0, blocks, end - blocks):
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
        for run in reversed(self._merged(0, first, count)):
            self._volume.set_run(run.first, run.count, run.entry)

    def _merged(self, depth: int, first: int, count: int) -> list[Run]:
        """Runs of the chain from `depth` down, in blocks of the top image; ascending, without a gap."""
        image = self._chain[depth]
        runs: list[Run] = []
        for run in _loaded(image, first, count, self._block_size):
            state = BlockState(run.entry >> 60)
            if state is BlockState.HOLE and depth + 1 < len(self._chain):
                runs += self._merged(depth + 1, run.first, run.count)
            else:
                runs.append(Run(run.first, run.count, self._told(depth, state, run.entry)))
        return runs

    def _told(self, depth: int, state: BlockState, word: int) -> int:
        """An image's own entry as the merged map has it."""
        layer = (word >> 48 & 0xFFF) + self._first_layer[depth]
        match state:
            case BlockState.DATA | BlockState.SHARED:
                shared = depth or state is BlockState.SHARED
                return entry(BlockState.SHARED if shared else BlockState.DATA, layer, (word & _OFFSET) * 512)
            case BlockState.COMPRESSED | BlockState.PARTIAL:
                return entry(BlockState.COMPRESSED)  # to be composed, whatever the reason
            case _:
                return entry(state)

    # ---- composing ----

    def compose(self, block: int) -> bytes:
        """The whole bytes of a block that no single place holds; zeros behind the end of the disk."""
        with self._lock:
            data = self._composed.get(block)
            if data is None:
                data = self._compose(0, block * self._block_size, self._block_size)
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

    def _compose(self, depth: int, offset: int, length: int) -> bytes:
        if depth == len(self._chain):
            return bytes(length)
        image = self._chain[depth]
        inside = max(0, min(length, image.geometry.length - offset))
        size, data = image.geometry.block_size, bytearray()
        while len(data) < inside:
            at = offset + len(data)
            take = min(size - at % size, inside - len(data))
            data += self._piece(depth, at, take)
        return bytes(data) + bytes(length - inside)

    def _piece(self, depth: int, offset: int, length: int) -> bytes:
        """Bytes inside one block of the image at `depth`."""
        image = self._chain[depth]
        block, within = divmod(offset, image.geometry.block_size)
        run = image.load(block, 1)[0]
        match BlockState(run.entry >> 60):
            case BlockState.HOLE:
                return self._compose(depth + 1, offset, length)
            case BlockState.ZERO:
                return bytes(length)
            case BlockState.COMPRESSED:
                return image.materialise(block)[within : within + length]
            case BlockState.PARTIAL:
                return self._sub_blocks(depth, block, run.entry, within, length)
            case _:
                return self._stored(image, run.entry, within, length)

    def _sub_blocks(self, depth: int, block: int, word: int, within: int, length: int) -> bytes:
        image = self._chain[depth]
        size = image.geometry.sub_block_size
        assert size is not None
        mask, data = image.masks(block, 1)[0], bytearray()
        while len(data) < length:
            at = within + len(data)
            take, bit = min(size - at % size, length - len(data)), 1 << at // size
            if mask.allocated & bit:
                data += self._stored(image, word, at, take)
            elif mask.zero & bit:
                data += bytes(take)
            else:
                data += self._compose(depth + 1, block * image.geometry.block_size + at, take)
        return bytes(data)

    @staticmethod
    def _stored(image: Image, word: int, within: int, length: int) -> bytes:
        descriptor = image.layers[word >> 48 & 0xFFF].descriptor
        return os.pread(descriptor, length, (word & _OFFSET) * 512 + within).ljust(length, b"\0")

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
            for extent in self._top.reserve(self._window_blocks):
                self._volume.give(0, extent.offset, extent.blocks, zeroed=self._top.empty(extent))

    def commit(self) -> bool:
        """Makes what was allocated durable with all that was written; False when there was nothing to do."""
        with self._lock:
            if not self._volume.pending:
                return False
            changes = self._volume.commit_begin(BATCH)
            done = False
            try:
                if changes:
                    self._top.commit([Change(block, word) for block, word, _ in changes])
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


def _loaded(image: Image, first: int, count: int, block_size: int) -> list[Run]:
    """An image's runs in blocks of `block_size`, whatever its own are; HOLE beyond its end."""
    own, length = image.geometry.block_size, image.geometry.length
    start, end = first * block_size, min((first + count) * block_size, length)
    runs: list[Run] = []
    if start < end and own == block_size:
        runs = list(image.load(first, -(-end // own) - first))
    elif start < end:
        own_runs = image.load(start // own, -(-end // own) - start // own)
        runs = _recut(own_runs, own, block_size, first, -(-end // block_size) - first)
    known = runs[-1].first + runs[-1].count if runs else first
    if known < first + count:
        runs.append(Run(known, first + count - known, entry(BlockState.HOLE)))
    return runs


def _recut(runs: Sequence[Run], own: int, wanted: int, first: int, count: int) -> list[Run]:
    """Runs in blocks of `own` bytes as runs in blocks of `wanted` bytes. A block that no single entry tells of becomes
    COMPRESSED, which means: compose it."""
    cut: list[Run] = []
    position = 0
    for block in range(first, first + count):
        start, end = block * wanted, (block + 1) * wanted
        while (runs[position].first + runs[position].count) * own <= start:
            position += 1
        run = runs[position]
        state = BlockState(run.entry >> 60)
        if end > (run.first + run.count) * own and position + 1 < len(runs):
            word = entry(BlockState.COMPRESSED)
        elif state in (BlockState.DATA, BlockState.SHARED):
            at = (run.entry & _OFFSET) * 512 + start - run.first * own
            word = entry(state, run.entry >> 48 & 0xFFF, at)
        elif state in (BlockState.COMPRESSED, BlockState.PARTIAL):
            word = entry(BlockState.COMPRESSED)
        else:
            word = run.entry
        cut.append(Run(block, 1, word))
    return cut
