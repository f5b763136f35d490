"""FORMATS: one row per format, and the doors that read it: open_image, create_image, probe.

The format of an image is always said by whoever opens it. `probe` tells what bytes look like and decides nothing,
because a guest can write any bytes into its raw disk (CVE-2008-2004).
"""

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass

from formats import raw
from formats.errors import ImageError, InvalidArgument, image_error
from formats.host_file import HostFile, Path, check_plain_name
from formats.image import Image
from formats.memory import Memory
from formats.null import Null


@dataclass(frozen=True, slots=True)
class Format:
    """One row. A format has either `open` (it lies in a file) or `make` (it has only a length, in bytes)."""

    name: str
    description: str
    open: Callable[[HostFile], Image] | None = None
    create: Callable[[HostFile, int, str], None] | None = None
    make: Callable[[int], Image] | None = None


FORMATS: dict[str, Format] = {
    row.name: row
    for row in (
        Format("raw", "the file's bytes are the disk's bytes; also block devices", open=raw.Raw, create=raw.create),
        Format("memory", "in memory, gone when closed", make=Memory),
        Format("null", "moves no bytes; to measure with", make=Null),
    )
}


def open_image(
    format: str,
    source: HostFile | Path | None = None,
    *,
    read_only: bool = False,
    direct: bool = False,
    length: int | None = None,
) -> Image:
    """Opens `source`, a path or a file that is then the image's to close, as `format`.

    A format without a file takes `length`, in bytes, instead. `read_only` and `direct` (O_DIRECT) say how a path is
    opened; a HostFile was opened before. Errors: ImageError.
    """
    row = _row(format)
    if row.make is not None:
        if source is not None or length is None:
            raise InvalidArgument(f"{format} images have no file: give a length in bytes and no path")
        return row.make(length)
    assert row.open is not None
    if source is None or length is not None:
        raise InvalidArgument(f"{format} images lie in a file: give its path and no length")
    file = source if isinstance(source, HostFile) else HostFile.from_path(source, read_only=read_only, direct=direct)
    return _open(row.open, file)


def _open(opener: Callable[[HostFile], Image], file: HostFile) -> Image:
    try:
        return opener(file)
    except OSError as error:
        file.close()
        raise image_error(error, f"cannot read {file.name}") from error
    except ImageError:
        file.close()
        raise


def create_image(
    format: str, path: Path, length: int, *, preallocation: str = "off", directory: int | None = None
) -> None:
    """Makes a new image of `length` bytes, durable, mode 0600, never over an existing file.

    With `directory`, a descriptor, `path` is a plain name in it. What fails half way leaves nothing behind.
    Errors: ImageExists, InvalidArgument, UnsupportedFeature, HostRefusal (no space, no permission).
    """
    row = _row(format)
    if row.create is None:
        raise InvalidArgument(f"{format} images have no file to create; they are made when they are opened")
    if directory is not None:
        check_plain_name(os.fspath(path))
    with HostFile.create(path, directory=directory) as file:
        try:
            row.create(file, length, preallocation)
            _sync_directory(path, directory)
        except BaseException as error:
            with contextlib.suppress(OSError):
                os.unlink(path, dir_fd=directory)
            if isinstance(error, OSError):
                raise image_error(error, f"cannot create {file.name} with {length} bytes") from error
            raise


def _sync_directory(path: Path, directory: int | None) -> None:
    descriptor = os.open(os.path.dirname(os.fspath(path)) or ".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=directory)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _row(format: str) -> Format:
    if format not in FORMATS:
        raise InvalidArgument(f"{format!r} is not an image format; there are {', '.join(FORMATS)}")
    return FORMATS[format]


_SIGNATURES = (  # offset from the start, or from the end where negative; the most telling first
    ("qcow2", 0, b"QFI\xfb"),
    ("vmdk", 0, b"KDMV"),
    ("vmdk", 0, b"COWD"),
    ("vmdk", 0, b"# Disk DescriptorFile"),
    ("vhdx", 0, b"vhdxfile"),
    ("vhd", 0, b"conectix"),
    ("vdi", 64, b"\x7f\x10\xda\xbe"),
    ("parallels", 0, b"WithoutFreeSpace"),
    ("parallels", 0, b"WithouFreSpacExt"),
    ("qed", 0, b"QED\0"),
    ("luks", 0, b"LUKS\xba\xbe"),
    ("vhd", -512, b"conectix"),
)


def probe(file: HostFile) -> str:
    """The format that the file's bytes look like, “raw” if they look like none: to tell a person, not to open by."""
    length = file.length
    for name, at, signature in _SIGNATURES:
        offset = at if at >= 0 else length + at
        if offset >= 0 and file.pread(offset, len(signature)) == signature:
            return name
    return "raw"
