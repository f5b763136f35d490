"""raw: the file's bytes are the disk's bytes, so the whole map is one run; the smallest format, to copy from.

A file may have any length from 512 bytes on. The disk is exactly as long: a tail shorter than a logical block is out of
a guest's reach, but no job loses it. The file stays as sparse as the host makes it, and holes are written in place.
Only direct I/O needs a length in whole units, because writing the last one in part would lengthen the file.
"""

from collections.abc import Sequence

from formats.errors import InvalidArgument, InvalidImage, UnsupportedFeature, image_error
from formats.host_file import HostFile
from formats.image import SECTOR, BlockState, Geometry, Image, Layer, Run, check_length, entry
from formats.space import write_zeros

BLOCK_SIZE = 1 << 30  # nothing is ever cut but at its borders, so a large one


class Raw(Image):
    """A raw image; owns its file. Raises InvalidImage for a file too short to be a disk, UnsupportedFeature for one
    whose length direct I/O cannot keep."""

    format = "raw"
    flat = True
    resizes = True

    def __init__(self, file: HostFile) -> None:
        if file.length < SECTOR:
            raise InvalidImage(f"{file.name} has {file.length} bytes; a disk has at least {SECTOR}")
        _check_direct(file, file.length)
        super().__init__(Geometry(file.length, BLOCK_SIZE), read_only=file.read_only, deallocates=file.punches())
        self.file = file

    @property
    def layers(self) -> Sequence[Layer]:
        return [self.file.layer]

    def load(self, first: int, count: int) -> Sequence[Run]:
        return [Run(first, count, entry(BlockState.DATA, 0, first * BLOCK_SIZE))]

    def resize(self, length: int) -> None:
        """Cuts or lengthens the file. A block device only takes the length that the host has given it meanwhile."""
        self._require_writable("resize it")
        if not self.file.is_block_device:
            _check_direct(self.file, check_length(length))
            self._truncate(length)
        elif length != self.file.length:
            raise UnsupportedFeature(
                f"{self.file.name} is a block device of {self.file.length} bytes and cannot be made {length}; "
                f"resize the device first, then ask for its new length"
            )
        self.geometry = Geometry(length, BLOCK_SIZE)

    def _truncate(self, length: int) -> None:
        try:
            self.file.truncate(length)
            self.file.fdatasync()
        except OSError as error:
            raise image_error(error, f"cannot make {self.file.name} {length} bytes long") from error

    def info(self) -> dict[str, object]:
        return {
            "filename": self.file.name,
            "format": self.format,
            "virtual-size": self.geometry.length,
            "actual-size": self.file.allocated,
            "dirty-flag": False,
        }

    def close(self) -> None:
        self.file.close()


def _check_direct(file: HostFile, length: int) -> None:
    if length % file.direct_alignment:
        raise UnsupportedFeature(
            f"{length} bytes of {file.name} are not a multiple of the {file.direct_alignment} that direct I/O needs "
            f"here; open it without, or resize it first"
        )


def create(file: HostFile, length: int, preallocation: str) -> None:
    """Makes an empty file a disk of `length` bytes. `preallocation`: off (sparse), falloc (reserved), full (written).

    Errors: InvalidArgument; UnsupportedFeature where the file system cannot reserve; OSError, as ENOSPC.
    """
    if preallocation not in _PREALLOCATIONS:
        raise InvalidArgument(f"preallocation {preallocation!r} is none of {', '.join(_PREALLOCATIONS)}")
    file.truncate(check_length(length))
    _PREALLOCATIONS[preallocation](file, length)
    file.fdatasync()


def _leave_sparse(file: HostFile, length: int) -> None:
    """A file that was only truncated has no blocks yet."""


def _reserve(file: HostFile, length: int) -> None:
    file.fallocate(0, length)


def _fill(file: HostFile, length: int) -> None:
    write_zeros(file.descriptor, 0, length)


_PREALLOCATIONS = {"off": _leave_sparse, "falloc": _reserve, "full": _fill}
