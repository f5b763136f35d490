"""The C volume against MapVolume: the same map, the same calls, the same bytes and the same refusals."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from formats.image import BlockState, LayerFlags, entry
from tests.formats.map_volume import MapVolume
from vstore.dataplane import Volume

LAYERS = 3
FILE = 1 << 19
STATES = [*BlockState, *[BlockState.DATA] * 6, BlockState.SHARED, BlockState.SHARED]


class Pair:
    """A volume of each kind, over files of its own with equal bytes."""

    def __init__(self, directory: Path, length: int, block_size: int, draw: random.Random) -> None:
        self.length, self.block_size, self.draw = length, block_size, draw
        self.volumes: tuple[Volume, MapVolume] = (Volume(length, block_size), MapVolume(length, block_size))
        self.files = [[directory / f"{kind}{layer}" for layer in range(LAYERS)] for kind in ("c", "python")]
        for layer in range(LAYERS):
            content = draw.randbytes(FILE - draw.choice([0, 512, 300]))  # the last may end inside a block
            kinds: list[Volume | MapVolume] = [*self.volumes]
            for kind, volume in enumerate(kinds):
                self.files[kind][layer].write_bytes(content)
                with self.files[kind][layer].open("r+b") as file:
                    volume.set_layer(layer, file.fileno(), LayerFlags.NONE, 1)

    @property
    def blocks(self) -> int:
        return -(-self.length // self.block_size)

    def both(self, call: Callable[[Volume | MapVolume], object]) -> None:
        """Both answer alike: the same value, or an OSError of the same number."""
        answers: list[object] = []
        for volume in self.volumes:
            try:
                answers.append(call(volume))
            except OSError as error:
                answers.append(f"errno {error.errno}")
        assert answers[0] == answers[1]

    def set_run(self) -> None:
        first = self.draw.choice([0, self.draw.randrange(self.blocks)])
        count = min(self.blocks - first, self.draw.choice([1, 3, self.draw.randint(1, 2000), self.blocks]))
        state = self.draw.choice(STATES)
        room = FILE // self.block_size - count
        placed = state in (BlockState.DATA, BlockState.SHARED)
        if placed and room < 0:
            return
        offset = self.draw.randint(0, room) * self.block_size if placed else 0
        word = entry(state, self.draw.randrange(LAYERS) if placed else 0, offset)
        self.both(lambda volume: volume.set_run(first, count, word))

    def move(self) -> None:
        offset = self.draw.randrange(self.length + 600)
        length = self.draw.choice([0, 1, 512, self.block_size, self.draw.randint(1, 5 * self.block_size)])
        data = self.draw.randbytes(length)
        deallocate = self.draw.random() < 0.5
        self.both(
            self.draw.choice(
                [
                    lambda volume: volume.read(offset, length),
                    lambda volume: volume.write(offset, data),
                    lambda volume: volume.zero(offset, length, deallocate),
                ]
            )
        )

    def resize(self) -> None:
        before = self.blocks
        self.length = self.draw.randint(self.length // 2 + 1, self.length + 3 * self.block_size)
        self.both(lambda volume: volume.resize(self.length))
        if self.blocks > before:
            self.both(lambda volume: volume.set_run(before, self.blocks - before, entry(BlockState.ZERO)))
        self.both(lambda volume: [volume.get_entry(block) for block in range(self.blocks)])

    def close(self) -> None:
        self.both(lambda volume: volume.flush())
        for volume in self.volumes:
            volume.close()
        for ours, models in zip(*self.files, strict=True):
            length = max(ours.stat().st_size, models.stat().st_size)  # zeros past the end need not be written
            assert ours.read_bytes().ljust(length, b"\0") == models.read_bytes().ljust(length, b"\0")


@pytest.mark.parametrize("block_size", [512, 4096, 65536])
@pytest.mark.parametrize("seed", range(4))
def test_the_c_volume_does_what_its_model_does(tmp_path: Path, block_size: int, seed: int) -> None:
    draw = random.Random(seed)
    pair = Pair(tmp_path, block_size * draw.randint(3, 1500) + draw.choice([0, 512, 1]), block_size, draw)
    deeds = [pair.set_run, *[pair.move] * 8]
    for _ in range(10):
        pair.set_run()
    for turn in range(1000):
        draw.choice(deeds)()
        if turn % 50 == 49:
            pair.resize()
    pair.close()
