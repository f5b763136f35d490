"""Refcounts: how many references each host cluster has, in a table of blocks of counts.

    refcount table (contiguous, named by the header)      [ block 0 | block 1 | none | ... ]
                                                              |
    refcount block (one cluster)                          [ count | count | ... ]   per_block of them

Where no block is, all counts are 0. `extend` makes the blocks that a range of free clusters will need and lays them
in front of that range, so each block counts itself or lies under another that does; when the table is too short, a
longer one is laid there as well. All changes wait in Pages for the stages of a commit.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

from formats.errors import CorruptImage, UnsupportedFeature
from formats.host_file import HostFile
from formats.qcow2 import header as headers
from formats.qcow2 import widths
from formats.qcow2.header import Header
from formats.qcow2.pages import Pages, Stage
from formats.qcow2.regions import REFCOUNT_BLOCK, Regions
from formats.qcow2.structures import MAX_REFCOUNT_TABLE_BYTES, REFCOUNT_BLOCK_OFFSET, WORD

_FEW = 64  # counts that are changed one by one rather than a page at once


class Refcounts:
    """Clusters are named by number. Raises CorruptImage where the table or a count cannot be true."""

    def __init__(self, file: HostFile, header: Header, pages: Pages, regions: Regions) -> None:
        self._file, self._header, self._pages, self._regions = file, header, pages, regions
        self.bits = header.refcount_bits
        self.maximum = (1 << self.bits) - 1
        self.cluster_size = header.cluster_size
        self.per_block = self.cluster_size * 8 // self.bits
        self.per_page = pages.size * 8 // self.bits
        self.second: dict[int, int] = {}  # offsets of other versions of some blocks, by index: see switch.py
        self._read_table()

    def _read_table(self) -> None:
        start = self._header.start
        data = self._file.pread(start.refcount_table_offset, start.refcount_table_clusters * self.cluster_size)
        self.table = widths.words_of(data)
        end = self._file.length
        for index, word in enumerate(self.table):
            if word and (word & REFCOUNT_BLOCK_OFFSET) % self.cluster_size:
                raise self._corrupt(index, word, f"not a multiple of {self.cluster_size}")
            if word & REFCOUNT_BLOCK_OFFSET >= end:
                raise self._corrupt(index, word, f"behind the end of the file at {end:#x}")
        self._regions.fill(REFCOUNT_BLOCK, [[word & REFCOUNT_BLOCK_OFFSET for word in self.table if word]])
        self._regions.require_apart(REFCOUNT_BLOCK)

    def _corrupt(self, index: int, word: int, what: str) -> CorruptImage:
        return CorruptImage(f"{self._file.name}: refcount table entry {index} is {word:#x}: {what}")

    def block(self, index: int) -> int:
        """Offset of a refcount block, 0 where there is none."""
        return self.table[index] & REFCOUNT_BLOCK_OFFSET if index < len(self.table) else 0

    def page(self, cluster: int, *, second: bool = False) -> tuple[int, int]:
        """Offset of the page with the cluster's count, 0 for none, and the count's place in it. `second`: of the other
        version where there is one."""
        index, within = divmod(cluster, self.per_block)
        block = self.second.get(index, 0) if second else 0
        block = block or self.block(index)
        return block and block + within // self.per_page * self._pages.size, within % self.per_page

    def get(self, cluster: int) -> int:
        """The cluster's refcount."""
        page, place = self.page(cluster)
        return self._value(page, place) if page else 0

    def _value(self, page: int, place: int) -> int:
        if self.bits >= 8:
            width = self.bits // 8
            return int.from_bytes(self._pages.read(page + place * width, width), "big")
        byte = self._pages.read(page + place * self.bits // 8, 1)[0]
        return byte >> place * self.bits % 8 & self.maximum

    def _pieces(self, first: int, count: int) -> Iterator[Sequence[int]]:
        """The counts of a range, page by page."""
        end = first + count
        while first < end:
            page, place = self.page(first)
            take = min(self.per_page - place, end - first)
            if take < _FEW:
                yield [self.get(first + n) for n in range(take)]
            elif page:
                yield widths.unpack(self._pages.read(page, self._pages.size), self.bits)[place : place + take]
            else:
                yield [0] * take
            first += take

    def most(self, first: int, count: int) -> int:
        """The highest count in a range."""
        return max(max(piece) for piece in self._pieces(first, count))

    def is_one(self) -> Callable[[int], bool]:
        """A quick way to ask of many clusters, while no count changes, whether theirs is exactly one."""
        page, counts = -1, [0]

        def ask(cluster: int) -> bool:
            nonlocal page, counts
            if cluster // self.per_page != page:
                page = cluster // self.per_page
                (counts,) = (list(piece) for piece in self._pieces(page * self.per_page, self.per_page))
            return counts[cluster % self.per_page] == 1

        return ask

    def least(self, first: int, count: int) -> int:
        """The lowest count in a range."""
        return min(min(piece) for piece in self._pieces(first, count))

    def add(self, first: int, count: int, change: int) -> list[tuple[int, int]]:
        """Adds `change` to `count` counts; returns the clusters whose count is 0 now, as runs of first and number.

        CorruptImage where a count would fall below 0, UnsupportedFeature where it would not fit its width; the counts
        before that one have changed then.
        """
        end = first + count
        while first < end:
            page, place = self.page(first)
            take = min(self.per_page - place, end - first)
            if not page:
                raise CorruptImage(f"{self._file.name}: host cluster {first} is in use, but has no refcount block")
            self._add(page, place, take, first, change)
            if first // self.per_block in self.second:
                self._add(self.page(first, second=True)[0], place, take, first, change)
            first += take
        return self._unused(end - count, count) if change < 0 else []

    def _add(self, page: int, place: int, take: int, first: int, change: int) -> None:
        """Inside one page."""
        if self.bits >= 8 and change in (1, -1) and self._flip(page, place, take, change):
            return
        if take < _FEW:
            for n in range(take):
                self._put(page, place + n, self._sum(first + n, self._value(page, place + n), change))
        else:
            self._add_many(page, place, take, first, change)

    def _flip(self, page: int, place: int, take: int, change: int) -> bool:
        """The common case: all of them were 0 and are 1 now, or the other way about."""
        width = self.bits // 8
        zeros, ones = bytes(take * width), (1).to_bytes(width, "big") * take
        before, after = (zeros, ones) if change > 0 else (ones, zeros)
        plain = self._pages.read(page + place * width, take * width) == before
        if plain:
            self._pages.write(page + place * width, after, Stage.TARGET)
        return plain

    def add_second(self, cluster: int, change: int) -> None:
        """Changes a count of the other version only."""
        page, place = self.page(cluster, second=True)
        self._put(page, place, self._sum(cluster, self._value(page, place), change))

    def _unused(self, first: int, count: int) -> list[tuple[int, int]]:
        found: list[tuple[int, int]] = []
        for piece in self._pieces(first, count):
            many = not any(piece)
            for n in (0,) if many else (n for n, value in enumerate(piece) if not value):
                length = len(piece) if many else 1
                if found and sum(found[-1]) == first + n:
                    found[-1] = (found[-1][0], found[-1][1] + length)
                else:
                    found.append((first + n, length))
            first += len(piece)
        return found

    def _put(self, page: int, place: int, value: int) -> None:
        if self.bits >= 8:
            width = self.bits // 8
            self._pages.write(page + place * width, value.to_bytes(width, "big"), Stage.TARGET)
            return
        at, shift = page + place * self.bits // 8, place * self.bits % 8
        byte = self._pages.read(at, 1)[0] & ~(self.maximum << shift) | value << shift
        self._pages.write(at, bytes([byte]), Stage.TARGET)

    def _add_many(self, page: int, place: int, take: int, first: int, change: int) -> None:
        counts = list(widths.unpack(self._pages.read(page, self._pages.size), self.bits))
        for n in range(take):
            counts[place + n] = self._sum(first + n, counts[place + n], change)
        self._pages.write(page, widths.pack(counts, self.bits), Stage.TARGET)

    def _sum(self, cluster: int, count: int, change: int) -> int:
        if count + change < 0:
            raise CorruptImage(
                f"{self._file.name}: host cluster {cluster} has refcount {count}, but more references; repair the image"
            )
        if count + change > self.maximum:
            raise UnsupportedFeature(
                f"{self._file.name} counts references in {self.bits} bits, so a cluster has at most {self.maximum}"
            )
        return count + change

    def next_free(self, at: int, end: int) -> tuple[int, int] | None:
        """First cluster and length of the next run of counts of 0 inside one page, before `end`; missing blocks are
        passed over."""
        while at < end:
            page, place = self.page(at)
            take = min(self.per_page - place, end - at)
            if not page:
                at = (at // self.per_block + 1) * self.per_block
                continue
            counts = widths.unpack(self._pages.read(page, self._pages.size), self.bits)
            start = next((n for n in range(place, place + take) if not counts[n]), None)
            if start is not None:
                stop = next((n for n in range(start, place + take) if counts[n]), place + take)
                return at + start - place, stop - start
            at += take
        return None

    def free_from(self, at: int, count: int) -> int:
        """The first cluster from `at` on that begins `count` clusters of refcount 0, missing blocks included."""
        start = at
        while at < start + count:
            page, place = self.page(at)
            take = self.per_page - place
            if page:
                counts = widths.unpack(self._pages.read(page, self._pages.size), self.bits)
                used = [n for n in range(place, place + take) if counts[n]]
                before = next((n for n in used if at + n - place < start + count), None)
                if before is not None:
                    last = max(used)
                    start = at = at + last - place + 1
                    continue
            at += take
        return start

    def used_end(self, floor: int, end: int) -> int:
        """The end of the last cluster of `floor` .. `end` - 1 that is counted; `floor` where none is."""
        while end > floor:
            index = (end - 1) // self.per_block
            page, place = self.page(end - 1)
            first = max(floor, end - 1 - place if page else index * self.per_block)
            if page:
                (counts,) = self._pieces(first, end - first)
                last = next((n for n in range(len(counts), 0, -1) if counts[n - 1]), 0)
                if last:
                    return first + last
            end = first
        return floor

    def extra(self, first: int, count: int) -> tuple[int, int]:
        """How many clusters `extend` would lay in front: of blocks, and of a longer table. UnsupportedFeature where
        that table would be too long."""
        blocks = table = 0
        while True:
            last = (first + blocks + table + count - 1) // self.per_block
            longer = 0 if last < self._room else -(-(last + 1) * WORD * 3 // 2 // self.cluster_size)
            if longer * self.cluster_size > MAX_REFCOUNT_TABLE_BYTES:  # before what it would need in turn is counted
                raise UnsupportedFeature(
                    f"{self._file.name} would need a refcount table beyond {MAX_REFCOUNT_TABLE_BYTES} bytes"
                )
            missing = sum(not self.block(index) for index in range(first // self.per_block, last + 1))
            if (missing, longer) == (blocks, table):
                return blocks, table
            blocks, table = missing, max(longer, table)
            if table and last < self._room:
                return blocks, table

    def extend(self, first: int, count: int) -> int:
        """Makes the blocks that count `count` clusters behind them; all from `first` on are free. Returns where those
        `count` begin now; the blocks have been counted, they have not."""
        blocks, table = self.extra(first, count)
        start = first + blocks + table
        if table:
            self.table.extend([0] * (table * self.cluster_size // WORD - len(self.table)))
        place = first
        for index in range(first // self.per_block, (start + count - 1) // self.per_block + 1):
            if not self.block(index):
                self._create(index, place * self.cluster_size, in_place=not table)
                place += 1
        self.add(first, start - first, 1)
        self._count_first(first, start)
        if table:
            self._move_table(place * self.cluster_size, table)
        return start

    def _count_first(self, first: int, end: int) -> None:
        """An older block may count a new one: that is on disk before the table names the new one."""
        for cluster in range(first, end):
            for second in (False, True):
                self._pages.hasten(self.page(cluster, second=second)[0], Stage.BLOCK)

    def _create(self, index: int, offset: int, *, in_place: bool) -> None:
        self._regions.require_free(offset, self.cluster_size, "a new refcount block")
        self._pages.clear(offset, self.cluster_size, Stage.BLOCK)
        self.table[index] = offset
        self._regions.add_cluster(offset, REFCOUNT_BLOCK)
        if in_place:
            at = self._header.start.refcount_table_offset + index * WORD
            self._pages.put_word(at, offset, Stage.TARGET)

    @property
    def _room(self) -> int:
        """Words of the table that the header names; where moving it has failed, blocks are known that have none."""
        return min(len(self.table), self._header.start.refcount_table_clusters * self.cluster_size // WORD)

    def _move_table(self, offset: int, clusters: int) -> None:
        """A longer table: written and durable with all that it names before the header names it (rare)."""
        start = self._header.start
        old, old_clusters = start.refcount_table_offset, start.refcount_table_clusters
        self._regions.add(offset, clusters * self.cluster_size, "the refcount table")
        self._pages.forget(old, old_clusters * self.cluster_size)
        try:
            self._write_table(offset, clusters)
        except OSError:  # so the old one has to name, with the next batch, what it has room for
            self._pages.write(old, widths.big_endian(self.table[: self._room]).tobytes(), Stage.TARGET)
            self._regions.remove(offset)
            self.add(offset // self.cluster_size, clusters, -1)
            raise
        self._regions.remove(old)
        self.add(old // self.cluster_size, old_clusters, -1)

    def _write_table(self, offset: int, clusters: int) -> None:
        self._file.pwrite(offset, widths.big_endian(self.table[:]).tobytes())
        waiting = self._pages.write_back(Stage.BLOCK) + self._pages.write_back(Stage.TARGET)
        self._file.fdatasync()
        self._pages.written(waiting)
        start = dataclasses.replace(self._header.start, refcount_table_offset=offset, refcount_table_clusters=clusters)
        headers.replace_start(self._file, self._header, start)
