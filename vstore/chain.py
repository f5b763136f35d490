"""Chain: an image and its parents as one map, read only: where the bytes of each block lie, whoever holds them.

    image (top)   |DATA|HOLE|HOLE|ZERO|         merged: |DATA|SHARED|COMPRESSED|ZERO|     in blocks of the top image
    parent             |DATA|HOLE|DATA|                         layers are numbered through: the top image's files
    grandparent             |PARTIAL  |                         first, then each parent's

What a parent holds is SHARED, whatever it is there, because a write has to go to the top. COMPRESSED means that no
single place holds the block's bytes (compressed, or patched together of several places): `compose` makes them.
Not thread-safe: who shares a chain holds a lock around every call.
"""

import os
from collections.abc import Sequence

from formats import direct_io
from formats.errors import UnsupportedFeature
from formats.image import BlockState, Image, Layer, LayerFlags, Run, entry

_OFFSET = (1 << 48) - 1


class Chain:
    """`images`: the top one, then its parents, nearest first. Raises OSError, ImageError."""

    def __init__(self, images: Sequence[Image]) -> None:
        if (missing := images[-1].backing) is not None:
            raise UnsupportedFeature(
                f"the image is an overlay on {missing.name!r}, which was not handed over: give its whole chain"
            )
        self._chain = images
        self.top = images[0]
        self._block_size = self.top.geometry.block_size
        self.layers: list[Layer] = []
        self._first_layer: list[int] = []
        for image in images:
            self._first_layer.append(len(self.layers))
            self.layers += image.layers

    def merged(self, first: int, count: int) -> list[Run]:
        """The map of `count` blocks of the top image from `first` on; ascending, without a gap."""
        return self._merged(0, first, count)

    def compose(self, offset: int, length: int) -> bytes:
        """The bytes of any range, wherever they lie; zeros behind the end of the disk. Slow: for what no single place
        holds."""
        return self._compose(0, offset, length)

    def _merged(self, depth: int, first: int, count: int) -> list[Run]:
        """Runs of the chain from `depth` down, in blocks of the top image; ascending, without a gap. Behind the end of
        an image nothing shows through, whatever its parents have there."""
        stop, whole = first + count, self._whole_blocks(depth)
        runs: list[Run] = []
        if first < min(stop, whole):
            runs += self._inside(depth, first, min(stop, whole) - first)
        if first <= whole < stop and whole * self._block_size < self._chain[depth].geometry.length:
            runs.append(self._last(depth, whole))
        known = runs[-1].first + runs[-1].count if runs else first
        if known < stop:
            runs.append(Run(known, stop - known, entry(BlockState.HOLE)))
        return runs

    def _whole_blocks(self, depth: int) -> int:
        """Blocks that the image has from end to end. The disk itself ends inside its last one."""
        length = self._chain[depth].geometry.length
        return length // self._block_size if depth else -(-length // self._block_size)

    def _inside(self, depth: int, first: int, count: int) -> list[Run]:
        runs: list[Run] = []
        for run in _loaded(self._chain[depth], first, count, self._block_size):
            state = BlockState(run.entry >> 60)
            if state is BlockState.HOLE and depth + 1 < len(self._chain):
                runs += self._merged(depth + 1, run.first, run.count)
            else:
                runs.append(Run(run.first, run.count, self._told(depth, state, run.entry)))
        return runs

    def _last(self, depth: int, block: int) -> Run:
        """The block that a parent ends in: what its file has behind the end is not to be seen."""
        (run,) = _loaded(self._chain[depth], block, 1, self._block_size)
        state = BlockState(run.entry >> 60)
        bottom = depth + 1 == len(self._chain)
        same = state is BlockState.ZERO or (state is BlockState.HOLE and bottom)
        return Run(block, 1, entry(state if same else BlockState.COMPRESSED))

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
        layer, at = image.layers[word >> 48 & 0xFFF], (word & _OFFSET) * 512 + within
        if layer.flags & LayerFlags.DIRECT:
            return direct_io.read(layer.descriptor, at, length, layer.alignment).ljust(length, b"\0")
        return os.pread(layer.descriptor, length, at).ljust(length, b"\0")


def _loaded(image: Image, first: int, count: int, block_size: int) -> list[Run]:
    """An image's runs in blocks of `block_size`, whatever its own are; its length bounds the last one."""
    own = image.geometry.block_size
    start, end = first * block_size, min((first + count) * block_size, image.geometry.length)
    runs = image.load(start // own, -(-end // own) - start // own)
    return list(runs) if own == block_size else _recut(runs, own, block_size, first, count)


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
