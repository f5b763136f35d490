"""Switch: a second version of an image's metadata beside the first, and the one sector that turns one into the other.

    header --> L1 table, L2 tables                  the first: what is on disk, changed by commits as ever
       |  \\--> refcount table, refcount blocks
       |
       +- ...> new L1, new L2 tables                the second: only what differs; commits change it too
          \\..> new refcount table, new blocks

A snapshot verb changes counts and COPIED flags all over the image, and no order of single writes keeps the two in
agreement. So it writes changed tables to new places, a slice at a time while the guest goes on, and names them all at
once by the header, whose fields lie in one sector. A crash before that leaves the first version and leaks, after it the
second version and leaks. No dirty bit is needed, so an image of version 2 is as safe as one of version 3.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from formats.errors import UnsupportedFeature
from formats.qcow2 import arrays, snapshot_table, widths
from formats.qcow2.arrays import Words
from formats.qcow2.header import replace_start
from formats.qcow2.pages import Stage
from formats.qcow2.regions import REFCOUNT_BLOCK
from formats.qcow2.second_counts import SecondCounts
from formats.qcow2.snapshot_table import Snapshot
from formats.qcow2.structures import MAX_SNAPSHOT_TABLE_BYTES, WORD, HeaderStart
from formats.qcow2.tables import Tables

if TYPE_CHECKING:
    from formats.qcow2.image import Qcow2


class _Laid(NamedTuple):
    """Where the last tables of the second version were laid out, and from what they were made."""

    l1_offset: int
    table_offset: int  # of the snapshot table
    counts: range  # clusters of the refcount table
    clusters: list[int]
    contents: tuple[bytes, list[Snapshot], Sequence[int], dict[int, int]] = (b"", [], [], {})


class Switch:
    """One at a time for an image, ended by `turn` or `abandon`. Raises OSError, CorruptImage, UnsupportedFeature."""

    def __init__(self, image: "Qcow2", doing: str) -> None:
        """`doing` ends the sentence that refuses a second one (“take a snapshot of it”)."""
        self._image, self._writer = image, image.require_still(doing)
        if self._writer.pages.dirty(Stage.BLOCK) or self._writer.pages.dirty(Stage.POINTER):
            self._writer.flush()  # tables that both versions name must not wait in memory
        self._pages, self._refcounts = self._writer.pages, self._writer.refcounts
        self._size = image.header.cluster_size
        self._taken: list[int] = []
        self._turned = False  # the header names the second version
        self._laid: _Laid | None = None
        self.counts = SecondCounts(self._writer, self._take)
        self._writer.switch = self

    # places

    def _take(self) -> int:
        """The offset of a new cluster."""
        ((first, _),) = self._writer.allocator.take(1)
        self._taken.append(first)
        return first * self._size

    def row(self, data: bytes) -> int:
        """Writes a table into new clusters in a row; its offset, 0 for an empty one."""
        count = -(-len(data) // self._size)
        if not count:
            return 0
        first = self._writer.allocator.take_row(count)
        self._taken.extend(range(first, first + count))
        self._pages.begin(first * self._size, data.ljust(count * self._size, b"\0"))
        return first * self._size

    def put_table(self, index: int, table: Words) -> None:
        """The second version of an L2 table; from now on commits change it too."""
        offset = self._take()
        self._pages.begin(offset, arrays.pack(table))
        self._image.tables.second[index] = offset

    def release(self, clusters: range) -> None:
        """References that the second version had counted are no more."""
        self.counts.release(clusters)

    # walks

    def table(self, offset: int) -> Words:
        """The words of an L2 table."""
        return arrays.words(self._pages.peek(offset, self._size))

    def named(self, offset: int) -> Words:
        """The host clusters that a reference to an L2 table stands for: its own and all that it names."""
        tables = self._image.tables
        table = self.table(offset)[:: tables.entry_size // WORD]
        own = arrays.words((offset // self._size).to_bytes(WORD, "big"))
        return arrays.join([own, arrays.hosts(table, tables.entries)])

    def subtract(self, roots: Iterable[int]) -> Iterator[None]:
        """These L2 tables lose a reference with all that they name; a slice at a time."""
        for offset in roots:
            yield from self.counts.gather(self.named(offset), -1)
            yield
        yield from self.counts.settle(-1)

    def reclaim(self, roots: Iterable[int]) -> Iterator[None]:
        """After `turn`: gives what nothing else names back to the host, then to the allocator."""
        allocator = self._writer.allocator
        for offset in roots:
            named = self.named(offset)
            allocator.punch(named[self.counts.counts(named) == 0].tolist())
            yield
        allocator.rescan()

    # turning

    def turn(
        self,
        l1: Words,
        *,
        snapshots: Sequence[Snapshot],
        length: int,
        tables: Iterable[int] = (),
        rows: Iterable[range] = (),
        durable: bool = False,
    ) -> None:
        """Makes the second version the image's, with this L1 table, these snapshots and this length of the disk.
        `tables`: offsets of L2 tables, `rows`: clusters of other tables, that only the first version has.
        `durable`: all that `lay_out` wrote is."""
        before = snapshot_table.length(list(self._image.snapshots))
        if not durable or self._laid is None or self._laid != self._as_laid(self._laid, l1, snapshots):
            self.lay_out(l1, snapshots)
            self._writer.flush()
        assert self._laid is not None
        old = self._name(self._laid, length)
        gone = [
            self._clusters(old.l1_table_offset, old.l1_size * WORD),
            self._clusters(old.refcount_table_offset, old.refcount_table_clusters * self._size),
            *(self._clusters(offset, self._size) for offset in tables),
            *rows,
        ]
        if old.snapshots_offset != self._image.header.start.snapshots_offset:
            gone.append(self._clusters(old.snapshots_offset, before))
        self._take_over(gone)

    def _clusters(self, offset: int, length: int) -> range:
        return range(offset // self._size, -(-(offset + length) // self._size))

    def lay_out(self, l1: Words, snapshots: Sequence[Snapshot]) -> None:
        """Writes what is left to write, but for the header."""
        if self._laid is not None:
            self.withdraw(self._laid.clusters)
            self._laid = None
        before = len(self._taken)
        l1_offset, table_offset = self.row(arrays.pack(l1)), self._image.header.start.snapshots_offset
        if list(snapshots) != list(self._image.snapshots):
            table_offset = self.row(self._snapshot_table(snapshots))
        counts = self._refcount_table()
        if self._pages.dirty(Stage.BLOCK) or self._pages.dirty(Stage.POINTER):
            self._writer.flush()  # there is an order to keep
        else:
            self._pages.write_back(Stage.TARGET)
        self._laid = self._as_laid(_Laid(l1_offset, table_offset, counts, self._taken[before:]), l1, snapshots)

    def _as_laid(self, laid: "_Laid", l1: Words, snapshots: Sequence[Snapshot]) -> "_Laid":
        """These places, with what would be written there now."""
        counts = (self._refcounts.table[:], dict(self._refcounts.second))
        return laid._replace(contents=(arrays.pack(l1), list(snapshots), *counts))

    def withdraw(self, clusters: Sequence[int]) -> None:
        """What was written into these has become out of date."""
        for cluster in clusters:
            self._pages.forget(cluster * self._size, self._size)
            self._taken.remove(cluster)
        self._writer.allocator.give_back(sorted(clusters))

    def _name(self, laid: "_Laid", length: int) -> HeaderStart:
        """Writes the header; returns what it said before."""
        header = self._image.header
        old, (packed, snapshots, *_) = header.start, laid.contents
        start = dataclasses.replace(
            old,
            size=length,
            l1_table_offset=laid.l1_offset,
            l1_size=len(packed) // WORD,
            snapshots_offset=laid.table_offset,
            nb_snapshots=len(snapshots),
            refcount_table_offset=laid.counts.start * self._size,
            refcount_table_clusters=len(laid.counts),
        )
        replace_start(self._pages.file, header, start)
        self._turned = True
        return old

    def _snapshot_table(self, snapshots: Sequence[Snapshot]) -> bytes:
        data = b"".join(snapshot.pack() for snapshot in snapshots)
        if len(data) > MAX_SNAPSHOT_TABLE_BYTES:
            raise UnsupportedFeature(f"{self._pages.file.name} would need a snapshot table of {len(data)} bytes")
        return data

    def _refcount_table(self) -> range:
        """Lays it out last: whatever else is taken could change it."""
        while True:
            count = -(-len(self._refcounts.table) * WORD // self._size)
            first = self._writer.allocator.take_row(count)
            if count * self._size >= len(self._refcounts.table) * WORD:  # taking it has not made it longer
                break
            self._writer.allocator.give_back(list(range(first, first + count)))
        self._taken.extend(range(first, first + count))
        table = self._refcounts.table[:]
        for index, offset in self._refcounts.second.items():
            table[index] = offset
        data = widths.big_endian(table).tobytes()
        self._pages.begin(first * self._size, data.ljust(count * self._size, b"\0"))
        return range(first, first + count)

    def _take_over(self, gone: list[range]) -> None:
        """The header names the second version: so does all that is in memory, and what only the first had is let go."""
        image, start, regions = self._image, self._image.header.start, self._image.regions
        for index, offset in self._refcounts.second.items():
            replaced = self._refcounts.block(index)
            gone.append(self._clusters(replaced, self._size))
            regions.remove_cluster(replaced, REFCOUNT_BLOCK)
            regions.add_cluster(offset, REFCOUNT_BLOCK)
            self._refcounts.table[index] = offset
        self._end()
        for clusters in gone:
            regions.remove(clusters.start * self._size)
            self._pages.forget(clusters.start * self._size, len(clusters) * self._size)
            self._writer.allocator.drop(clusters.start, len(clusters))
        regions.add(start.l1_table_offset, start.l1_size * WORD, "the L1 table")
        regions.add(start.refcount_table_offset, start.refcount_table_clusters * self._size, "the refcount table")
        image.tables.l1_offset, image.tables.l1_size = start.l1_table_offset, start.l1_size
        image.map_l2_tables()
        self._writer.allocator.settle()

    def _end(self) -> None:
        self._refcounts.second, self._image.tables.second = {}, {}
        self._image.tables.frozen = None
        self._writer.switch = None

    def abandon(self) -> None:
        """Forgets the second version and gives its clusters back, unless the header names it, or may: then all that is
        on disk is whole, but not what is known in memory, so nothing more is written."""
        self._refcounts.second, self._image.tables.second = {}, {}
        self._writer.switch = None
        if self._turned:
            self._image.standing.stop()
        if self._image.standing.lost:
            return
        for cluster in self._taken:
            self._pages.forget(cluster * self._size, self._size)
        self._writer.allocator.give_back(sorted(self._taken))


def roots(tables: Tables) -> list[int]:
    """Offsets of the L2 tables that an L1 table names."""
    return [offset for index, _ in tables.tables() if (offset := tables.table(index))]


def l1_words(image: "Qcow2") -> Words:
    """The active L1 table."""
    tables = image.tables
    return arrays.words(image.pages.peek(tables.l1_offset, tables.l1_size * WORD))
