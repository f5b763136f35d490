"""Chain: an image and its parents as one map, read only: where the bytes of each block lie, whoever holds them.

    image (top)   |DATA|HOLE|HOLE|ZERO|         merged: |DATA|SHARED|COMPRESSED|ZERO|     in blocks of the top image
    parent             |DATA|HOLE|DATA|                         layers are numbered through: the top image's files
    grandparent             |PARTIAL  |                         first, then each parent's

What a parent holds is SHARED, whatever it is there, because a write has to go to the top. COMPRESSED means that no
single place holds the block's bytes (compressed, or patched together of several places): `compose` makes them, and
its layer says whose doing that is. PARTIAL is only what the top image itself holds in part; `beneath` tells the rest.
Not thread-safe: who shares a chain holds a lock around every call.
"""

import os
from collections.abc import Iterator, Sequence

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

    @property
    def depth(self) -> int:
        """Images in it."""
        return len(self._chain)

    def merged(self, first: int, count: int) -> list[Run]:
        """The map of `count` blocks of the top image from `first` on; ascending, without a gap."""
        return self._merged(0, first, count)

    def beneath(self, block: int) -> int:
        """The entry of what shows through where the top image has nothing of the block."""
        return self._merged(1, block, 1)[0].entry if self.depth > 1 else entry(BlockState.HOLE)

    def _merged(self, top: int, first: int, count: int) -> list[Run]:
        """Of the chain from depth `top` down."""
        runs: list[Run] = []
        wanted = [(first, count)]
        for depth, image in enumerate(self._chain[top:], top):
            asked, wanted = wanted, []
            for start, number in asked:
                inside = min(number, max(0, -(-image.geometry.length // self._block_size) - start))
                for run in self._loaded(image, start, inside) if inside else ():
                    state = BlockState(run.entry >> 60)
                    if state is BlockState.HOLE and depth + 1 < len(self._chain):
                        wanted.append((run.first, run.count))
                    else:
                        runs.append(Run(run.first, run.count, self._told(depth, state, run.entry)))
                if inside < number:  # behind the end of a parent nothing shows through, whatever its parents have there
                    runs.append(Run(start + inside, number - inside, entry(BlockState.HOLE)))
            if not wanted:
                break
        return sorted(runs, key=lambda run: run.first)

    def compose(self, offset: int, length: int) -> bytes:
        """The bytes of any range, wherever they lie; zeros behind the end of the disk. Slow: for what no single place
        holds."""
        data = bytearray(length)
        wanted = [(offset, length)]
        for image in self._chain:
            asked, wanted = wanted, []
            for start, number in asked:
                for at, found in _found(image, start, number):
                    if isinstance(found, int):
                        wanted.append((at, found))
                    else:
                        data[at - offset : at - offset + len(found)] = found
            if not wanted:
                break
        return bytes(data)

    def _loaded(self, image: Image, first: int, count: int) -> list[Run]:
        """An image's runs in blocks of the top image."""
        own, length, size = image.geometry.block_size, image.geometry.length, self._block_size
        end = min((first + count) * size, length)
        runs = list(image.load(first * size // own, -(-end // own) - first * size // own))
        if own != size:
            runs = _recut(runs, own, size, first, count)
        if end == length and length % size and length < self.top.geometry.length:
            _end_inside(runs)
        return runs

    def _told(self, depth: int, state: BlockState, word: int) -> int:
        """An image's own entry as the merged map has it."""
        layer = (word >> 48 & 0xFFF) + self._first_layer[depth]
        match state:
            case BlockState.DATA | BlockState.SHARED:
                shared = depth or state is BlockState.SHARED
                return entry(BlockState.SHARED if shared else BlockState.DATA, layer, (word & _OFFSET) * 512)
            case BlockState.PARTIAL if not depth:
                return word
            case BlockState.COMPRESSED | BlockState.PARTIAL:
                return entry(BlockState.COMPRESSED, layer)  # to be composed, whatever the reason
            case _:
                return entry(state)


def _end_inside(runs: list[Run]) -> None:
    """The image ends inside the last block, which has to be composed, so that zeros follow in it."""
    last = runs.pop()
    if last.count > 1:
        runs.append(Run(last.first, last.count - 1, last.entry))
    zero = last.entry == entry(BlockState.ZERO)
    runs.append(Run(last.first + last.count - 1, 1, last.entry if zero else entry(BlockState.COMPRESSED)))


def _found(image: Image, offset: int, length: int) -> Iterator[tuple[int, bytes | int]]:
    """What an image itself has of a range: bytes, each with its offset, and the lengths that its parents have. What is
    zeros is left out."""
    size, end = image.geometry.block_size, min(offset + length, image.geometry.length)
    while offset < end:
        take = min(size - offset % size, end - offset)
        yield from _in_block(image, offset, take)
        offset += take


def _in_block(image: Image, offset: int, length: int) -> Iterator[tuple[int, bytes | int]]:
    block, within = divmod(offset, image.geometry.block_size)
    word = image.load(block, 1)[0].entry
    match BlockState(word >> 60):
        case BlockState.HOLE:
            yield offset, length
        case BlockState.ZERO:
            pass
        case BlockState.COMPRESSED:
            yield offset, image.materialise(block)[within : within + length]
        case BlockState.PARTIAL:
            yield from _in_sub_blocks(image, word, offset, length)
        case _:
            yield offset, _stored(image, word, within, length)


def _in_sub_blocks(image: Image, word: int, offset: int, length: int) -> Iterator[tuple[int, bytes | int]]:
    size = image.geometry.sub_block_size
    assert size is not None
    block, within = divmod(offset, image.geometry.block_size)
    mask, end = image.masks(block, 1)[0], within + length
    while within < end:
        take, bit = min(size - within % size, end - within), 1 << within // size
        at = offset + length - (end - within)
        if mask.allocated & bit:
            yield at, _stored(image, word, within, take)
        elif not mask.zero & bit:
            yield at, take
        within += take


def _stored(image: Image, word: int, within: int, length: int) -> bytes:
    layer, offset = image.layers[word >> 48 & 0xFFF], (word & _OFFSET) * 512 + within
    if LayerFlags.DIRECT in layer.flags:
        data = direct_io.read(layer.descriptor, offset, length, layer.alignment)
    else:
        data = os.pread(layer.descriptor, length, offset)
    return data.ljust(length, b"\0")


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
