"""Space of an open file: reserve it, give it back, zero it, through ioctl because Python offers no fallocate modes.

Linux serves the three XFS ioctls on every file system (fs/ioctl.c, since 5.5) by the same code as fallocate(2) with
FALLOC_FL_KEEP_SIZE. Block devices know none of them but BLKZEROOUT.
"""

import errno
import fcntl
import os
import struct

_SPACE = struct.Struct("@hhqqi20x")  # struct space_resv: l_type, l_whence, l_start, l_len, l_sysid, l_pid, l_pad[4]
_FS_IOC_RESVSP64 = 0x4030582A
_FS_IOC_UNRESVSP64 = 0x4030582B
_FS_IOC_ZERO_RANGE = 0x40305839
_BLKZEROOUT = 0x127F
_ZEROS = bytes(1 << 20)


def _call(descriptor: int, request: int, offset: int, length: int) -> None:
    fcntl.ioctl(descriptor, request, _SPACE.pack(0, os.SEEK_SET, offset, length, 0))


def reserve(descriptor: int, offset: int, length: int) -> None:
    """Allocates the range of a regular file without changing its length or bytes. OSError: ENOSPC, EOPNOTSUPP ..."""
    _call(descriptor, _FS_IOC_RESVSP64, offset, length)


def punch(descriptor: int, offset: int, length: int) -> None:
    """Gives the range of a regular file back to the file system; it reads as zeros. OSError: EOPNOTSUPP ..."""
    _call(descriptor, _FS_IOC_UNRESVSP64, offset, length)


def zero_range(descriptor: int, offset: int, length: int) -> None:
    """Zeroes the range of a regular file, as extents where the file system can, else byte by byte."""
    try:
        _call(descriptor, _FS_IOC_ZERO_RANGE, offset, length)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        write_zeros(descriptor, offset, length)


def zero_device(descriptor: int, offset: int, length: int) -> None:
    """Zeroes the range of a block device; both numbers are multiples of its logical block. OSError: EINVAL, EIO ..."""
    fcntl.ioctl(descriptor, _BLKZEROOUT, struct.pack("@QQ", offset, length))


def write_zeros(descriptor: int, offset: int, length: int) -> None:
    """Writes zeros over the range, so that every block of it is allocated."""
    end = offset + length
    while offset < end:
        offset += os.pwrite(descriptor, memoryview(_ZEROS)[: end - offset], offset)
