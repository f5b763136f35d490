"""Freeze: an internal snapshot taken while the guest goes on writing; the moment costs nothing, the work comes after.

    the moment    tables.frozen is set: from now on every L2 table is copied before it changes, and nothing that the
                  frozen ones name is written in place or freed. Whoever has looked into the map must ask it again.
    step ...      each L2 table gets a second version without COPIED flags, and all that it still shares with the
                  frozen one is counted once more (switch.py)
    finish        the frozen tables become the snapshot's, the second version becomes the image's

What is frozen needs no list: it is whatever lies at the same place in the frozen table, because no place is reused.
"""

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from formats.qcow2 import arrays, snapshot_table
from formats.qcow2.arrays import Words
from formats.qcow2.snapshot_table import Snapshot
from formats.qcow2.structures import COPIED, OFFSET, WORD
from formats.qcow2.switch import Switch, l1_words
from formats.qcow2.tables import Frozen

if TYPE_CHECKING:
    from formats.qcow2.image import Qcow2

_SLICE = 16384  # descriptors looked at in one slice


class Freeze:
    """One snapshot on its way. Between the calls the image may be read, reserved from and committed to, all under one
    lock. What raises (OSError, CorruptImage, UnsupportedFeature: refcounts too narrow) must be followed by `abandon`.
    """

    def __init__(self, image: "Qcow2", name: str, *, identity: str | None = None, now: int | None = None) -> None:
        """The moment that is kept; `now`: nanoseconds since the Epoch."""
        self._image, self._tables = image, image.tables
        self._identity, self._name = image.snapshots.new(identity, name), name
        self._now = time.time_ns() if now is None else now
        self._switch = Switch(image, "take a snapshot of it")
        self._frozen = self._tables.frozen = Frozen()
        self._width = self._tables.entry_size // WORD
        self._then: tuple[bytes, int] | None = None  # the snapshot's L1 table and where it was written
        self._slices = self._prepare()
        image.change = self

    def step(self) -> bool:
        """Does a slice of the work, a few milliseconds long; False when `finish` may be called."""
        with self._image.standing.condemning():
            return next(self._slices, True) is None

    def _prepare(self) -> Iterator[None]:
        seen = 0
        for index, _ in self._tables.tables():
            if self._frozen.replaced.get(index) != 0:  # else it is newer than the moment
                yield from self._switch.counts.gather(self._share(index), 1)
                seen += self._tables.per_table
            if seen >= _SLICE:
                seen = 0
                yield
        yield from self._switch.counts.settle(1)

    def _share(self, index: int) -> Words:
        """Makes the second version of an L2 table; returns the clusters that it shares with the frozen one."""
        table = self._switch.table(self._tables.table(index))
        descriptors = table[:: self._width]
        held = np.ones(len(descriptors), np.bool_)
        if index in self._frozen.replaced:
            frozen = self._switch.table(self._frozen.replaced[index])
            held = arrays.alike(descriptors, frozen[:: self._width])
        names = arrays.hosts(descriptors[held], self._tables.entries)
        descriptors[held & arrays.placed(descriptors)] &= arrays.NOT_COPIED
        self._switch.put_table(index, table)
        return names

    def lay_out(self) -> None:
        """Writes what `finish` will name."""
        with self._image.standing.condemning():
            now, then = self._l1_tables()
            self._switch.lay_out(now, [*self._image.snapshots, self._snapshot(then)])

    def finish(self, *, durable: bool = False) -> Snapshot:
        """The snapshot, durable. `durable`: what `lay_out` wrote is so already, and no commit came since."""
        with self._image.standing.condemning():
            return self._finish(durable=durable)

    def _snapshot(self, then: Words) -> Snapshot:
        """With its own L1 table, written unless it is the same as before."""
        packed, size = arrays.pack(then), self._image.header.cluster_size
        if self._then is None or self._then[0] != packed:
            if self._then is not None:
                first = self._then[1] // size
                self._switch.withdraw(range(first, first + -(-len(self._then[0]) // size)))
            self._then = packed, self._switch.row(packed)
        place = self._then[1], len(then)
        return snapshot_table.make(self._identity, self._name, place, self._image.header.start.size, self._now)

    def _finish(self, *, durable: bool) -> Snapshot:
        image = self._image
        now, then = self._l1_tables()
        start, snapshot = image.header.start, self._snapshot(then)
        offset = snapshot.start.l1_table_offset
        copies = [self._tables.table(index) for index in self._tables.second if index in self._frozen.replaced]
        snapshots = [*image.snapshots, snapshot]
        self._switch.turn(now, snapshots=snapshots, length=start.size, tables=copies, durable=durable)
        image.change = None
        image.snapshots.become(snapshots)
        image.regions.add(offset, len(then) * WORD, "the L1 table of a snapshot")
        return snapshot

    def _l1_tables(self) -> tuple[Words, Words]:
        """The active L1 table of the second version, and the snapshot's."""
        now = l1_words(self._image)
        then = now & np.uint64(OFFSET)
        for index, offset in self._frozen.replaced.items():
            then[index] = offset
        for index, offset in self._tables.second.items():
            now[index] = offset | COPIED
        return now, then

    def abandon(self) -> None:
        """No snapshot: lets go of everything that was kept for it."""
        self._switch.abandon()
        self._frozen.ending = True
        for index in () if self._image.standing.lost else list(self._frozen.replaced):
            self._thaw(index)
        self._tables.frozen = None
        self._image.change = None

    def _thaw(self, index: int) -> None:
        """What the frozen table had alone is free once the words that named it are gone from the disk."""
        writer, offset = self._image.require_writer("give up a snapshot of it"), self._frozen.replaced[index]
        if offset:
            frozen = self._switch.table(offset)[:: self._width]
            now = self._switch.table(self._tables.table(index))[:: self._width]
            alone = arrays.hosts(frozen[~arrays.alike(frozen, now)], self._tables.entries)
            for cluster in (*alone.tolist(), offset // self._image.header.cluster_size):
                writer.allocator.drop(cluster, 1)
        del self._frozen.replaced[index]
