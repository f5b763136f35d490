"""Clearing: long rows of blocks that become ZERO or HOLE, as when a disk is discarded, a page of an L2 table at once.

    row of blocks     | head |   whole pages of descriptors   | tail |
                      one by one       words at once           one by one

A page whose clusters lie in a row, as they do where a disk was written from end to end, is a single comparison.
"""

import struct
from collections.abc import Callable, Iterator, Sequence

from formats.errors import CorruptImage
from formats.image import BlockState, Change
from formats.qcow2.allocator import Allocator
from formats.qcow2.discarding import cleared, is_kept
from formats.qcow2.pages import Pages, Stage
from formats.qcow2.refcounts import Refcounts
from formats.qcow2.regions import Regions
from formats.qcow2.structures import ALL_SUBCLUSTERS, COMPRESSED, OFFSET, SUBCLUSTERS, WORD, ZERO
from formats.qcow2.tables import Tables


class Clearing:
    """What a writer needs to clear rows. Raises CorruptImage before a page is changed that leads nowhere good."""

    def __init__(
        self, tables: Tables, pages: Pages, regions: Regions, refcounts: Refcounts, allocator: Allocator
    ) -> None:
        self._tables, self._pages, self._regions = tables, pages, regions
        self._refcounts, self._allocator = refcounts, allocator
        self._cluster_size = tables.entries.cluster_size
        self._width = tables.entry_size // WORD
        self._per_page = pages.size // tables.entry_size
        self.keeps_places = False  # what is zeroed keeps its host cluster where it has one for itself

    def apply(self, change: Change, otherwise: Callable[[Change], None]) -> None:
        """Each block of the row; `otherwise` takes those that are not so plain, one by one."""
        block, end = change.block, change.block + change.count
        state = BlockState(change.entry >> 60)
        while block < end:
            count = min(end - block, self._per_page - block % self._per_page)
            if state is BlockState.HOLE and self._nothing(block):
                count = min(end - block, self._tables.per_table - block % self._tables.per_table)
            elif count < self._per_page or not self._cleared(block, state):
                for single in range(block, block + count):
                    otherwise(Change(single, change.entry))
            block += count

    def _nothing(self, block: int) -> bool:
        """Whether there is no table for it."""
        return self._tables.frozen is None and not self._tables.table(block // self._tables.per_table)

    def _cleared(self, block: int, state: BlockState) -> bool:
        """A page of descriptors; False, and nothing has happened, where it is not plain."""
        tables = self._tables
        table = 0 if tables.frozen or tables.entries.external else tables.owned_table(block // tables.per_table)
        if not table or (state is BlockState.ZERO and not tables.entries.can_zero):
            return False
        at = table + block % tables.per_table * tables.entry_size
        words = self._pages.words(at, self._per_page * self._width)[:: self._width]
        if any(word & COMPRESSED for word in words):
            return False
        keeps = self.keeps_places and state is BlockState.ZERO
        rows = list(self._rows([0 if keeps and is_kept(word) else word for word in words]))
        for first, count in rows:
            self._check(block, first, count)
        self._pages.write(at, self._kept(words) if keeps else self._empty(state), Stage.POINTER)
        for first, count in rows:
            self._allocator.drop(first, count, punch=True)
        return True

    def _empty(self, state: BlockState) -> bytes:
        if state is BlockState.HOLE:
            return bytes(self._pages.size)
        if self._width == 2:
            return (bytes(WORD) + (ALL_SUBCLUSTERS << SUBCLUSTERS).to_bytes(WORD, "big")) * self._per_page
        return ZERO.to_bytes(WORD, "big") * self._per_page

    def _kept(self, words: Sequence[int]) -> bytes:
        after = cleared(words, extended=self._width == 2)
        return struct.pack(f">{len(after)}Q", *after)

    def _rows(self, words: Sequence[int]) -> Iterator[tuple[int, int]]:
        """The host clusters that they name, as first and number."""
        size = self._cluster_size
        # (the words of clusters in a row differ by a cluster, flags and all)
        if words[0] & OFFSET and tuple(words) == tuple(range(words[0], words[0] + len(words) * size, size)):
            yield (words[0] & OFFSET) // size, len(words)
            return
        first = count = 0
        for cluster in sorted((word & OFFSET) // size for word in words if word & OFFSET):
            if count and cluster == first + count:
                count += 1
                continue
            if count:
                yield first, count
            first, count = cluster, 1
        if count:
            yield first, count

    def _check(self, block: int, first: int, count: int) -> None:
        size = self._cluster_size
        self._regions.require_free(first * size, count * size, f"the data of a cluster from {block} on")
        if not self._refcounts.least(first, count):
            raise CorruptImage(
                f"a cluster from {block} on lies in one of the host clusters {first} to {first + count - 1}, "
                f"whose refcount is 0; repair the image"
            )
