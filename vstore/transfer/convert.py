"""convert: the content of a chain as one new image of any format; sparse stays sparse, and zeros are found.

    source chain --extents--> windows of 1 MiB --> threads: read, find zeros, compress --> sink --> draft --> target
    backing of the target --/  (where it has one: only what differs from it is written)

The target has its name only when it is complete and durable. Its layout does not depend on chance: the same source
gives the same file.
"""

import contextlib
import errno
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from formats.errors import InvalidArgument, UnsupportedFeature, image_error
from formats.host_file import HostFile, Path
from formats.image import SECTOR, Image, Reference
from formats.registry import create_image, open_image
from vstore.transfer.blocks import Span, nonzero, unlike
from vstore.transfer.bulk import Bulk
from vstore.transfer.draft import Draft
from vstore.transfer.line import Turn, work_in_line
from vstore.transfer.progress import Cancelled, Meter, Progress, never, silent
from vstore.transfer.reader import STEP, Buffers, Pair, Reader, Window, alone, differing, paired, windows
from vstore.transfer.sinks import CompressingSink, FlatSink, MapSink, Sink
from vstore.transfer.threads import threads

SPARSE = 4096  # bytes of zeros that are left out of a raw image


@dataclass(frozen=True, slots=True)
class Target:
    """What is made. With `directory`, a descriptor, `path` is a plain name in it. `options` are those of the format, as
    `create_image` takes them; a `backing_file` among them is written, and its chain handed over beside."""

    format: str
    path: Path
    preallocation: str = "off"
    options: Mapping[str, object] = field(default_factory=dict)
    directory: int | None = None


@dataclass(frozen=True, slots=True)
class Convert:
    """How. `sparse`: zeros are looked for in pieces of so many bytes, or of a block of the target (0: not at all, and
    everything is written). `level` of the compression. `force`: an old file of the name is replaced. `resume`: what an
    earlier try has left of a raw image is used as far as it is right, and what this one leaves is kept for the next."""

    compress: bool = False
    level: int | None = None
    sparse: int = SPARSE
    threads: int = 0
    force: bool = False
    resume: bool = False


