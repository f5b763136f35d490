"""The verbs on paths: images opened as a person names them, one verb done, everything closed again.

    path, format --> chain (references only beneath its directory and those that are allowed) --> verb --> what it told

All fails as Refused: one sentence. Live images are locked, and so refused. What only one verb needs is imported when it
is called: a command is to start quickly.
"""

import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from formats.backing import check_name
from formats.errors import ImageError, InvalidArgument, ReferenceOutside, UnsupportedFeature
from formats.host_file import HostFile
from formats.image import Image, Reference
from formats.qcow2.bitmaps import Bitmaps
from formats.qcow2.image import Qcow2
from formats.registry import check_image, create_image, open_chain, open_image, probe
from vstore.transfer.progress import Progress, silent

if TYPE_CHECKING:
    from vstore.transfer.compare import Difference

_P = ParamSpec("_P")
_T = TypeVar("_T")

Options = Mapping[str, object]


class Refused(Exception):  # noqa: N818  (the sentence says what is wrong)
    """Why a verb was not done. `unsupported`: because the format has nothing of the kind. `moving`: bytes were on
    their way already."""

    def __init__(self, error: Exception, *, moving: bool = False) -> None:
        super().__init__(str(error))
        self.unsupported = isinstance(error, UnsupportedFeature)
        self.moving = moving


def _told(verb: Callable[_P, _T]) -> Callable[_P, _T]:
    """Errors of images and of the host's files as Refused."""

    @functools.wraps(verb)
    def call(*arguments: _P.args, **options: _P.kwargs) -> _T:
        try:
            return verb(*arguments, **options)
        except ReferenceOutside as error:
            raise Refused(ReferenceOutside(f"{error}: --beneath DIR")) from error
        except (ImageError, OSError, ValueError) as error:
            raise Refused(error) from error

    return call


@dataclass(frozen=True, slots=True)
class Place:
    """An image: its path, its format, and the directories, besides its own, in which what it names may lie. With
    `snapshot`, what an internal one of it has, to read; `secrets` open it, and its parents, if it is encrypted."""

    path: str
    format: str
    beneath: Sequence[str] = ()
    snapshot: str | None = None
    secrets: Sequence[bytes] = ()

    def chain(self, *, read_only: bool = True, writable_parents: int = 0) -> list[Image]:
        """The image and its parents, opened and locked."""
        return open_chain(
            self.format,
            self.path,
            read_only=read_only,
            beneath=self.beneath,
            snapshot=self.snapshot,
            writable_parents=writable_parents,
            secrets=self.secrets,
        )

    @contextlib.contextmanager
    def opened(self) -> Iterator[list[Image]]:
        """The same to read from, closed afterwards."""
        with contextlib.ExitStack() as closing:
            images = self.chain()
            for image in images:
                closing.callback(image.close)
            yield images

    def named(self, name: str, format: str) -> "Place":
        """What this image would mean by such a reference."""
        beneath = (self.directory, *self.beneath)
        return Place(os.path.join(os.path.dirname(self.path), name), format, beneath, secrets=self.secrets)

    @property
    def directory(self) -> str:
        return os.path.dirname(self.path) or "."


def _qcow2(image: Image) -> Qcow2:
    if not isinstance(image, Qcow2):
        raise UnsupportedFeature(f"{image.format} images have no internal snapshots")
    return image


# ---- looking ----


@_told
def info(path: str, format: str | None = None, *, shared: bool = False) -> dict[str, Any]:
    """As `qemu-img info --output=json`; no file that the image names is opened. Without a format, it is told by what
    its bytes look like. `shared`: also while somebody writes to it."""
    file = HostFile.from_path(path, read_only=True, lock=not shared)
    try:
        format = probe(file) if format is None else format
        stand_in = HostFile.from_descriptor(os.dup(file.descriptor), name=path, read_only=True, lock=False)
        with stand_in, open_image(format, file, opener=lambda _: stand_in) as image:
            found = image.info()
    except BaseException:
        file.close()
        raise
    if "backing-filename" in found:
        found["full-backing-filename"] = os.path.join(os.path.dirname(path), str(found["backing-filename"]))
    return found


@_told
def info_of_chain(place: Place) -> list[dict[str, Any]]:
    """The same of the image and of all its parents, the top one first."""
    with place.opened() as images:
        names = [(str(image.info()["filename"]), image.format) for image in images]
    return [info(name, format) for name, format in names]


