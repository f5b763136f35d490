"""memory: a disk that lives in an anonymous file in memory and is gone when it is closed."""

import os
from collections.abc import Sequence

from formats.errors import image_error
from formats.image import BlockState, Geometry, Image, Layer, LayerFlags, Run, check_length, entry

BLOCK_SIZE = 1 << 30


class Memory(Image):
    """A disk of `length` bytes of zeros. Errors: InvalidArgument; HostRefusal where the host gives no memory."""

    format = "memory"
    flat = True
    resizes = True

    def __init__(self, length: int) -> None:
        super().__init__(Geometry(check_length(length), BLOCK_SIZE), deallocates=True)
        self._descriptor = os.memfd_create("vstore-memory-image", os.MFD_CLOEXEC)
        try:
            os.ftruncate(self._descriptor, length)
        except OSError as error:
            self.close()
            raise image_error(error, f"cannot make a memory image of {length} bytes") from error

    @property
    def layers(self) -> Sequence[Layer]:
        return [Layer(self._descriptor, LayerFlags.MEMORY | LayerFlags.INSTANT)]

    def load(self, first: int, count: int) -> Sequence[Run]:
        return [Run(first, count, entry(BlockState.DATA, 0, first * BLOCK_SIZE))]

    def resize(self, length: int) -> None:
        try:
            os.ftruncate(self._descriptor, check_length(length))
        except OSError as error:
            raise image_error(error, f"cannot make a memory image {length} bytes long") from error
        self.geometry = Geometry(length, BLOCK_SIZE)

    def info(self) -> dict[str, object]:
        return {
            "format": self.format,
            "virtual-size": self.geometry.length,
            "actual-size": os.fstat(self._descriptor).st_blocks * 512,
            "dirty-flag": False,
        }

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