def convert(
    source: Sequence[Image],
    target: Target,
    how: Convert | None = None,
    *,
    backing: Sequence[Image] = (),
    progress: Progress = silent,
    cancelled: Cancelled = never,
) -> None:
    """Makes `target` of `source`, opened images that stay the caller's, the top one first; so do those of `backing`,
    the chain of the target's backing file. Errors: ImageError; TransferCancelled. Then nothing is left behind."""
    how = how or Convert()
    _check(target, how, backing)
    placed = target.preallocation != "off"
    try:
        with Draft(target.path, target.directory, force=how.force, resume=how.resume) as draft:
            begun, length = draft.begun, -(-source[0].geometry.length // SECTOR) * SECTOR
            with _drafted(draft, target, length) as image, _left(draft, begun=begun) as left:
                beneath = left or backing
                fill(source, image, how, backing=beneath, placed=placed, progress=progress, cancelled=cancelled)
            draft.publish()
    except OSError as error:
        raise image_error(error, f"cannot convert to {os.fspath(target.path)}") from error


def fill(
    source: Sequence[Image],
    image: Image,
    how: Convert,
    *,
    backing: Sequence[Image] = (),
    placed: bool = False,
    progress: Progress = silent,
    cancelled: Cancelled = never,
) -> None:
    """Writes the content of `source` into a new image of its length, `placed` when it was preallocated; it is complete
    and durable when it was closed. Errors: ImageError, OSError, TransferCancelled."""
    reader = Reader(source)
    meter = Meter(reader.length, progress, cancelled)
    if _in_a_row(image) and image.encrypted:
        how = replace(how, sparse=0)
    try:
        _Moving(reader, Reader(backing), _sink(image, how, placed=placed), how, meter).move_all()
    except OSError as error:
        if error.errno == errno.ENODATA:  # of the data plane, which knows no names
            reader.check()
        raise
    reader.check()
    meter.finish()


def _check(target: Target, how: Convert, backing: Sequence[Image]) -> None:
    if how.sparse < 0 or (how.sparse and (how.sparse < 512 or how.sparse & how.sparse - 1 or how.sparse > STEP)):
        raise InvalidArgument(
            f"zeros cannot be looked for in pieces of {how.sparse} bytes; 512 to {STEP} by powers of two"
        )
    if target.format == "luks" or "encrypt.format" in target.options:
        raise UnsupportedFeature(
            "a new image is not encrypted while it is converted to; make it with its secret first (vstore file create "
            "--secret-file), then convert into it (--in-place)"
        )
    if how.resume and target.format != "raw":
        raise UnsupportedFeature(f"a {target.format} image cannot be resumed, only raw; begin anew without resuming")
    if ("backing_file" in target.options) != bool(backing):
        raise InvalidArgument("the backing file of the target and its chain are given together or not at all")
    if how.compress and target.preallocation != "off":
        raise InvalidArgument("what is compressed cannot be preallocated")


@contextlib.contextmanager
def _drafted(draft: Draft, target: Target, length: int) -> Iterator[Image]:
    """The draft as an open image; closing it may still fail."""
    data_file = target.options.get("data_file")
    if not draft.begun:
        create_image(
            target.format,
            draft.name,
            length,
            preallocation=target.preallocation,
            directory=draft.directory,
            options=target.options,
        )
        if data_file is not None:
            draft.accompany(str(data_file))

    def open_data_file(reference: Reference) -> HostFile:
        return HostFile.from_path(reference.name, directory=draft.directory)

    file = HostFile.from_path(draft.name, directory=draft.directory)
    if file.length != length and target.format == "raw":  # of a draft that was begun for a source of another length
        file.truncate(length)
    with open_image(target.format, file, opener=open_data_file) as image:
        yield image


@contextlib.contextmanager
def _left(draft: Draft, *, begun: bool) -> Iterator[Sequence[Image]]:
    """What an earlier try has left of a raw image: what differs from it has to be written, zeros too,
    because the source may have changed since."""
    if not begun:
        yield ()
        return
    file = HostFile.from_path(draft.name, read_only=True, lock=False, directory=draft.directory)
    with open_image("raw", file) as image:
        yield (image,)


def _sink(image: Image, how: Convert, *, placed: bool) -> Sink:
    if how.compress:
        return CompressingSink(image, how.level)
    if _in_a_row(image):
        return FlatSink(image, how.sparse or SPARSE)
    return MapSink(image, placed=placed)


def _in_a_row(image: Image) -> bool:
    return image.flat or image.format == "luks"


class _Moving:
    def __init__(self, source: Reader, backing: Reader, sink: Sink, how: Convert, meter: Meter) -> None:
        self._source, self._backing, self._sink, self._how, self._meter = source, backing, sink, how, meter
        self._length, self._step = source.length, max(STEP, sink.unit)
        self._buffers, self._others = Buffers(self._step), Buffers(self._step)
        self._threads = how.threads or threads(waiting=source.waits)

    def move_all(self) -> None:
        """The whole disk, and then it is complete."""
        if self._sink.takes_stretches and self._how.sparse and not self._backing.length:
            self._move_stretches()
        else:
            self._move_windows(self._pairs())
        self._sink.finish()

    def _move_stretches(self) -> None:
        """Most in bulk, and what the data plane cannot copy window by window."""
        bulk = Bulk(self._source, self._sink, self._threads, self._meter)
        for plain, plans in bulk.planned(windows(self._pairs(), bulk.step)):
            if plain:
                bulk.move(plans)
            else:
                self._move_windows(pair for window, _ in plans for pair in window.pairs)

    def _move_windows(self, pairs: Iterator[Pair]) -> None:
        work_in_line(windows(pairs, self._step), self._move, self._threads, ordered=self._sink.ordered)

    def _pairs(self) -> Iterator[Pair]:
        if self._backing.length:
            return self._whole_units(differing(self._source, self._backing, 0, self._length))
        everything = self._source.extents(0, self._length)
        return alone(everything, lambda extent: not (extent.zero and self._how.sparse))

    def _whole_units(self, pairs: Iterator[Pair]) -> Iterator[Pair]:
        """The units that the pairs touch, whole, each once."""
        unit, done = self._sink.unit, 0
        for extent, _ in pairs:
            start, end = max(done, extent.start // unit * unit), min(-(-extent.end // unit) * unit, self._length)
            if start < end:
                yield from paired(self._source, self._backing, start, end)
                done = end

    def _move(self, window: Window, turn: Turn) -> None:
        """One window, by any thread."""
        unit = self._sink.unit
        start = window.pairs[0][0].start // unit * unit
        end = min(-(-window.end // unit) * unit, self._length)
        view = self._buffers.view()[: end - start]
        self._read(window, start, view)
        zeros: list[Span] = []
        if window.pairs[0][1] is not None:
            data, zeros = self._compared(window, start, view)
        elif self._how.sparse:
            data = list(nonzero(view, unit))
        else:
            data = [(0, len(view))]
        self._sink.put(start, view, data, zeros, turn)
        self._meter.reach(window.end)

    def _read(self, window: Window, start: int, view: memoryview) -> None:
        self._source.fill_row(view, start, (extent for extent, _ in window.pairs))

    def _compared(self, window: Window, start: int, view: memoryview) -> tuple[list[Span], list[Span]]:
        """Which units differ from the backing chain and hold data, and which differ and are zeros."""
        beneath, at = self._others.view()[: len(view)], 0
        for _, other in window.pairs:
            assert other is not None
            beneath[at : other.start - start] = view[at : other.start - start]  # known to be the same
            at = other.end - start
            self._backing.fill(beneath[other.start - start : at], other)
        data: list[Span] = []
        zeros: list[Span] = []
        unit = self._sink.unit
        for first, end in unlike(view[:at], beneath[:at], unit):
            held = list(nonzero(view[first:end], unit))
            data += [(first + a, first + b) for a, b in held]
            edges = [0, *(edge for span in held for edge in span), end - first]
            zeros += [(first + a, first + b) for a, b in zip(edges[::2], edges[1::2], strict=True) if a < b]
        return data, zeros


def convert_into(
    source: Sequence[Image], target: Sequence[Image], *, progress: Progress = silent, cancelled: Cancelled = never
) -> None:
    """Writes the disk of `source`, which stays the caller's, over that of the chain `target`, which is closed here;
    what the target has behind its end stays. Nothing is undone when it fails. Errors: ImageError, TransferCancelled."""
    from vstore.disk import Disk  # which a new image does without
    from vstore.transfer.copying import copy

    length = source[0].geometry.length
    meter = Meter(length, progress, cancelled)
    reader = Reader(source)
    with contextlib.ExitStack() as closing:
        disk = Disk(*target)
        closing.callback(disk.close)
        if disk.length < length:
            raise InvalidArgument(f"the target has {disk.length} bytes, the source {length}; resize the target first")
        try:
            copy(alone(reader.extents(0, length), lambda _: True), reader, None, disk, meter)
            disk.flush_blocking()
        except OSError as error:
            raise image_error(error, "cannot convert into the target") from error
    meter.finish()
