"""FORMATS: one row per format, and the doors that read it: open_image, open_chain, create_image, probe.

The format of an image is always said by whoever opens it, and that of a parent by its child. `probe` tells what bytes
look like and decides nothing, because a guest can write any bytes into its raw disk (CVE-2008-2004).
"""

import contextlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

from formats import options as declared
from formats import raw
from formats.backing import MOST_IMAGES, ChainOpener, References, check_name, parent_format
from formats.errors import InvalidArgument, UnsupportedFeature, image_error
from formats.host_file import HostFile, Opener, Path, check_plain_name
from formats.image import Image, Reference
from formats.memory import Memory
from formats.null import Null
from formats.options import Option
from formats.qcow2.options import OPTIONS as QCOW2_OPTIONS

Options = Mapping[str, object]


def _open_raw(file: HostFile, opener: Opener | None) -> Image:
    del opener  # a raw image names no other file
    return raw.Raw(file)


def _create_raw(file: HostFile, length: int, preallocation: str, options: Options, opener: Opener) -> None:
    del options, opener
    raw.create(file, length, preallocation)


def _open_qcow2(file: HostFile, opener: Opener | None) -> Image:
    from formats.qcow2.image import Qcow2  # not before it is needed: the command line reads this table at every start

    return Qcow2(file, opener=opener, track_writes=True)


def _create_qcow2(file: HostFile, length: int, preallocation: str, options: Options, opener: Opener) -> None:
    from formats.qcow2.create import create, options_named

    create(file, length, preallocation, options_named(options), opener=opener)


def _open_luks(file: HostFile, opener: Opener | None) -> Image:
    from formats.luks_file import LuksFile

    del opener
    return LuksFile(file)


def _create_luks(file: HostFile, length: int, preallocation: str, options: Options, opener: Opener) -> None:
    from formats.luks_file import create

    del opener
    create(file, length, preallocation, options.get("secret"))


class Report(Protocol):
    """What a check found: counts, and sentences. `as_json`: the object of `qemu-img check --output=json`."""

    corruptions: int
    leaks: int
    corruptions_fixed: int
    leaks_fixed: int
    findings: list[str]

    def as_json(self, filename: str) -> dict[str, object]: ...


def _check_qcow2(file: HostFile, repair: str) -> Report:
    from formats.qcow2.check import check

    return check(file, repair=repair)


class Format(NamedTuple):
    """One row. A format has either `open` (it lies in a file) or `make` (it has only a length, in bytes).

    `open(file, opener)`: the opener is asked for a data file, if the image has one.
    `create(file, length, preallocation, options, opener)` gets the options as what they mean.
    `check(file, repair)` examines an image that nobody uses; repair is none, leaks or all.
    """

    name: str
    description: str
    open: Callable[[HostFile, Opener | None], Image] | None = None
    create: Callable[[HostFile, int, str, Options, Opener], None] | None = None
    options: Sequence[Option] = ()
    check: Callable[[HostFile, str], Report] | None = None
    make: Callable[[int], Image] | None = None


