"""MapVolume: the block map and what its entries mean in plain Python, the model that the C volume is held against.

It shares nothing with the C: one dictionary, one block at a time, every piece by itself.
"""

import errno
import os
from collections.abc import Iterator

from formats.image import SECTOR, BlockState

_READABLE_AS_ZEROS = (BlockState.HOLE, BlockState.ZERO)


class MapVolume:
    """The face of vstore.dataplane.Volume."""

    def __init__(self, length: int, block_size: int) -> None:
        self.length = length
        self.block_size = block_size
        self._layers: dict[int, int] = {}
        self._entries: dict[int, int] = {}

    def set_layer(self, layer: int, fd: int, flags: int, alignment: int) -> None:  # noqa: ARG002
        self._layers[layer] = os.dup(fd)

    def set_run(self, first: int, count: int, entry: int) -> None:
        for place in range(count):
            self._entries[first + place] = self._advance(entry, place)

    def _advance(self, entry: int, blocks: int) -> int:
        moves = entry >> 60 in (BlockState.DATA, BlockState.SHARED)
        return entry + blocks * self.block_size // SECTOR if moves else entry

    def get_entry(self, block: int) -> int:
        if block * self.block_size >= self.length:
            raise OSError(errno.EINVAL, "beyond the end")
        return self._entries.get(block, 0)

    def resize(self, length: int) -> None:
        self.length = length

    def _pieces(self, offset: int, length: int) -> Iterator[tuple[BlockState, int, int, int]]:
        """State, descriptor, offset in its file, and length, block by block."""
        if offset + length > self.length:
            raise OSError(errno.EINVAL, "beyond the end")
        end = offset + length
        while offset < end:
            block, within = divmod(offset, self.block_size)
            take = min(self.block_size - within, end - offset)
            entry = self._entries.get(block, 0)
            file = self._layers.get(entry >> 48 & 0xFFF, -1)
            yield BlockState(entry >> 60), file, (entry & (1 << 48) - 1) * SECTOR + within, take
            offset += take

    def read(self, offset: int, length: int) -> bytes:
        parts = []
        for state, file, at, take in self._pieces(offset, length):
            if state in (BlockState.DATA, BlockState.SHARED):
                parts.append(os.pread(file, take, at).ljust(take, b"\0"))
            elif state in _READABLE_AS_ZEROS:
                parts.append(bytes(take))
            else:
                raise OSError(errno.ENODATA, "needs Python")
        return b"".join(parts)

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        done = 0
        for state, file, at, take in self._pieces(offset, len(data)):
            if state != BlockState.DATA:
                raise OSError(errno.ENODATA, "needs Python")
            assert os.pwrite(file, bytes(data[done : done + take]), at) == take
            done += take

    def zero(self, offset: int, length: int, deallocate: bool) -> None:  # noqa: ARG002
        for state, file, at, take in self._pieces(offset, length):
            if state == BlockState.DATA:
                assert os.pwrite(file, bytes(take), at) == take
            elif state not in _READABLE_AS_ZEROS:
                raise OSError(errno.ENODATA, "needs Python")

    def flush(self) -> None:
        pass

    def close(self) -> None:
        for file in self._layers.values():
            os.close(file)
        self._layers.clear()
