"""A volume in plain Python over an image that allocates: what the data plane does with the map, one block at a time.

It follows the promises of formats.image to the letter: new blocks are filled whole (or by sub-blocks) in reserved
places, and named only by a commit. Parents are whatever can be read.
"""

from collections.abc import Callable
from dataclasses import dataclass

from formats.host_file import HostFile
from formats.image import SECTOR, BlockState, Change, Image, Masks, entry
from formats.qcow2.image import Qcow2

Reader = Callable[[int, int], bytes]

NO_MASKS = Masks(0, 0)
_ZEROS = (BlockState.HOLE, BlockState.ZERO)


def nothing(_offset: int, length: int) -> bytes:
    """The parent of an image without one."""
    return bytes(length)


@dataclass
class Block:
    """One block as it is now, committed or not."""

    state: BlockState
    layer: int = 0
    offset: int = 0
    masks: Masks = NO_MASKS


class AllocatingVolume:
    """Owns the image. `parent(offset, length)` gives what HOLEs show."""

    def __init__(self, image: Qcow2, parent: Reader = nothing, *, window: int = 5, files: Qcow2 | None = None) -> None:
        self.image = image
        self.parent = nothing if image.backing is None else parent
        self.window = window
        owner = files or image  # of a view, the image that it looks into
        self._files: list[HostFile] = [owner.file] + ([owner.data_file] if owner.data_file else [])
        self._blocks: dict[int, Block] = {}
        self._pending: dict[int, Change] = {}
        self._room: list[int] = []

    @property
    def length(self) -> int:
        return self.image.geometry.length

    @property
    def _size(self) -> int:
        return self.image.geometry.block_size

    def block(self, number: int) -> Block:
        if number not in self._blocks:
            self._blocks[number] = block_of(self.image, number)
        return self._blocks[number]

    def read(self, offset: int, length: int) -> bytes:
        assert 0 <= offset <= offset + length <= self.length
        parts = []
        while length:
            number, within = divmod(offset, self._size)
            take = min(self._size - within, length)
            parts.append(self._content(number)[within : within + take])
            offset, length = offset + take, length - take
        return b"".join(parts)

    def _content(self, number: int) -> bytes:
        block = self.block(number)
        if block.state in (BlockState.DATA, BlockState.SHARED):
            return self._files[block.layer].pread(block.offset, self._size).ljust(self._size, b"\0")
        if block.state == BlockState.COMPRESSED:
            return self.image.materialise(number)
        if block.state == BlockState.ZERO:
            return bytes(self._size)
        below = self.parent(number * self._size, self._size)
        return below if block.state == BlockState.HOLE else self._mixed(block, below)

    def _mixed(self, block: Block, below: bytes) -> bytes:
        sub = self.image.geometry.sub_block_size
        assert sub is not None
        here = self._files[block.layer].pread(block.offset, self._size).ljust(self._size, b"\0")
        parts = []
        for n in range(self._size // sub):
            span = slice(n * sub, (n + 1) * sub)
            if block.masks.allocated >> n & 1:
                parts.append(here[span])
            else:
                parts.append(bytes(sub) if block.masks.zero >> n & 1 else below[span])
        return b"".join(parts)

    def write(self, offset: int, data: bytes) -> None:
        assert 0 <= offset <= offset + len(data) <= self.length
        self.image.touched(offset, len(data))
        while data:
            number, within = divmod(offset, self._size)
            take = min(self._size - within, len(data))
            self._write(number, within, data[:take])
            offset, data = offset + take, data[take:]

    def _write(self, number: int, within: int, data: bytes) -> None:
        block = self.block(number)
        if block.state == BlockState.DATA:
            self._files[block.layer].pwrite(block.offset + within, data)
        elif self.image.geometry.sub_block_size and block.state != BlockState.COMPRESSED:
            self._write_sub_blocks(number, within, data)
        else:
            content = bytearray(self._content(number))
            content[within : within + len(data)] = data
            self._place(number, bytes(content))

    def _place(self, number: int, content: bytes) -> None:
        layer, offset = self._new_place(number)
        self._files[layer].pwrite(offset, content)
        self._set(number, Block(BlockState.DATA, layer, offset))

    def _write_sub_blocks(self, number: int, within: int, data: bytes) -> None:
        block, sub = self.block(number), self.image.geometry.sub_block_size
        assert sub is not None
        first, last = within // sub, (within + len(data) - 1) // sub
        content = bytearray(self._content(number))
        content[within : within + len(data)] = data
        masks = block.masks if block.state == BlockState.PARTIAL else NO_MASKS
        if block.state == BlockState.ZERO:
            masks = Masks(0, (1 << self._size // sub) - 1)
        if block.state == BlockState.SHARED or masks.shared or not (block.offset or block.layer):
            layer, offset = self._new_place(number)
            moved = masks.allocated if block.state == BlockState.PARTIAL else (1 << self._size // sub) - 1
            moved = moved if block.state in (BlockState.PARTIAL, BlockState.SHARED) else 0
        else:
            layer, offset, moved = block.layer, block.offset, 0
        written = moved | ((1 << last + 1) - (1 << first))
        for n in range(self._size // sub):
            if written >> n & 1:
                self._files[layer].pwrite(offset + n * sub, bytes(content[n * sub : (n + 1) * sub]))
        allocated = masks.allocated | written
        self._set(number, Block(BlockState.PARTIAL, layer, offset, Masks(allocated, masks.zero & ~allocated)))

    def _new_place(self, number: int) -> tuple[int, int]:
        if self.image.identity:
            return 1, number * self._size
        if not self._room:
            extents = self.image.reserve(self.window)
            self._room = [e.offset + n * self._size for e in extents for n in range(e.blocks)]
        return 0, self._room.pop(0)

    def _set(self, number: int, block: Block) -> None:
        sub = self.image.geometry.sub_block_size
        if block.state == BlockState.PARTIAL and sub and block.masks.allocated == (1 << self._size // sub) - 1:
            block = Block(BlockState.DATA, block.layer, block.offset)
        self._blocks[number] = block
        word = entry(block.state, block.layer, block.offset)
        self._pending[number] = Change(number, word, block.masks.allocated, block.masks.zero)

    def zero(self, offset: int, length: int, deallocate: bool = False) -> None:
        """Whole blocks by the map, the edges by bytes."""
        end = offset + length
        while offset < end:
            number, within = divmod(offset, self._size)
            take = min(self._size - within, end - offset)
            if take == self._size and self.image.zeroes:
                self.image.touched(offset, take)
                hole = deallocate and self.image.backing is None
                self._set(number, Block(BlockState.HOLE if hole else BlockState.ZERO))
            else:
                self.write(offset, bytes(take))
            offset += take

    def flush(self) -> None:
        self.image.commit(list(self._pending.values()))
        self._pending.clear()
        self._blocks.clear()

    def resize(self, length: int) -> None:
        """As a disk does: the tail of the last block is cleared before it becomes visible."""
        old = self.length
        self.flush()
        if length > old and old % self._size:
            number, within = divmod(old, self._size)
            if self.block(number).state not in _ZEROS or self.image.backing is not None:
                self._write(number, within, bytes(self._size - within))
            self.flush()
        self.image.resize(length)

    def close(self) -> None:
        self.flush()
        self.image.close()


def block_of(image: Image, number: int) -> Block:
    """The block as the image's map has it."""
    (run,) = image.load(number, 1)
    state = BlockState(run.entry >> 60)
    masks = image.masks(number, 1)[0] if state == BlockState.PARTIAL else NO_MASKS
    return Block(state, run.entry >> 48 & 0xFFF, (run.entry & (1 << 48) - 1) * SECTOR, masks)