FORMATS: dict[str, Format] = {
    row.name: row
    for row in (
        Format("raw", "the file's bytes are the disk's bytes; also block devices", open=_open_raw, create=_create_raw),
        Format(
            "qcow2",
            "QEMU's: sparse, over a parent, with snapshots and compression",
            open=_open_qcow2,
            create=_create_qcow2,
            options=QCOW2_OPTIONS,
            check=_check_qcow2,
        ),
        Format("luks", "a raw disk, encrypted (LUKS1)", open=_open_luks, create=_create_luks),
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
    opener: Opener | None = None,
) -> Image:
    """Opens `source`, a path or a file that is then the image's to close, as `format`; its parents are not opened.

    A format without a file takes `length`, in bytes, instead. `read_only` and `direct` (O_DIRECT) say how a path is
    opened; a HostFile was opened before. `opener` opens the data file of an image that has one. Errors: ImageError.
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
    return _open(row.open, file, opener)


def _open(open_file: Callable[[HostFile, Opener | None], Image], file: HostFile, opener: Opener | None) -> Image:
    try:
        return open_file(file, opener)
    except OSError as error:
        file.close()
        raise image_error(error, f"cannot read {file.name}") from error
    except BaseException:
        file.close()
        raise


def open_chain(
    format: str,
    path: Path,
    *,
    read_only: bool = False,
    direct: bool = False,
    beneath: Iterable[Path] = (),
    opener: ChainOpener | None = None,
    snapshot: str | None = None,
    writable_parents: int = 0,
    secrets: Sequence[bytes] = (),
) -> list[Image]:
    """The image at `path`, then its parents, nearest first: what `vstore.disk.Disk` takes. With `snapshot`, an ID or
    name, the disk as that internal snapshot has it, to read only.

    A parent is opened in the format that its child says, read-only and locked as a reader, but for the nearest
    `writable_parents` (a commit writes into them). What images name is followed
    only in the directory of `path` and in those `beneath` names, and below them, or, with `opener`, as that says.
    `secrets` are tried on every image that is encrypted. Errors: ImageError.
    """
    _check_snapshot(path, snapshot, read_only=read_only)
    with contextlib.ExitStack() as undo, References(path, beneath, opener) as references:
        images: list[Image] = []
        file, where = HostFile.from_path(path, read_only=read_only, direct=direct), os.fspath(path)
        undo.callback(file.close)
        references.claim(file, where)
        while True:
            image = _readable(format, file, _data_opener(references, file, where, direct=direct), secrets)
            undo.callback(image.close)
            images.append(image)
            if image.backing is None:
                break
            _check_depth(path, len(images))
            format = _parent_format(image.backing, where)
            only_read = len(images) > writable_parents
            file, where = references.open(image.backing, where, "backing file", read_only=only_read, direct=direct)
            undo.callback(file.close)
        images[:1] = [images[0].become_snapshot(snapshot)] if snapshot is not None else images[:1]
        undo.pop_all()
        return images


def _check_depth(path: Path, images: int) -> None:
    if images == MOST_IMAGES:
        raise UnsupportedFeature(
            f"{os.fspath(path)} has more than {MOST_IMAGES - 1} parents; commit or rebase some of them first"
        )


def _readable(format: str, file: HostFile, opener: Opener, secrets: Sequence[bytes]) -> Image:
    image = open_image(format, file, opener=opener)
    try:
        image.unlock(secrets)
    except BaseException:
        image.close()
        raise
    return image


def _check_snapshot(path: Path, snapshot: str | None, *, read_only: bool) -> None:
    if snapshot is not None and not read_only:
        raise InvalidArgument(f"snapshot {snapshot!r} of {os.fspath(path)} can only be read; apply it to write to it")


def _data_opener(references: References, file: HostFile, where: str, *, direct: bool) -> Opener:
    def open_data_file(reference: Reference) -> HostFile:
        return references.open(reference, where, "data file", read_only=file.read_only, direct=direct)[0]

    return open_data_file


def _parent_format(reference: Reference, namer: str) -> str:
    format = parent_format(reference, namer)
    if format not in _in_files():
        raise UnsupportedFeature(
            f"{namer} says that its backing file {reference.name!r} is {format!r}; those that are read are "
            f"{', '.join(_in_files())}"
        )
    return format


def _in_files() -> list[str]:
    return [name for name, row in FORMATS.items() if row.open]


def check_image(format: str, file: HostFile, *, repair: str = "none") -> Report:
    """Examines, and repairs if asked (none, leaks, all), an image that nobody uses; the file stays the caller's.

    Errors: ImageError; UnsupportedFeature where the format has nothing to check.
    """
    row = _row(format)
    if row.check is None:
        raise UnsupportedFeature(f"{format} images have no structure that could be checked")
    try:
        return row.check(file, repair)
    except OSError as error:
        raise image_error(error, f"cannot check {file.name}") from error


def create_image(
    format: str,
    path: Path,
    length: int,
    *,
    preallocation: str = "off",
    directory: int | None = None,
    options: Options | None = None,
    secret: bytes | None = None,
    data_file: HostFile | None = None,
) -> None:
    """Makes a new image of `length` bytes, durable, mode 0600, never over an existing file.

    `options` are those of the format's row, as text or as what they mean. A data file is made with the image, in its
    directory, unless an empty one came along, which stays the caller's; `secret` opens an encrypted image. With
    `directory`, a descriptor, `path` is a plain name in it. What fails half way leaves nothing behind.
    Errors: ImageExists, InvalidArgument, UnsupportedFeature, HostRefusal (no space, no permission).
    """
    row = _row(format)
    if row.create is None:
        raise InvalidArgument(f"{format} images have no file to create; they are made when they are opened")
    meant = declared.parsed(format, row.options, options or {}) | ({} if secret is None else {"secret": secret})
    _check_references(meant)
    if directory is not None:
        check_plain_name(os.fspath(path))
    with contextlib.ExitStack() as undo:
        file, data = _made(path, directory, undo), data_file
        try:
            if "data_file" in meant and data is None:
                beside = _beside(path, str(meant["data_file"]), directory)
                data = _made(beside, directory, undo)
                _sync_directory(beside, directory)
            row.create(file, length, preallocation, meant, lambda _: _duplicate(data))
            _sync_directory(path, directory)
        except OSError as error:
            raise image_error(error, f"cannot create {file.name} with {length} bytes") from error
        undo.pop_all()
    for made in (file, data if data is not data_file else None):
        if made is not None:
            made.close()


def _made(path: Path, directory: int | None, undo: contextlib.ExitStack) -> HostFile:
    """A new file, which goes again when what was begun fails."""
    file = HostFile.create(path, directory=directory)

    def remove() -> None:
        file.close()
        with contextlib.suppress(OSError):
            os.unlink(path, dir_fd=directory)

    undo.callback(remove)
    return file


def _check_references(meant: Options) -> None:
    for role in ("backing_file", "data_file"):
        if role in meant:
            check_name(str(meant[role]), f"{meant[role]!r}, given as {role}")
    if "backing_fmt" in meant and meant["backing_fmt"] not in _in_files():
        raise InvalidArgument(f"backing_fmt is {meant['backing_fmt']!r}; it must be one of {', '.join(_in_files())}")


def _beside(path: Path, name: str, directory: int | None) -> str:
    return check_plain_name(name) if directory is not None else os.path.join(os.path.dirname(os.fspath(path)), name)


def _duplicate(file: HostFile | None) -> HostFile:
    assert file is not None
    return HostFile.from_descriptor(os.dup(file.descriptor), name=file.name, lock=False)


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
