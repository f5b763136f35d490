"""References: the files that an image names (its parent, its data file), opened only where they may lie.

    top.qcow2 --"../base/b.qcow2"--> a path beside the image that names it --> beneath an allowed directory? --> opened
                                                                               (openat2: the kernel keeps it inside)

What an image names is a wish of whoever wrote its bytes, perhaps a guest. So a reference is followed only beneath the
top image's own directory or one that the caller allows; it names no protocol and no file twice.
"""

import contextlib
import errno
import os
import struct
from collections.abc import Callable, Iterable
from typing import Self

from formats.errors import CorruptImage, ImageError, InvalidArgument, ReferenceOutside, UnsupportedFeature, image_error
from formats.host_file import HostFile, Path
from formats.image import Reference

MOST_IMAGES = 1000  # in one chain

ChainOpener = Callable[[Reference, bool], HostFile]
"""Opens a reference by rules of the caller's own; the flag says whether to read only."""

_OPENAT2 = 437  # the same number on every machine but Alpha
_HOW = struct.Struct("@QQQ")  # struct open_how: flags, mode, resolve
_RESOLVE_NO_MAGICLINKS, _RESOLVE_BENEATH = 0x02, 0x08


class References:
    """A context manager. Errors of everything: ImageError."""

    def __init__(self, top: Path, beneath: Iterable[Path] = (), opener: ChainOpener | None = None) -> None:
        """`beneath`: directories in which references may lie besides that of `top`. `opener` replaces them all."""
        self._opener = opener
        self._seen: dict[tuple[int, int], str] = {}
        self._directories: list[tuple[str, int]] = []
        self._undo = contextlib.ExitStack()
        with contextlib.ExitStack() as undo:
            undo.callback(self.close)
            for directory in (os.path.dirname(os.fspath(top)) or ".", *beneath) if opener is None else ():
                self._allow(os.fspath(directory))
            undo.pop_all()

    def _allow(self, directory: str) -> None:
        try:
            descriptor = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except (OSError, ValueError) as error:
            raise InvalidArgument(f"{directory!r} is no directory to look for images in: {error}") from error
        self._undo.callback(os.close, descriptor)
        names = dict.fromkeys((os.path.abspath(directory), os.path.realpath(directory)))
        self._directories += [(name, descriptor) for name in names]

    def claim(self, file: HostFile, name: str) -> None:
        """Notes a file as part of the chain. CorruptImage when it is so already: the chain would never end."""
        self._claim(os.fstat(file.descriptor), name)

    def _claim(self, status: os.stat_result, name: str) -> None:
        key = status.st_dev, status.st_ino
        if key in self._seen:
            raise CorruptImage(
                f"the chain comes back to the file {self._seen[key]!r}, as {name!r}; every image and data file of it "
                f"must be a file of its own"
            )
        self._seen[key] = name

    def open(
        self, reference: Reference, namer: str, role: str, *, read_only: bool, direct: bool = False
    ) -> tuple[HostFile, str]:
        """The file, locked, and its path. `namer` is the path of the image that names it as its `role`."""
        told = f"{reference.name!r}, the {role} of {namer}"
        if self._opener is not None:
            file = self._opener(reference, read_only)
            self._claim_or_close(file, reference.name)
            return file, reference.name
        check_name(reference.name, told)
        path = os.path.normpath(os.path.join(os.path.dirname(os.path.abspath(namer)), reference.name))
        try:
            found = self._find(path)
        except OSError as error:
            raise image_error(error, f"cannot open {told}") from error
        if found is None:
            raise ReferenceOutside(
                f"{told}, lies outside the directories in which references may lie "
                f"({', '.join(dict(self._directories))}); name a file in one of these, or allow its directory"
            )
        try:
            self._claim(os.fstat(found), path)
            return HostFile.from_reopened(found, path, read_only=read_only, direct=direct), path
        except ImageError as error:
            raise type(error)(f"{error} ({told})") from error
        finally:
            os.close(found)

    def _find(self, path: str) -> int | None:
        """An O_PATH descriptor; None where no allowed directory holds the path, or a symbolic link leads out of it."""
        for directory, descriptor in self._directories:
            inside = os.path.relpath(path, directory)
            if inside.split(os.sep)[0] != os.pardir:
                with contextlib.suppress(_Outside):
                    return _open_beneath(descriptor, inside)
        return None

    def _claim_or_close(self, file: HostFile, name: str) -> None:
        try:
            self.claim(file, name)
        except BaseException:
            file.close()
            raise

    def close(self) -> None:
        """Closes the directories, not the files."""
        self._undo.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Outside(Exception):  # noqa: N818
    """The path leads out of its directory."""


def _open_beneath(directory: int, path: str) -> int:
    """openat2(2) with O_PATH, which Python does not offer: never outside `directory`, whatever links lie on the way."""
    import ctypes  # which most images have no use for

    libc = ctypes.CDLL(None, use_errno=True)
    how = _HOW.pack(os.O_PATH | os.O_CLOEXEC, 0, _RESOLVE_BENEATH | _RESOLVE_NO_MAGICLINKS)
    descriptor: int = libc.syscall(_OPENAT2, directory, os.fsencode(path), how, len(how))
    if descriptor < 0:
        error = ctypes.get_errno()
        if error == errno.EXDEV:
            raise _Outside
        raise OSError(error, os.strerror(error))
    return descriptor


def check_name(name: str, told: str) -> str:
    """`name` if a reference can have it. CorruptImage, UnsupportedFeature where it cannot be that of a file.

    QEMU takes what stands before a colon, and no slash before that, for a protocol; so a name that means a file
    there means the same file here."""
    if not name or "\0" in name:
        raise CorruptImage(f"{told}, is no name of a file")
    if ":" in name.partition("/")[0] or name.startswith("json:"):
        raise UnsupportedFeature(
            f"{told}, names the protocol {name.partition(':')[0]!r}; only files are followed (a file whose name has a "
            f"colon is written with “./” before it)"
        )
    return name


def parent_format(reference: Reference, namer: str) -> str:
    """The format that the image says its parent has. UnsupportedFeature where it says none."""
    if reference.format is None:
        raise UnsupportedFeature(
            f"{namer} does not say which format its backing file {reference.name!r} has, and a format is never "
            f"guessed; record it with: vstore file rebase -f FORMAT -u -b {reference.name} -F PARENT-FORMAT {namer}"
        )
    return reference.format
