"""Defects on purpose, to see that the enumeration catches each: tests of the tests. Applied in the crashed process.

Each takes out one thing that keeps a promise: a barrier, an order, the wait before reuse, a clearing of old bytes.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from formats.host_file import HostFile
from formats.image import BlockState, Change, entry
from formats.qcow2 import resize, rewrite
from formats.qcow2.allocator import Allocator
from formats.qcow2.bitmaps import Bitmaps
from formats.qcow2.check import Examination
from formats.qcow2.header import write_fixed
from formats.qcow2.image import Qcow2
from formats.qcow2.pages import Pages, Stage
from formats.qcow2.refcounts import Refcounts
from formats.qcow2.structures import BitmapFlags, Incompatible
from formats.qcow2.switch import Switch
from formats.qcow2.writer import Writer
from vstore.commits import Commits
from vstore.dataplane import MapChange, Volume
from vstore.disk import Disk
from vstore.transfer import commit
from vstore.transfer.progress import Meter


@dataclass(frozen=True)
class Mutant:
    """`variant`: one whose trials must catch it."""

    variant: str
    apply: Callable[[], None]


def _put(owner: object, name: str, value: object) -> None:
    assert hasattr(owner, name)  # a defect in what is no longer there would be none
    setattr(owner, name, value)


def _without_barrier(lost: Stage) -> None:
    """One stage of a commit is written, but the next does not wait for it."""

    def stage(self: Writer, stage: Stage) -> None:
        written = self.pages.write_back(stage)
        if stage != lost:
            self.pages.file.fdatasync()
        self.pages.written(written)

    _put(Writer, "_stage", stage)


def _pointers_first() -> None:
    def flush(self: Writer) -> None:
        for stage in (Stage.BLOCK, Stage.POINTER, Stage.TARGET):
            self._stage(stage)
        self.allocator.settle()

    _put(Writer, "flush", flush)


def _counts_late() -> None:
    """What a word names is counted only after the word."""

    def written(self: Pages, offset: int, data: bytes, _stage: Stage) -> None:
        write(self, offset, data, Stage.POINTER)

    write = Pages.write
    _put(Pages, "write", written)


def _reused_at_once() -> None:
    """A cluster is free before the word that names it is gone from the disk."""
    drop = Allocator.drop

    def dropped(self: Allocator, first: int, count: int, *, punch: bool = False) -> None:
        drop(self, first, count, punch=punch)
        self.settle()

    _put(Allocator, "drop", dropped)


def _not_filled() -> None:
    """Reserved room counts as zeros, though the host's old bytes are there."""
    _put(Qcow2, "empty", lambda _self, _extent: True)


def _flush_forgets_data() -> None:
    _put(Volume, "flush", lambda _self: None)


def _flush_does_nothing() -> None:
    _put(Commits, "flush", lambda _self: None)


def _room_for_what_waited() -> None:
    """A commit takes as many changes as waited when it looked. Zeros that come in between are told first, and push as
    many older writes out, which become part of the next commit, though a flush waits for this one."""
    begin, pending = Volume.commit_begin, vars(Volume)["pending"].fget
    late: list[MapChange] = []

    def begun(self: Volume) -> tuple[list[MapChange], OSError | None]:
        room = self.pending
        changes, failed = begin(self)
        changes, late[:] = [*late, *changes[: room - len(late)]], changes[room - len(late) :]
        return changes, failed

    _put(Volume, "commit_begin", begun)
    _put(Volume, "pending", property(lambda self: pending(self) + len(late)))


def _joined_too_late() -> None:
    """A flush that comes while a commit runs shares that one, which has not seen what was written meanwhile."""

    def flushed(self: Commits) -> None:
        with self._joining:
            shared, first = self._next, self._next is None
            if shared is None:
                shared = self._next = Future()
        if first:
            with self.turn:
                self._flush(shared)
                self._next = None
        shared.result()

    _put(Commits, "flush", flushed)


def _data_file_forgotten() -> None:
    fdatasync = HostFile.fdatasync

    def synced(self: HostFile) -> None:
        if not self.name.endswith(".data"):
            fdatasync(self)

    _put(HostFile, "fdatasync", synced)


def _parent_seen_in_shrink() -> None:
    def cut_off(image: Qcow2, first: int, count: int) -> None:
        assert image.writer is not None
        image.writer.apply([Change(first + n, entry(BlockState.HOLE)) for n in range(count)])

    _put(resize, "_cut_off", cut_off)


def _tail_not_cleared() -> None:
    _put(resize, "_clear_tail", lambda *_: None)
    _put(Disk, "_clear_tail", lambda *_: None)


def _overlay_emptied_first() -> None:
    """commit: the overlay lets go of its blocks before the parent has them for good."""
    write = commit._write

    def written(overlay: Qcow2, parents: Sequence[Qcow2], meter: Meter) -> None:
        _put(Disk, "flush_blocking", lambda _self: None)
        _put(Disk, "close", _closed_without_flush)
        write(overlay, parents, meter)

    _put(commit, "_write", written)


def _closed_without_flush(disk: Disk) -> None:
    for image in disk._parents:
        image.close()
    disk.image.close()


def _without_barriers_in(owner: type, name: str) -> None:
    """What one method writes, the next may overtake."""
    whole = getattr(owner, name)

    def hasty(self: object, *arguments: Any) -> object:
        fdatasync = HostFile.fdatasync
        _put(HostFile, "fdatasync", lambda _self: None)
        try:
            return whole(self, *arguments)
        finally:
            _put(HostFile, "fdatasync", fdatasync)

    _put(owner, name, hasty)