@_told
def map_(place: Place, start: int = 0, length: int | None = None) -> list[dict[str, Any]]:
    """Rows as `qemu-img map --output=json` tells them, and the file of each that has an offset."""
    from vstore.transfer.map import map_rows

    with place.opened() as images:
        names = [str(image.info()["filename"]) for image in images]
        rows = []
        for row in map_rows(images, start, length):
            told = row.as_json()
            if row.offset is not None:
                told["filename"] = _file_of(images[row.depth], row.layer, names[row.depth])
            rows.append(told)
        return rows


def _file_of(image: Image, layer: int, name: str) -> str:
    if not layer:
        return name
    return os.path.realpath(f"/proc/self/fd/{image.layers[layer].descriptor}")


@dataclass(frozen=True, slots=True)
class Checked:
    """`findings` are sentences; `told` is the object of `qemu-img check --output=json`."""

    corruptions: int
    leaks: int
    findings: Sequence[str]
    told: dict[str, Any]


@_told
def check(path: str, format: str, repair: str = "none") -> Checked:
    """Examines an image that nobody uses; `repair`: none, leaks or all."""
    with HostFile.from_path(path, read_only=repair == "none") as file:
        report = check_image(format, file, repair=repair)
        return Checked(report.corruptions, report.leaks, report.findings, report.as_json(path))


# ---- making and changing ----


@_told
def create(place: Place, length: int | None, *, preallocation: str = "off", options: Options | None = None) -> None:
    """A new image; over a backing file (an option), which must be there, as long as that one if no length is said."""
    options = options or {}
    name, format = options.get("backing_file"), options.get("backing_fmt")
    if name is not None and format is not None:
        with place.named(str(name), str(format)).opened() as parents:
            length = parents[0].geometry.length if length is None else length
    if length is None:
        raise InvalidArgument("say how long the disk is; only one with a backing file is as long as that by itself")
    secret = _secret_of(place, options)
    create_image(place.format, place.path, length, preallocation=preallocation, options=options, secret=secret)


def _secret_of(place: Place, options: Options) -> bytes | None:
    """That of a new image, the first; all of them open what it names, and an overlay need not be encrypted itself."""
    if place.secrets and place.format == "raw":
        raise InvalidArgument("raw images are not encrypted, so they have no secret; make a luks or qcow2 image")
    only_for_parents = "backing_file" in options and "encrypt.format" not in options
    return place.secrets[0] if place.secrets and not only_for_parents else None


@_told
def clone(base: Place, target: Place, options: Options | None = None) -> None:
    """A new, empty overlay over `base`, which it names relative to its own directory."""
    start = os.path.realpath(target.directory)
    name = os.path.relpath(os.path.realpath(base.path), start)
    if ":" in name.partition("/")[0]:
        name = f"./{name}"
    with base.opened() as parents:
        length = parents[0].geometry.length
    backing = {"backing_file": name, "backing_fmt": base.format}
    options = {**(options or {}), **backing}
    create_image(target.format, target.path, length, options=options, secret=_secret_of(target, options))


@_told
def resize(place: Place, change: str, *, shrink: bool = False) -> int:
    """To a size, or by one (`+1G`, `-1G`); its new length. What a shorter disk loses is gone, so that must be said."""
    from vstore.disk import Disk
    from vstore.sizes import parse_size_change

    disk = Disk(*place.chain(read_only=False))
    try:
        length = parse_size_change(change, disk.length)
        if length < disk.length and not shrink:
            raise InvalidArgument(
                f"{length} bytes are less than the {disk.length} there are, and what lies behind would be lost; say "
                f"that it may be (--shrink)"
            )
        disk.resize(length)
        return length
    finally:
        disk.close()


@_told
def snapshots(path: str, format: str) -> list[dict[str, Any]]:
    """Of one image, as `qemu-img info --output=json` lists them."""
    listed: list[dict[str, Any]] = info(path, format).get("snapshots", [])
    return listed


@_told
def change_snapshots(path: str, format: str, verb: str, name: str) -> None:
    """`verb`: create, apply or delete."""
    with open_image(format, path, opener=_no_data_file) as image:
        snapshots = _qcow2(image).snapshots
        verbs: dict[str, Callable[[str], object]] = {
            "create": snapshots.take,
            "apply": snapshots.apply,
            "delete": snapshots.delete,
        }
        verbs[verb](name)


@_told
def bitmaps(path: str, format: str) -> list[dict[str, Any]]:
    """Of one image, as `qemu-img info --output=json` lists them."""
    data: dict[str, Any] = info(path, format).get("format-specific", {}).get("data", {})
    return list(data.get("bitmaps", []))


@_told
def change_bitmap(place: Place, verb: str, name: str, **how: Any) -> None:
    """`verb`: add (how: `granularity`, `enabled`), remove, enable, disable or clear."""
    with contextlib.ExitStack() as closing:
        getattr(_bitmaps(closing, place, read_only=False), verb)(name, **how)


