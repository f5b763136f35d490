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

from formats.errors import UnsupportedFeature
from formats.image import BlockState, Image, Layer, Run, entry

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
