"""Deletion: an internal snapshot forgotten while the guest goes on writing.

step ...      everything that the snapshot's tables name loses a reference in the second version of the counts;
              then the active L2 tables get a second version where something became theirs alone (COPIED)
finish        the header names the second version, and the snapshot is gone
reclaim ...   what nothing names now is given back to the host, then to the allocator
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from formats.qcow2 import arrays
from formats.qcow2.arrays import Words
from formats.qcow2.snapshot_table import Snapshot
from formats.qcow2.structures import COPIED, OFFSET, WORD
from formats.qcow2.switch import Switch, l1_words, roots

if TYPE_CHECKING:
    from formats.qcow2.image import Qcow2

_COPIED, _OFFSET = np.uint64(COPIED), np.uint64(OFFSET)
_SLICE = 16384  # descriptors looked at in one slice


class Deletion:
    """One deletion on its way; to be used as `Freeze` is, but for `reclaim`. Raises OSError, CorruptImage."""

    def __init__(self, image: "Qcow2", snapshot: Snapshot) -> None:
        self._image, self._tables, self._snapshot = image, image.tables, snapshot
        self._switch = Switch(image, "delete a snapshot of it")
        with image.standing.condemning():
            self._roots = roots(image.snapshots.tables(snapshot))
        self._width = self._tables.entry_size // WORD
        self._slices = self._prepare()
        image.change = self

    def step(self) -> bool:
        """Does a slice of the work; False when `finish` may be called."""
        with self._image.standing.condemning():
            return next(self._slices, True) is None

    def _prepare(self) -> Iterator[None]:
        yield from self._switch.subtract(self._roots)
        seen = 0
        for index, _ in self._tables.tables():
            self._own(index)
            seen += self._tables.per_table
            if seen >= _SLICE:
                seen = 0
                yield

    def _own(self, index: int) -> None:
        """A second version of an L2 table, if a flag in it is to be set."""
        table = self._switch.table(self._tables.table(index))
        descriptors = table[:: self._width]
        shared = np.flatnonzero(arrays.placed(descriptors) & ~arrays.copied(descriptors))
        clusters = arrays.hosts(descriptors[shared], self._tables.entries)
        alone = shared[self._switch.counts.counts(clusters) == 1]
        if len(alone):
            descriptors[alone] |= _COPIED
            self._switch.put_table(index, table)

    def finish(self) -> None:
        """The snapshot is gone, durably; its space comes back with `reclaim`."""
        with self._image.standing.condemning():
            self._finish()

    def _finish(self) -> None:
        image, start, size = self._image, self._snapshot.start, self._image.header.cluster_size
        snapshots = [other for other in image.snapshots if other is not self._snapshot]
        first = start.l1_table_offset // size
        row = range(first, first + -(-start.l1_size * WORD // size))
        tables = [self._tables.table(index) for index in self._tables.second]
        l1 = self._l1_table()
        length = image.header.start.size
        self._switch.turn(l1, snapshots=snapshots, length=length, tables=tables, rows=[row] if row else [])
        image.change = None
        image.snapshots.become(snapshots)
        image.require_writer("free what it held").allocator.holding = True
        self._slices = self._switch.reclaim(self._roots)

    def _l1_table(self) -> Words:
        words = l1_words(self._image)
        there = np.flatnonzero(words & _OFFSET)
        clusters = (words[there] & _OFFSET) >> np.uint64(self._tables.entries.cluster_bits)
        alone = self._switch.counts.counts(clusters) == 1
        words[there] &= arrays.NOT_COPIED
        words[there[alone]] |= _COPIED
        for index, offset in self._tables.second.items():
            words[index] = offset | COPIED
        return words

    def reclaim(self) -> bool:
        """After `finish`: does a slice of the work; False when nothing is left. Nobody may still be reading what the
        snapshot alone held."""
        with self._image.standing.condemning():
            return next(self._slices, True) is None

    def abandon(self) -> None:
        """The snapshot stays."""
        self._switch.abandon()
        self._image.change = None
