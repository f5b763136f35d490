"""Space of an open file: reserve it, give it back, zero it, through ioctl because Python offers no fallocate modes.

Linux serves the three XFS ioctls on every file system (fs/ioctl.c, since 5.5) by the same code as fallocate(2) with
FALLOC_FL_KEEP_SIZE. Block devices know none of them but BLKZEROOUT; what a discard does there is told by sysfs.
"""

import errno
import fcntl
import os
import stat
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


def punches(descriptor: int) -> bool:
    """Whether zeroing can give space back here. Changes nothing: a file is tried past its end, a device is asked."""
    status = os.fstat(descriptor)
    if stat.S_ISBLK(status.st_mode):
        return _device_punches(status.st_rdev)
    try:
        punch(descriptor, -(-status.st_size // 4096) * 4096, 4096)
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.ENOTTY, errno.EFBIG):
            return False
        raise
    return True


def _device_punches(device: int) -> bool:
    """Both kinds of request must exist: discards free space, and only zeroing by the device promises zeros."""
    return all(block_queue(device, name) for name in ("discard_max_bytes", "write_zeroes_max_bytes"))


def block_queue(device: int, attribute: str) -> int:
    """A number that sysfs tells of a block device; 0 where there is no such device, or no sysfs to ask."""
    place = os.path.realpath(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}")
    disk = os.path.dirname(place) if os.path.exists(f"{place}/partition") else place
    try:
        with open(f"{disk}/queue/{attribute}") as told:
            return int(told.read())
    except OSError:
        return 0
