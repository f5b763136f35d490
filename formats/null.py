"""null: a disk that moves no bytes, to measure everything around them; what it reads is whatever the buffer held."""

from collections.abc import Sequence

from formats.image import BlockState, Geometry, Image, Layer, LayerFlags, Run, check_length, entry

BLOCK_SIZE = 1 << 30


class Null(Image):
    """A disk of `length` bytes that holds none of them. Errors: InvalidArgument."""

    format = "null"
    flat = True
    resizes = True

    def __init__(self, length: int) -> None:
        super().__init__(Geometry(check_length(length), BLOCK_SIZE))

    @property
    def layers(self) -> Sequence[Layer]:
        return [Layer(-1, LayerFlags.NULL | LayerFlags.INSTANT)]

    def load(self, first: int, count: int) -> Sequence[Run]:
        return [Run(first, count, entry(BlockState.DATA, 0, first * BLOCK_SIZE))]

    def resize(self, length: int) -> None:
        self.geometry = Geometry(check_length(length), BLOCK_SIZE)

    def info(self) -> dict[str, object]:
        return {"format": self.format, "virtual-size": self.geometry.length, "actual-size": 0, "dirty-flag": False}