@_told
def merge_bitmaps(place: Place, name: str, sources: Sequence[str], where: Place | None = None) -> None:
    """What is dirty in any of the sources, bitmaps of the same image or of the one `where` says, is dirty in it too."""
    with contextlib.ExitStack() as closing:
        theirs = None if where is None else _bitmaps(closing, where, read_only=True)
        ours = _bitmaps(closing, place, read_only=False)
        ours.merge(name, [(ours if theirs is None else theirs).usable(source) for source in sources])


def _bitmaps(closing: contextlib.ExitStack, place: Place, *, read_only: bool) -> Bitmaps:
    images = place.chain(read_only=read_only)
    for image in images:
        closing.callback(image.close)
    if not isinstance(images[0], Qcow2):
        raise UnsupportedFeature(f"{images[0].format} images have no bitmaps")
    return images[0].bitmaps


def _no_data_file(reference: Reference) -> HostFile:
    raise UnsupportedFeature(f"images with a data file ({reference.name!r}) have no internal snapshots")


@_told
def rebase_file(place: Place, name: str, format: str | None, progress: Progress = silent) -> None:
    """See `rebase.rebase`; `name` is what the overlay will call its parent, "" that it has none."""
    from vstore.transfer import rebase

    with contextlib.ExitStack() as closing:
        parents: Sequence[Image] = ()
        if name and format:
            parents = closing.enter_context(place.named(name, format).opened())
        rebase.rebase(place.chain(read_only=False), parents, _reference(name, format), progress=progress)


@_told
def rename_parent(place: Place, name: str, format: str | None) -> None:
    """See `rebase.rename_parent`."""
    from vstore.transfer import rebase

    with open_image(place.format, place.path) as overlay:
        rebase.rename_parent(overlay, _reference(name, format))


def _reference(name: str, format: str | None) -> Reference | None:
    return Reference(check_name(name, f"{name!r}, given as backing file"), format) if name else None


@_told
def commit_file(place: Place, *, keep: bool = False, progress: Progress = silent) -> None:
    """See `commit.commit`."""
    from vstore.transfer import commit

    commit.commit(place.chain(read_only=keep, writable_parents=1), keep=keep, progress=progress)


# ---- moving ----


@_told
def measure(source: Place | int, format: str, options: Options) -> dict[str, int]:
    """See `measuring.measure`."""
    from vstore.transfer import measure as measuring

    if isinstance(source, int):
        return measuring.measure(source, format, options)
    with source.opened() as images:
        return measuring.measure(images, format, options)


@_told
def convert_file(
    source: Place, target: Place, options: Options, how: Mapping[str, Any], progress: Progress = silent
) -> None:
    """See `convert.convert`; the chain of a backing file among the target's options is opened here. `how`: fields of
    `convert.Convert`, and `preallocation`."""
    from vstore.transfer import convert

    name, format = options.get("backing_file"), options.get("backing_fmt")
    if (name is None) != (format is None):
        raise InvalidArgument("a backing file needs its format, and a format its backing file; neither is guessed")
    making = convert.Target(target.format, target.path, how["preallocation"], options)
    asked = convert.Convert(**{name: value for name, value in how.items() if name != "preallocation"})
    with contextlib.ExitStack() as closing:
        images = closing.enter_context(source.opened())
        backing: Sequence[Image] = ()
        if name is not None:
            backing = closing.enter_context(target.named(str(name), str(format)).opened())
        convert.convert(images, making, asked, backing=backing, progress=progress)


@_told
def convert_into(source: Place, target: Place, progress: Progress = silent) -> None:
    """See `convert.convert_into`."""
    from vstore.transfer import convert

    with source.opened() as images:
        convert.convert_into(images, target.chain(read_only=False), progress=progress)


@_told
def compare_files(one: Place, two: Place, *, strict: bool = False, progress: Progress = silent) -> "Difference | None":
    """See `compare.compare`."""
    from vstore.transfer import compare

    with one.opened() as images, two.opened() as others:
        try:
            return compare.compare(images, others, strict=strict, progress=progress)
        except (ImageError, OSError) as error:
            raise Refused(error, moving=True) from error


@_told
def bench_file(place: Place, load: Mapping[str, Any], progress: Progress = silent) -> dict[str, Any]:
    """See `bench.bench`; `load`: the fields of `bench.Load`."""
    from vstore.transfer import bench

    asked = bench.Load(**load)
    return bench.bench(place.chain(read_only=not asked.write), asked, progress=progress).as_json()
