"""The kinds of unit that the two paths are compared on: block lengths, provisioning, caches, and maps with holes."""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from random import Random

from formats.image import BlockState, Geometry, Image, Layer, LayerFlags, Run, entry
from formats.memory import Memory
from formats.registry import open_image
from tests.differential.twins import Configuration

KIB = 1024
_SHORT, _LONG = 384 * KIB, 1200 * KIB  # more than the 256 blocks of the longest READ (6), in either block length
_CONTENTS = Random(0).randbytes(_LONG + 4 * KIB)


def _raw(folder: Path, length: int = _SHORT, *, read_only: bool = False, direct: bool = False) -> Image:
    path = folder / "disk.raw"
    path.write_bytes(_CONTENTS[:length])
    return open_image("raw", path, read_only=read_only, direct=direct)


def _on_tmpfs(length: int = _SHORT, *, read_only: bool = False) -> Image:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        return _raw(Path(folder), length, read_only=read_only)  # the open file outlives its name


def _memory(length: int) -> Image:
    image = Memory(length)
    os.pwrite(image.layers[0].descriptor, _CONTENTS[:length], 0)
    return image


class Mapped(Memory):
    """A map as a format has it: data out of order, zeros, holes, blocks that a write may not change in place.

    Writes to what cannot be written in place fail, on both paths alike, until a format allocates.
    """

    BLOCK = 4 * KIB
    STATES = (BlockState.DATA, BlockState.DATA, BlockState.ZERO, BlockState.DATA, BlockState.HOLE, BlockState.SHARED)

    def __init__(self, length: int) -> None:
        super().__init__(length)
        self.geometry = Geometry(length, self.BLOCK)
        os.pwrite(self._descriptor, _CONTENTS[:length], 0)

    @property
    def layers(self) -> Sequence[Layer]:
        return [Layer(self._descriptor, LayerFlags.MEMORY | LayerFlags.INSTANT)]

    def load(self, first: int, count: int) -> Sequence[Run]:
        return [Run(block, 1, self._entry(block)) for block in range(first, first + count)]

    def _entry(self, block: int) -> int:
        state = self.STATES[block % len(self.STATES)]
        if state in (BlockState.ZERO, BlockState.HOLE):
            return entry(state)
        return entry(state, 0, (self.geometry.blocks - 1 - block) * self.BLOCK)


CONFIGURATIONS = [
    Configuration("raw on tmpfs, blocks of 512", lambda _: _on_tmpfs()),
    Configuration(
        "raw on tmpfs, blocks of 4096, with a tail that is no block",
        lambda _: _on_tmpfs(_LONG + 512),
        {"logical_block_length": 4096},
    ),
    Configuration("raw in the page cache, blocks of 512", _raw),
    Configuration(
        "raw past the page cache, blocks of 4096",
        lambda folder: _raw(folder, _LONG, direct=True),
        {"logical_block_length": 4096},
    ),
    Configuration("raw, opened read-only", lambda _: _on_tmpfs(read_only=True)),
    Configuration("raw, a read-only unit", lambda _: _on_tmpfs(), {"read_only": True}),
    Configuration("raw, thick", lambda _: _on_tmpfs(), {"thin": False}),
    Configuration("raw, without a write cache", _raw, {"write_cache": False}),
    Configuration("memory, blocks of 512", lambda _: _memory(_SHORT)),
    Configuration("memory, blocks of 4096", lambda _: _memory(_LONG), {"logical_block_length": 4096}),
    Configuration("a map with holes, zeros and shared blocks", lambda _: Mapped(_SHORT)),
]
