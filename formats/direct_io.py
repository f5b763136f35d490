"""I/O of any alignment on a file that is open with O_DIRECT, and the alignment that such a file needs.

Metadata of a format goes through here; the disk's own bytes do not. A range is widened to whole units in a page-aligned
buffer, so an unaligned write reads and rewrites its two edges: one writer at a time.
"""

import errno
import fcntl
import mmap
import os
import stat
import sys

from formats.space import block_queue

_BLKSSZGET = 0x1268
_CANDIDATES = (512, 1024, 2048, 4096)
_SAFE = 4096  # no device that Linux serves asks for more


def alignment(descriptor: int) -> int:
    """Bytes that offset, length and address of direct I/O must be multiples of; 512 to 4096.

    A block device says it. A file is tried: the smallest read that succeeds where the file has data, because reads of
    holes and past the end skip the check. Without data the device under the file system says it, if there is one.
    """
    status = os.fstat(descriptor)
    if stat.S_ISBLK(status.st_mode):
        return int.from_bytes(fcntl.ioctl(descriptor, _BLKSSZGET, bytes(4)), sys.byteorder)
    offset = _first_data(descriptor)
    if offset is None:
        return block_queue(status.st_dev, "logical_block_size") or _SAFE
    return next((n for n in _CANDIDATES if _reads(descriptor, offset, n)), _SAFE)


def _first_data(descriptor: int) -> int | None:
    try:
        return os.lseek(descriptor, 0, os.SEEK_DATA) // _SAFE * _SAFE
    except OSError:  # ENXIO: nothing but a hole
        return None


def _reads(descriptor: int, offset: int, unit: int) -> bool:
    with mmap.mmap(-1, 3 * _SAFE) as memory, memoryview(memory) as view, view[unit : 2 * unit] as target:
        try:
            return os.preadv(descriptor, [target], offset + unit) > 0
        except OSError as error:
            if error.errno == errno.EINVAL:
                return False
            raise


def read(descriptor: int, offset: int, length: int, unit: int) -> bytes:
    """The bytes of the range, fewer only at the end of the file."""
    start, end = offset // unit * unit, -(-(offset + length) // unit) * unit
    if start == end:
        return b""
    with mmap.mmap(-1, end - start) as memory:
        got = _fill(descriptor, memory, start, unit)
        return memory[offset - start : min(offset - start + length, got)]


def write(descriptor: int, offset: int, data: bytes, unit: int) -> None:
    """Writes the range. A write that ends inside the file's last unit leaves the file's length as it was."""
    start, end = offset // unit * unit, -(-(offset + len(data)) // unit) * unit
    if start == end:
        return
    length = max(os.lseek(descriptor, 0, os.SEEK_END), offset + len(data))
    with mmap.mmap(-1, end - start) as memory:
        if (offset, len(data)) != (start, end - start):
            _fill(descriptor, memory, start, unit)
        memory[offset - start : offset - start + len(data)] = data
        _drain(descriptor, memory, start)
    if end > length:
        os.ftruncate(descriptor, length)


def _fill(descriptor: int, memory: mmap.mmap, start: int, unit: int) -> int:
    got = 0
    with memoryview(memory) as view:
        while got < len(view):
            with view[got:] as rest:
                count = os.preadv(descriptor, [rest], start + got)
            got += count
            if count == 0 or got % unit:  # the end of the file, which may lie inside a unit
                break
    return got


def _drain(descriptor: int, memory: mmap.mmap, start: int) -> None:
    done = 0
    with memoryview(memory) as view:
        while done < len(view):
            with view[done:] as rest:
                done += os.pwritev(descriptor, [rest], start + done)
