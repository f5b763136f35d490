"""Defects on purpose, to see that the enumeration catches each: tests of the tests. Applied in the crashed process.

Each takes out one thing that keeps a promise: a barrier, an order, the wait before reuse, a clearing of old bytes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from formats.host_file import HostFile
from formats.image import BlockState, Change, entry
from formats.qcow2 import resize
from formats.qcow2.allocator import Allocator
from formats.qcow2.image import Qcow2
from formats.qcow2.pages import Pages, Stage
from formats.qcow2.switch import Switch
from formats.qcow2.writer import Writer
from vstore.commits import Commits
from vstore.dataplane import Volume
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


def _snapshot_uncounted() -> None:
    """The header names the second version of the tables before it is durable."""
    lay_out = Switch._lay_out

    def laid_out(self: Switch, *arguments: Any) -> object:
        fdatasync = HostFile.fdatasync
        _put(HostFile, "fdatasync", lambda _self: None)
        try:
            return lay_out(self, *arguments)
        finally:
            _put(HostFile, "fdatasync", fdatasync)

    _put(Switch, "_lay_out", laid_out)


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
    "data file forgotten": Mutant("data file", _data_file_forgotten),
    "parent seen in a shrink": Mutant("raw parent", _parent_seen_in_shrink),
    "tail not cleared": Mutant("raw parent", _tail_not_cleared),
    "second version not durable": Mutant("snapshots come and go", _snapshot_uncounted),
    "overlay emptied first": Mutant("to and from a raw parent", _overlay_emptied_first),
}


def apply(name: str) -> None:
    """Breaks the code under test; an empty name leaves it whole."""
    if name:
        MUTANTS[name].apply()
