"""The lock on a live image, byte for byte the one that QEMU takes, so that each side refuses what the other holds.

QEMU (block/file-posix.c) gives each permission n two bytes of the file, both locked shared and only ever tested
exclusively: 100 + n says “I use permission n”, 200 + n says “nobody else may use permission n”. Whoever opens the
image locks its bytes first and looks for the other side's afterwards; of two that race, one or both are refused.
The locks are OFD locks: they belong to the open file description, travel with a descriptor that is passed on, and end
with its last duplicate.
"""

import errno
import fcntl
import os
import struct
from enum import IntEnum

from formats.errors import ImageInUse, UnsupportedFeature

_FLOCK = struct.Struct("@hhqqi4x")  # struct flock: l_type, l_whence, l_start, l_len, l_pid
_USED = 100
_NOT_SHARED = 200


class Permission(IntEnum):
    """QEMU's BLK_PERM_* by bit number."""

    CONSISTENT_READ = 0
    WRITE = 1
    WRITE_UNCHANGED = 2
    RESIZE = 3


_READER = (Permission.CONSISTENT_READ,)
_WRITER = (Permission.CONSISTENT_READ, Permission.WRITE, Permission.RESIZE)
_NEVER_SHARED = (Permission.WRITE, Permission.RESIZE)

_USES = {
    Permission.CONSISTENT_READ: "reads it",
    Permission.WRITE: "writes to it",
    Permission.WRITE_UNCHANGED: "rewrites it",
    Permission.RESIZE: "may resize it",
}
_FORBIDS = {
    Permission.CONSISTENT_READ: "forbids others to read it",
    Permission.WRITE: "forbids others to write to it",
    Permission.WRITE_UNCHANGED: "forbids others to rewrite it",
    Permission.RESIZE: "forbids others to resize it",
}


def lock(descriptor: int, name: str, *, read_only: bool) -> None:
    """Takes a reader's or a writer's lock: many readers, or one writer alone.

    Errors: ImageInUse; UnsupportedFeature where the file system has no locks.
    """
    uses = _READER if read_only else _WRITER
    try:
        _take(descriptor, [_USED + n for n in uses] + [_NOT_SHARED + n for n in _NEVER_SHARED])
        _refuse_if_held(descriptor, name, {_NOT_SHARED + n: _FORBIDS[n] for n in uses})
        _refuse_if_held(descriptor, name, {_USED + n: _USES[n] for n in _NEVER_SHARED})
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            raise ImageInUse(f"{name} is in use: another process holds all of it; close it there first") from error
        raise UnsupportedFeature(
            f"the file system of {name} offers no file locks ({error.strerror}); "
            f"open it without a lock only if nothing else can open it"
        ) from error


def _take(descriptor: int, offsets: list[int]) -> None:
    for offset in offsets:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, offset, 1, 0))


def _refuse_if_held(descriptor: int, name: str, offsets: dict[int, str]) -> None:
    for offset, deed in offsets.items():
        asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, offset, 1, 0)
        kind = _FLOCK.unpack(fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, asked))[0]
        if kind != fcntl.F_UNLCK:
            raise ImageInUse(f"{name} is in use: another process {deed}; close it there first")
