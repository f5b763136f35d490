"""Placing: the common change made many at once: a new cluster where there was none, or other sub-clusters of it.

    changes, sorted by block   | 7 | 9 | 300 | 511 | 513 | ...
                                 \\___ one page of an L2 table ___/ \\__ the next

A commit brings thousands of changes in the guest's random order. Those of one page follow each other here, so the page
is found once and a change is eight of its bytes (extended: sixteen). What is not so plain is left to `otherwise`.
"""

import struct
import sys
from array import array
from collections.abc import Callable, Sequence
from operator import attrgetter

from formats.image import SECTOR, BlockState, Change, entry
from formats.qcow2.pages import Pages, Stage
from formats.qcow2.structures import ALL_SUBCLUSTERS, COMPRESSED, COPIED, OFFSET, SUBCLUSTERS, WORD
from formats.qcow2.tables import Tables

_SECTORS = (1 << 48) - 1  # of a map entry: the place, in sectors
_OCCUPIED = OFFSET | COMPRESSED
_WORD = struct.Struct(">Q")
_block = attrgetter("block")


class Placing:
    """`reserved`: host clusters that a change may take; it then has them no more."""

    def __init__(self, tables: Tables, pages: Pages, reserved: set[int]) -> None:
        self._tables, self._pages, self._reserved = tables, pages, reserved
        self._cluster_size = tables.entries.cluster_size
        self._states = {BlockState.DATA, BlockState.PARTIAL} if tables.entries.extended else {BlockState.DATA}
        if tables.entries.external:
            self._states.clear()

    def apply(self, changes: Sequence[Change], otherwise: Callable[[Change], None]) -> None:
        """Each change once, those of one block in the order given."""
        per_page = self._pages.size // self._tables.entry_size
        first, page, at, marked = -per_page, None, 0, False
        for change in sorted(changes, key=_block):
            if not 0 <= change.block - first < per_page:
                first = change.block // per_page * per_page
                at = self._place(first)
                page, marked = self._pages.view(at) if at else None, False
            if page is None or not self._put(page, (change.block - first) * self._tables.entry_size, change):
                otherwise(change)
                first = -per_page  # it may have moved the table
            elif not marked:
                self._pages.mark(at, Stage.POINTER)
                marked = True

    def _place(self, block: int) -> int:
        """Where the page with this block's descriptor lies; 0: its table may not be changed in place."""
        index, within = divmod(block, self._tables.per_table)
        table = self._tables.owned_table(index)
        return table and table + within * self._tables.entry_size

    def _put(self, page: bytearray, at: int, change: Change) -> bool:
        """False where the change is not a plain one; then nothing has happened."""
        state = change.entry >> 60
        if state not in self._states:
            return False
        allocated, zero = change.allocated, change.zero
        if state == BlockState.PARTIAL and (allocated & zero or (allocated | zero) > ALL_SUBCLUSTERS):
            return False
        offset = (change.entry & _SECTORS) * SECTOR
        (old,) = _WORD.unpack_from(page, at)
        if old != offset | COPIED:
            if old & _OCCUPIED:
                return False
            try:
                self._reserved.remove(offset // self._cluster_size)
            except KeyError:
                return False
            _WORD.pack_into(page, at, offset | COPIED)
        if self._tables.entries.extended:
            bits = zero << SUBCLUSTERS | allocated if state == BlockState.PARTIAL else ALL_SUBCLUSTERS
            _WORD.pack_into(page, at + WORD, bits)
        return True

    def apply_row(self, block: int, offset: int, count: int, otherwise: Callable[[Change], None]) -> None:
        """`count` blocks from `block` on get the clusters in a row from `offset` on: a page's worth at once."""
        per_page = self._pages.size // self._tables.entry_size
        while count:
            done = min(count, per_page - block % per_page)
            if not self._put_row(block, offset, done):
                otherwise(Change(block, entry(BlockState.DATA, 0, offset)))  # which may make the table
                done = 1
            block, offset, count = block + done, offset + done * self._cluster_size, count - done

    def _put_row(self, block: int, offset: int, count: int) -> bool:
        """False where some of it is not plain; then nothing has happened."""
        first, size, step = offset // self._cluster_size, self._tables.entry_size, self._cluster_size
        clusters = range(first, first + count)
        within = block % (self._pages.size // size)
        at = self._place(block - within) if self._states else 0
        if not at or offset % step or not self._reserved.issuperset(clusters):
            return False
        page, start = self._pages.view(at), within * size
        if not page.startswith(bytes(count * size), start):
            return False
        words = array("Q", range(offset | COPIED, (offset | COPIED) + count * step, step))
        if self._tables.entries.extended:
            words = array("Q", [number for word in words for number in (word, ALL_SUBCLUSTERS)])
        if sys.byteorder == "little":
            words.byteswap()
        page[start : start + count * size] = words.tobytes()
        self._pages.mark(at, Stage.POINTER)
        self._reserved.difference_update(clusters)
        return True
