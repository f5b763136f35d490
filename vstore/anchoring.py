"""Anchoring: a range of a disk reads as zeros and has room on the host all the same, which no one else takes.

zeroed, as far as blocks have places to keep --> zeros written where there is none --> zeroed there, too
"""

import errno
import os
from collections.abc import Iterator

from vstore.block_io import BlockIo
from vstore.cipher_io import CipherIo

_WRITTEN_AT_ONCE = 1 << 20  # bytes of zeros

Io = BlockIo | CipherIo


def anchor(io: Io, offset: int, length: int, size: int, disk_length: int) -> None:
    """The whole blocks, of `size` bytes, of a range; the rest of it is zeroed. OSError (ENOSPC): there is no room."""
    end = offset + length
    first, last = offset + -offset % size, end if end == disk_length else end - end % size
    if first >= last:
        _write_zeros(io, offset, length)
        return
    _write_zeros(io, offset, first - offset)
    _write_zeros(io, last, end - last)
    _zero_in_place(io, first, last - first)
    if _give_room(io, first, last - first):
        _zero_in_place(io, first, last - first)
    if any(status == 0 for _, status in _rows(io, first, last - first)):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _zero_in_place(io: Io, offset: int, length: int) -> None:
    io.zero(offset, length, deallocate=False)
    io.flush()


def _give_room(io: Io, offset: int, length: int) -> bool:
    """Zeros are written where there is none; once they are committed, the blocks have places to keep. Whether there
    was such a place."""
    written = False
    for count, status in _rows(io, offset, length):
        if status == 0:
            _write_zeros(io, offset, count)
            written = True
        offset += count
    if written:
        io.flush()
    return written


def _write_zeros(io: Io, offset: int, length: int) -> None:
    for at in range(offset, offset + length, _WRITTEN_AT_ONCE):
        io.write(at, bytes(min(_WRITTEN_AT_ONCE, offset + length - at)))


def _rows(io: Io, offset: int, length: int) -> Iterator[tuple[int, int]]:
    end = offset + length
    while offset < end:
        count, status = io.status(offset, end - offset)
        yield count, status
        offset += count