def _named_too_soon() -> None:
    """The header names a second version that no barrier stands behind."""
    turn, name, fdatasync = Switch.turn, Switch._name, HostFile.fdatasync

    def turned(self: Switch, *arguments: Any, **words: Any) -> None:
        _put(HostFile, "fdatasync", lambda _self: None)
        try:
            turn(self, *arguments, **words)
        finally:
            _put(HostFile, "fdatasync", fdatasync)

    def named(self: Switch, *arguments: Any) -> object:
        _put(HostFile, "fdatasync", fdatasync)
        return name(self, *arguments)

    _put(Switch, "turn", turned)
    _put(Switch, "_name", named)


def _bitmaps_unmarked() -> None:
    """Nothing says that they are in use."""
    begin, write = Bitmaps.begin, Bitmaps._write_directory

    def begun(self: Bitmaps, *, track: bool) -> None:
        _put(Bitmaps, "_write_directory", lambda _self: None)
        begin(self, track=track)
        _put(Bitmaps, "_write_directory", write)

    _put(Bitmaps, "begin", begun)


def _marks_taken_first() -> None:
    """The bits are stored when the mark has gone."""

    def stored(self: Bitmaps, writer: Writer) -> None:
        for bitmap in self._tracked:
            flags = bitmap.entry.start.flags & ~int(BitmapFlags.IN_USE)
            bitmap.entry.start = dataclasses.replace(bitmap.entry.start, flags=flags)
        self._write_directory()
        for bitmap in self._tracked:
            bitmap.store(writer)
        writer.flush()

    _put(Bitmaps, "store", stored)


def _clean_too_soon() -> None:
    """A repair says that it is done before it has begun."""
    mend = Examination.mend

    def mended(self: Examination, *, leaks_only: bool) -> None:
        self.header.features.incompatible_features &= ~int(Incompatible.DIRTY)
        write_fixed(self.file, self.header)
        mend(self, leaks_only=leaks_only)

    _put(Examination, "mend", mended)


def _header_in_one_write() -> None:
    def written(file: HostFile, _header: object, _old: bytes, new: bytes) -> None:
        file.pwrite(0, new)
        file.fdatasync()

    _put(rewrite, "_write", written)


def _failures_passed_over() -> None:
    """What a barrier says is not heard."""
    fdatasync, flush = HostFile.fdatasync, Volume.flush

    def synced(self: HostFile) -> None:
        with contextlib.suppress(OSError):
            fdatasync(self)

    def flushed(self: Volume) -> None:
        with contextlib.suppress(OSError):
            flush(self)

    _put(HostFile, "fdatasync", synced)
    _put(Volume, "flush", flushed)
    _put(Volume, "lost", lambda *_: 0)


def _failed_reads_are_zeros() -> None:
    pread = HostFile.pread

    def read(self: HostFile, offset: int, length: int) -> bytes:
        try:
            return pread(self, offset, length)
        except OSError:
            return bytes(length)

    _put(HostFile, "pread", read)


MUTANTS = {
    "no barrier before pointers": Mutant("plain", lambda: _without_barrier(Stage.TARGET)),
    "no barrier behind pointers": Mutant("plain", lambda: _without_barrier(Stage.POINTER)),
    "no barrier behind new refcount blocks": Mutant("tiny clusters", lambda: _without_barrier(Stage.BLOCK)),
    "pointers first": Mutant("large clusters", _pointers_first),
    "counts with pointers": Mutant("plain", _counts_late),
    "reused at once": Mutant("with snapshots", _reused_at_once),
    "not filled": Mutant("large clusters", _not_filled),
    "flush forgets data": Mutant("raw parent", _flush_forgets_data),
    "flush does nothing": Mutant("served", _flush_does_nothing),
    "room for what waited": Mutant("qcow2 parent", _room_for_what_waited),
    "joined too late": Mutant("raw parent", _joined_too_late),
    "data file forgotten": Mutant("data file", _data_file_forgotten),
    "parent seen in a shrink": Mutant("raw parent", _parent_seen_in_shrink),
    "tail not cleared": Mutant("raw parent", _tail_not_cleared),
    "second version not durable": Mutant("snapshots come and go", _named_too_soon),
    "overlay emptied first": Mutant("to and from a raw parent", _overlay_emptied_first),
    "parent named first": Mutant("to and from a raw parent", lambda: _without_barriers_in(Disk, "name_parent")),
    "header in one write": Mutant("to and from a raw parent", _header_in_one_write),
    "bitmaps not marked": Mutant("bitmaps", _bitmaps_unmarked),
    "marks of bitmaps taken first": Mutant("bitmaps, live", _marks_taken_first),
    "bitmap table not durable": Mutant("bitmaps", lambda: _without_barriers_in(Bitmaps, "_become")),
    "clean before the repair": Mutant("recounted", _clean_too_soon),
    "longer table named first": Mutant("crowded", lambda: _without_barriers_in(Refcounts, "_write_table")),
    "pointers first, encrypted": Mutant("encrypted", _pointers_first),
}


FAULTY = {  # which only a broken host brings to light
    "failed barriers are passed over": _failures_passed_over,
    "failed reads are zeros": _failed_reads_are_zeros,
}


def apply(name: str) -> None:
    """Breaks the code under test; an empty name leaves it whole."""
    if name:
        (FAULTY.get(name) or MUTANTS[name].apply)()
