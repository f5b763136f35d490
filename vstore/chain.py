"""Chain: an image and its parents as one map, read only: where the bytes of each block lie, whoever holds them.

    image (top)   |DATA|HOLE|HOLE|ZERO|         merged: |DATA|SHARED|COMPRESSED|ZERO|     in blocks of the top image
    parent             |DATA|HOLE|DATA|                         layers are numbered through: the top image's files
    grandparent             |PARTIAL  |                         first, then each parent's

What a parent holds is SHARED, whatever it is there, because a write has to go to the top. COMPRESSED means that no
single place holds the block's bytes (compressed, or patched together of several places): `compose` makes them, and
its layer says whose doing that is. PARTIAL is only what the top image itself holds in part; `beneath` tells the rest.
Not thread-safe: who shares a chain holds a lock around every call.
"""

import bisect
from array import array
from collections.abc import Iterator, Sequence

from formats import direct_io, plain_io
from formats.errors import SecretNeeded, UnsupportedFeature
from formats.image import SECTOR, BlockState, Image, Layer, LayerFlags, Run, entry

_OFFSET, _LAYER = (1 << 48) - 1, 0xFFF << 48
_HOLE, _ZERO, _COMPRESSED = (entry(state) for state in (BlockState.HOLE, BlockState.ZERO, BlockState.COMPRESSED))
_PLACED = (BlockState.DATA, BlockState.SHARED, BlockState.PARTIAL)
_MOST_LAYERS = 1 << 12  # an entry has 12 bits for them


class Chain:
    """`images`: the top one, then its parents, nearest first. Raises OSError, ImageError."""

    def __init__(self, images: Sequence[Image]) -> None:
        if (missing := images[-1].backing) is not None:
            raise UnsupportedFeature(
                f"the image is an overlay on {missing.name!r}, which was not handed over: give its whole chain"
            )
        for image in images:
            if image.encrypted and image.cipher is None:
                raise SecretNeeded(f"{image.info()['filename']} is encrypted; give its secret")
        self._chain = images
        self.top = images[0]
        self._block_size = self.top.geometry.block_size
        self.layers: list[Layer] = []
        self._first_layer: list[int] = []
        for image in images:
            self._first_layer.append(len(self.layers))
            self.layers += image.layers
        if len(self.layers) > _MOST_LAYERS:
            raise UnsupportedFeature(
                f"the chain of {len(images)} images has {len(self.layers)} files; at most {_MOST_LAYERS} are possible: "
                "commit or rebase some of them"
            )

    @property
    def depth(self) -> int:
        """Images in it."""
        return len(self._chain)

    def beneath(self, block: int) -> int:
        """The entry of what shows through where the top image has nothing of the block."""
        return self.entries(block, 1, top=1)[0]

    def entries(self, first: int, count: int, *, top: int = 0) -> "array[int]":
        """The map of `count` blocks of the top image from `first` on, an entry for each; without the `top`
        first images."""
        found = array("Q", [_HOLE]) * count
        wanted: Sequence[int] = range(count)  # the blocks that nobody above has
        for depth, image in enumerate(self._chain[top:], top):
            # behind the end of a parent nothing shows through, whatever its parents have there
            inside = -(-image.geometry.length // self._block_size) - first
            if inside <= wanted[-1]:
                wanted = wanted[: bisect.bisect_left(wanted, inside)]
            if wanted:
                wanted = self._lay(depth, first, wanted, found)
            if not wanted:
                break
        return found

    def _lay(self, depth: int, first: int, wanted: Sequence[int], found: "array[int]") -> Sequence[int]:
        """Notes what one image has of the wanted blocks; returns the others."""
        low = wanted[0]
        words = self._loaded(self._chain[depth], first + low, wanted[-1] + 1 - low)
        if words == array("Q", [_HOLE]) * len(words):
            return wanted
        if not depth:  # the top image's own entries stay as they are
            found[low : low + len(words)] = words
            return [low + n for n, word in enumerate(words) if word == _HOLE] if _HOLE in words else ()
        layer = self._first_layer[depth] << 48
        placed = layer + (BlockState.SHARED - BlockState.DATA << 60)
        if isinstance(wanted, range) and words[0] >> 60 == BlockState.DATA:
            row = range(words[0], words[0] + len(words) * self._block_size // SECTOR, self._block_size // SECTOR)
            if words == array("Q", row):
                found[low : low + len(words)] = array("Q", range(row.start + placed, row.stop + placed, row.step))
                return ()
        left: list[int] = []
        for block in wanted:
            word = words[block - low]
            match word >> 60:
                case BlockState.HOLE:
                    left.append(block)
                case BlockState.DATA:
                    found[block] = word + placed
                case BlockState.SHARED:
                    found[block] = word + layer
                case BlockState.ZERO:
                    found[block] = word
                case BlockState.COMPRESSED:
                    found[block] = word + layer
                case _:  # PARTIAL: to be composed
                    found[block] = _COMPRESSED | (word & _LAYER) + layer
        return left

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

    def _loaded(self, image: Image, first: int, count: int) -> "array[int]":
        """An image's entries in blocks of the top image."""
        own, length, size = image.geometry.block_size, image.geometry.length, self._block_size
        end = min((first + count) * size, length)
        if own == size:
            words = image.load_entries(first, count)
        else:
            runs = image.load(first * size // own, -(-end // own) - first * size // own)
            words = _recut(runs, own, size, first, count)
        if image.cipher is not None:
            words = array("Q", [_COMPRESSED if word >> 60 in _PLACED else word for word in words])
        if end == length and length % size and length < self.top.geometry.length and words[-1] != _ZERO:
            words[-1] = _COMPRESSED  # the image ends inside this block, and zeros follow
        return words


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
    if image.cipher is None:
        return _read(layer, offset, length)
    start = offset // SECTOR * SECTOR
    whole = -(-(offset + length) // SECTOR) * SECTOR - start
    return image.cipher.decrypt(start, _read(layer, start, whole))[offset - start : offset - start + length]


def _read(layer: Layer, offset: int, length: int) -> bytes:
    if LayerFlags.DIRECT in layer.flags:
        data = direct_io.read(layer.descriptor, offset, length, layer.alignment)
    else:
        data = plain_io.read(layer.descriptor, offset, length)
    return data.ljust(length, b"\0")


def _recut(runs: Sequence[Run], own: int, wanted: int, first: int, count: int) -> "array[int]":
    """Runs in blocks of `own` bytes as entries for blocks of `wanted` bytes. A block that no single entry tells of
    becomes COMPRESSED, which means: compose it."""
    cut = array("Q")
    position = 0
    for block in range(first, first + count):
        start, end = block * wanted, (block + 1) * wanted
        while (runs[position].first + runs[position].count) * own <= start:
            position += 1
        run = runs[position]
        state = run.entry >> 60
        if end > (run.first + run.count) * own and position + 1 < len(runs):
            cut.append(_COMPRESSED)
        elif state in (BlockState.DATA, BlockState.SHARED):
            cut.append(run.entry + (start - run.first * own) // SECTOR)
        elif state in (BlockState.COMPRESSED, BlockState.PARTIAL):
            cut.append(_COMPRESSED)
        else:
            cut.append(run.entry)
    return cut
