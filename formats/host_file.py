"""HostFile: one open descriptor of a regular file or block device, checked, locked, and with all that formats do to it.

Opening fails with ImageError. Afterwards every method raises OSError, because then the errno tells all.
"""

import errno
import fcntl
import os
import stat
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Self

from formats import byte_locks, direct_io, plain_io, space
from formats.errors import ImageError, InvalidArgument, InvalidImage, ReadOnlyImage, UnsupportedFeature, image_error
from formats.image import Layer, LayerFlags, Reference

Path = str | os.PathLike[str]
Opener = Callable[[Reference], "HostFile"]
"""Opens another file that an image names."""

_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a character device",
    stat.S_IFLNK: "a symbolic link",
}


class HostFile:
    """Owns its descriptor. `name` is what messages call the file. Offsets and lengths are in bytes."""

    def __init__(self, descriptor: int, name: str, *, read_only: bool, lock: bool) -> None:
        """Takes over an open descriptor and closes it when it does not serve; see `from_descriptor`."""
        self.descriptor = descriptor
        self.name = name
        self.read_only = read_only
        self.lost = 0  # errno with which bytes were lost on their way to the disk; whoever else learns of it may set it
        try:
            self._check()
            if lock:
                byte_locks.lock(descriptor, name, read_only=read_only)
            self.is_block_device = stat.S_ISBLK(os.fstat(descriptor).st_mode)
            self.instant = _lies_in_memory(descriptor)
            self.direct = bool(_flags(descriptor) & os.O_DIRECT) and not self.instant
            self.direct_alignment = direct_io.alignment(descriptor) if self.direct else 1
        except OSError as error:
            self.close()
            raise image_error(error, f"cannot use {name}") from error
        except ImageError:
            self.close()
            raise

    @classmethod
    def from_path(
        cls,
        path: Path,
        *,
        read_only: bool = False,
        direct: bool = False,
        lock: bool = True,
        directory: int | None = None,
    ) -> Self:
        """Opens what a person named; symbolic links are followed. With `directory`, a descriptor, relative to it.

        Errors: ImageNotFound, InvalidImage (not a file or block device), ImageInUse, UnsupportedFeature, HostRefusal.
        """
        return cls._open(path, 0, read_only=read_only, direct=direct, lock=lock, directory=directory)

    @classmethod
    def from_reopened(cls, found: int, name: str, *, read_only: bool, direct: bool = False) -> Self:
        """Opens and locks what an O_PATH descriptor stands for, which stays the caller's. Errors: as `from_path`."""
        path = f"/proc/self/fd/{found}"
        return cls._open(path, 0, read_only=read_only, direct=direct, lock=True, directory=None, name=name)

    @classmethod
    def _open(
        cls,
        path: Path,
        flags: int,
        *,
        read_only: bool,
        direct: bool,
        lock: bool,
        directory: int | None,
        name: str | None = None,
    ) -> Self:
        name = name or os.fspath(path)
        try:
            mode = os.stat(path, dir_fd=directory, follow_symlinks=not flags & os.O_NOFOLLOW).st_mode
            _check_kind(mode, name)  # before opening: to open a FIFO waits, to open a device may act
            flags |= os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK | (os.O_RDONLY if read_only else os.O_RDWR)
            if stat.S_ISBLK(mode) and not read_only:
                flags |= os.O_EXCL  # open(2): EBUSY when the kernel uses it: mounted, swap, LVM, RAID
            descriptor = os.open(path, flags | (os.O_DIRECT if direct else 0), dir_fd=directory)
        except (OSError, ValueError) as error:
            raise _refusal(error, name, direct=direct) from error
        return cls(descriptor, name, read_only=read_only, lock=lock)

    @classmethod
    def from_descriptor(
        cls, descriptor: int, *, name: str = "image", read_only: bool = False, lock: bool = True
    ) -> Self:
        """Takes over a descriptor that was handed in; O_DIRECT is as its opener set it. Errors: as `from_path`."""
        return cls(descriptor, name, read_only=read_only, lock=lock)

    @classmethod
    def create(cls, path: Path, *, lock: bool = True, directory: int | None = None) -> Self:
        """Makes a new empty file of mode 0600, never over an old one. Errors: ImageExists, HostRefusal ..."""
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            descriptor = os.open(path, flags, 0o600, dir_fd=directory)
        except (OSError, ValueError) as error:
            raise _refusal(error, os.fspath(path), doing="create") from error
        return cls(descriptor, os.fspath(path), read_only=False, lock=lock)

    def _check(self) -> None:
        _check_kind(os.fstat(self.descriptor).st_mode, self.name)
        flags = _flags(self.descriptor)
        if flags & (os.O_PATH | os.O_APPEND) or flags & os.O_ACCMODE == os.O_WRONLY:
            raise InvalidArgument(f"the descriptor of {self.name} must be open for reading, without O_APPEND or O_PATH")
        if not self.read_only and flags & os.O_ACCMODE == os.O_RDONLY:
            raise ReadOnlyImage(f"the descriptor of {self.name} is open for reading only; hand in one open for both")
        if flags & os.O_NONBLOCK:  # io_uring would answer EAGAIN instead of waiting
            fcntl.fcntl(self.descriptor, fcntl.F_SETFL, flags & ~os.O_NONBLOCK)

    @property
    def length(self) -> int:
        """Bytes of the file, or of the device."""
        return os.lseek(self.descriptor, 0, os.SEEK_END)

    @property
    def allocated(self) -> int:
        """Bytes that the file takes up on its file system."""
        return os.fstat(self.descriptor).st_blocks * 512

    @property
    def layer(self) -> Layer:
        """This file as a layer of an image."""
        flags = LayerFlags.NONE
        flags |= LayerFlags.READ_ONLY if self.read_only else flags
        flags |= LayerFlags.DIRECT if self.direct else flags
        flags |= LayerFlags.INSTANT if self.instant else flags
        flags |= LayerFlags.BLOCK_DEVICE if self.is_block_device else flags
        return Layer(self.descriptor, flags, self.direct_alignment, self)

    def pread(self, offset: int, length: int) -> bytes:
        """The bytes of the range, fewer only at the end of the file."""
        if self.direct:
            return direct_io.read(self.descriptor, offset, length, self.direct_alignment)
        return plain_io.read(self.descriptor, offset, length)

    def written(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """Start and end of the parts of a range that may hold anything but zeros, as the file system knows them."""
        at, end = offset, min(offset + length, self.length)
        while at < end:
            try:
                start = os.lseek(self.descriptor, at, os.SEEK_DATA)
                stop = os.lseek(self.descriptor, start, os.SEEK_HOLE)
            except OSError as error:
                if error.errno == errno.ENXIO:  # nothing but a hole up to the end
                    return
                start, stop = at, end  # a device, or a file system that does not tell
            if start < end:
                yield start, min(stop, end)
            at = stop

    def pwrite(self, offset: int, data: bytes) -> None:
        """Writes all of `data`, extending the file where needed."""
        if self.direct:
            direct_io.write(self.descriptor, offset, data, self.direct_alignment)
            return
        done = 0
        while done < len(data):
            done += os.pwrite(self.descriptor, memoryview(data)[done:], offset + done)

    def fdatasync(self) -> None:
        """Makes durable what was written, the length included. What failed once fails for good: Linux tells a lost
        write only once to each open file (fsync(2)), and later calls would claim what is not so."""
        if self.lost:
            raise OSError(self.lost, os.strerror(self.lost))
        try:
            os.fdatasync(self.descriptor)
        except OSError as error:
            self.lost = error.errno or errno.EIO
            raise

    def truncate(self, length: int) -> None:
        """Sets the length of a regular file; what is new reads as zeros."""
        os.ftruncate(self.descriptor, length)

    def fallocate(self, offset: int, length: int) -> None:
        """Reserves space for a range of a regular file; length and bytes stay as they are."""
        space.reserve(self.descriptor, offset, length)

    def punch(self, offset: int, length: int) -> None:
        """Zeroes the range and gives its space back; a block device only zeroes (whole logical blocks)."""
        (space.zero_device if self.is_block_device else space.punch)(self.descriptor, offset, length)

    def zero_range(self, offset: int, length: int) -> None:
        """Zeroes the range and keeps its space; on a block device whole logical blocks."""
        (space.zero_device if self.is_block_device else space.zero_range)(self.descriptor, offset, length)

    def punches(self) -> bool:
        """Whether zeroing a range can give its space back here."""
        return not self.read_only and space.punches(self.descriptor)

    def close(self) -> None:
        """Closes the descriptor; the lock ends with its last duplicate. A second call does nothing."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def open_beneath(
    directory: int, name: str, *, read_only: bool = False, direct: bool = False, lock: bool = True
) -> HostFile:
    """Opens an image of a pool by its plain name: no path, no symbolic link, so nothing outside `directory`.

    openat2 with RESOLVE_BENEATH is out of Python's reach; a name without “/” and O_NOFOLLOW give the same here.
    Errors: InvalidArgument (not a plain name), and those of `HostFile.from_path`.
    """
    check_plain_name(name)
    return HostFile._open(name, os.O_NOFOLLOW, read_only=read_only, direct=direct, lock=lock, directory=directory)


def check_plain_name(name: str) -> str:
    """`name` if it names an entry of one directory; InvalidArgument otherwise."""
    if name in ("", ".", "..") or "/" in name or "\0" in name or len(os.fsencode(name)) > 255:
        raise InvalidArgument(f"{name!r} cannot name an image: use 1 to 255 bytes without “/” or NUL, not “.” or “..”")
    return name


def _flags(descriptor: int) -> int:
    return fcntl.fcntl(descriptor, fcntl.F_GETFL)


def _check_kind(mode: int, name: str) -> None:
    if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "of an unknown kind")
        raise InvalidImage(f"{name} is {kind}; an image is a regular file or a block device")


def _lies_in_memory(descriptor: int) -> bool:
    """Whether this is a file of tmpfs or a memfd: of all files, only those answer F_GET_SEALS."""
    try:
        fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
    except OSError:
        return False
    return True


def _refusal(error: OSError | ValueError, name: str, *, doing: str = "open", direct: bool = False) -> ImageError:
    if isinstance(error, ValueError):
        return InvalidArgument(f"{name!r} cannot be a path: {error}")
    if direct and error.errno == errno.EINVAL:
        return UnsupportedFeature(f"the file system of {name} offers no direct I/O; open it without")
    return image_error(error, f"cannot {doing} {name}")
