"""Internal snapshots: states of the disk that share clusters with it; taken, listed, read, applied and deleted.

    active L1 ----+                        taking one: every cluster that the active L1 leads to gets one reference
                  +--> L2 --> data         more and loses its COPIED flag, so the next write goes elsewhere;
    snapshot L1 --+                        the snapshot's L1 is a copy of the active one

Each verb changes many counts and flags, which no order of writes makes safe alone. So it runs under the dirty bit: who
opens the image after a crash recounts everything first. Version 2 has no such bit; there counts rise before and fall
after the header changes, and a crash leaves leaks and flags that `check` puts right. Nobody may write meanwhile.
"""

import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from formats.errors import InvalidArgument, UnsupportedFeature
from formats.image import Geometry, Run, check_length
from formats.qcow2 import snapshot_table
from formats.qcow2.header import check_span, write_fixed
from formats.qcow2.pages import Stage
from formats.qcow2.snapshot_table import Snapshot
from formats.qcow2.structures import (
    COMPRESSED,
    COPIED,
    MAX_L1_BYTES,
    MAX_SNAPSHOT_TABLE_BYTES,
    MAX_SNAPSHOTS,
    OFFSET,
    WORD,
    Incompatible,
)
from formats.qcow2.tables import Tables

if TYPE_CHECKING:
    from formats.qcow2.image import Qcow2
    from formats.qcow2.writer import Writer


class Snapshots:
    """Those of one image, in the order of its table. `which` is an ID or, where no ID fits, a name."""

    def __init__(self, image: "Qcow2") -> None:
        """Reads the table; it and the snapshots' L1 tables become known metadata. CorruptImage, UnsupportedFeature."""
        self._image = image
        self._all = snapshot_table.read(image.file, image.header)
        regions, offset = image.regions, image.header.start.snapshots_offset
        regions.add(offset, snapshot_table.length(self._all), "the snapshot table")
        for snapshot in self._all:
            start = snapshot.start
            if start.l1_size * WORD > MAX_L1_BYTES:
                raise UnsupportedFeature(f"{image.file.name}: snapshot {snapshot.id} has {start.l1_size} L1 entries")
            name = f"the L1 table of snapshot {snapshot.id}"
            check_span(image.file, name, start.l1_table_offset, start.l1_size * WORD, image.header.cluster_size)
            regions.add(start.l1_table_offset, start.l1_size * WORD, name)

    def __iter__(self) -> Iterator[Snapshot]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)

    def find(self, which: str) -> Snapshot:
        """InvalidArgument where there is none."""
        for snapshot in [s for s in self._all if s.id == which] + [s for s in self._all if s.name == which]:
            return snapshot
        raise InvalidArgument(f"{self._image.file.name} has no snapshot {which!r}")

    # reading

    def tables(self, snapshot: Snapshot) -> Tables:
        """The snapshot's own L1 table and what it leads to."""
        image, start = self._image, snapshot.start
        return Tables(image.entries, image.pages, image.regions, start.l1_table_offset, start.l1_size)

    def geometry(self, snapshot: Snapshot) -> Geometry:
        """The disk as it was when the snapshot was taken."""
        geometry = self._image.geometry
        length = geometry.length if snapshot.disk_size is None else check_length(snapshot.disk_size)
        longest = snapshot.start.l1_size * self._image.tables.per_table * geometry.block_size
        if length > longest:
            raise UnsupportedFeature(f"snapshot {snapshot.id} of {length} bytes has an L1 table for {longest}")
        return Geometry(length, geometry.block_size, geometry.sub_block_size)

    def load(self, snapshot: Snapshot, first: int, count: int) -> list[Run]:
        """The map of the snapshot; its DATA is never anybody's to overwrite."""
        return self.tables(snapshot).load(first, count)

    # changing

    def take(self, name: str, *, identity: str | None = None, now: int | None = None) -> Snapshot:
        """Keeps the disk as it is now. `now`: nanoseconds since the Epoch. Errors: InvalidArgument,
        UnsupportedFeature (a data file; refcounts too narrow), OSError."""
        image, writer = self._image, self._writer("take a snapshot of it")
        identity = (
            str(1 + max((int(s.id) for s in self._all if s.id.isdigit()), default=0)) if identity is None else identity
        )
        self._check_new(identity, name)
        start = image.header.start
        self._check_width(writer)
        with self._dirty():
            self._count(image.tables, 1)
            offset = self._copy_l1(writer)
            taken = time.time_ns() if now is None else now
            snapshot = snapshot_table.make(identity, name, (offset, start.l1_size), start.size, taken)
            self._flag(image.tables, all_shared=True)
            self._write_table([*self._all, snapshot])
        return snapshot

    def _check_new(self, identity: str, name: str) -> None:
        if any(identity == other.id for other in self._all):
            raise InvalidArgument(f"{self._image.file.name} has a snapshot {identity!r} already")
        if max(len(identity.encode()), len(name.encode(errors="surrogateescape"))) > 0xFFFF:
            raise InvalidArgument("ID and name of a snapshot have at most 65535 bytes each")
        if len(self._all) >= MAX_SNAPSHOTS:
            raise UnsupportedFeature(f"{self._image.file.name} has {MAX_SNAPSHOTS} snapshots; no more are possible")

    def _check_width(self, writer: "Writer") -> None:
        """Before anything changes: a count that cannot rise."""
        named = self._named(self._image.tables)
        if any(writer.refcounts.most(first, count) >= writer.refcounts.maximum for first, count in named):
            raise UnsupportedFeature(
                f"{self._image.file.name} counts references in {writer.refcounts.bits} bits: no more snapshots fit"
            )

    def _copy_l1(self, writer: "Writer") -> int:
        start, size = self._image.header.start, self._image.header.cluster_size
        clusters = -(-start.l1_size * WORD // size)
        offset = writer.allocator.take_row(clusters) * size
        writer.pages.clear(offset, clusters * size)
        words = writer.pages.read(start.l1_table_offset, start.l1_size * WORD)
        writer.pages.write(offset, words, Stage.TARGET)
        self._image.regions.add(offset, clusters * size, "the L1 table of a snapshot")
        return offset

    def apply(self, which: str) -> None:
        """Makes the disk what it was, its length included; the snapshot stays."""
        image, writer, snapshot = self._image, self._writer("apply a snapshot to it"), self.find(which)
        geometry = self.geometry(snapshot)
        if len(image.bitmaps) and geometry.length != image.geometry.length:
            raise UnsupportedFeature(f"snapshot {which!r} has another length than the bitmaps; remove them first")
        image.touched(0, image.geometry.length)
        tables = self.tables(snapshot)
        l1_size = max(snapshot.start.l1_size, 1)
        with self._dirty():
            self._count(tables, 1)
            old = list(self._named(image.tables))
            old_l1 = self._replace_l1(writer, snapshot, l1_size)
            self._flag(image.tables, all_shared=True)
            image.header.start.size = geometry.length
            writer.flush()
            write_fixed(image.file, image.header)
            image.geometry = geometry
            for first, count in [*old, (old_l1.start, len(old_l1))]:
                writer.allocator.drop(first, count)
            writer.allocator.settle()
            image.map_l2_tables()

    def _replace_l1(self, writer: "Writer", snapshot: Snapshot, l1_size: int) -> range:
        """A copy of the snapshot's L1 as the active one, in new clusters; returns those of the old one."""
        image, size = self._image, self._image.header.cluster_size
        start = image.header.start
        clusters = -(-l1_size * WORD // size)
        offset = writer.allocator.take_row(clusters) * size
        writer.pages.clear(offset, clusters * size)
        words = writer.pages.read(snapshot.start.l1_table_offset, snapshot.start.l1_size * WORD)
        writer.pages.write(offset, words, Stage.TARGET)
        old, old_clusters = start.l1_table_offset, -(-start.l1_size * WORD // size)
        image.regions.remove(old)
        image.regions.add(offset, clusters * size, "the L1 table")
        start.l1_table_offset, start.l1_size = offset, l1_size
        image.tables.l1_offset, image.tables.l1_size = offset, l1_size
        return range(old // size, old // size + old_clusters)

    def delete(self, which: str) -> None:
        """Forgets the snapshot and frees what it alone held."""
        image, writer, snapshot = self._image, self._writer("delete a snapshot of it"), self.find(which)
        size, start = image.header.cluster_size, snapshot.start
        with self._dirty():
            named = list(self._named(self.tables(snapshot)))
            self._write_table([other for other in self._all if other is not snapshot])
            image.regions.remove(start.l1_table_offset)
            writer.pages.forget(start.l1_table_offset, -(-start.l1_size * WORD // size) * size)
            for first, count in named:
                writer.allocator.drop(first, count, punch=True)
            writer.allocator.drop(start.l1_table_offset // size, -(-start.l1_size * WORD // size), punch=True)
            writer.allocator.settle()
            self._flag(image.tables)

    # their parts

    def _writer(self, doing: str) -> "Writer":
        if self._image.header.has_data_file:
            raise UnsupportedFeature(f"cannot {doing}: qcow2 has no snapshots of images with a data file")
        return self._image._require_writer(doing)

    @contextlib.contextmanager
    def _dirty(self) -> Iterator[None]:
        """The dirty bit stays set when this fails, so that the next to open the image recounts."""
        header, writer = self._image.header, self._image._require_writer("change its snapshots")
        writer.flush()
        if header.start.version > 2:
            header.features.incompatible_features |= Incompatible.DIRTY
            write_fixed(self._image.file, header)
        yield
        writer.flush()
        writer.flush()  # what the first one let fall
        if header.start.version > 2:
            header.features.incompatible_features &= ~int(Incompatible.DIRTY)
            write_fixed(self._image.file, header)

    def _named(self, tables: Tables) -> Iterator[tuple[int, int]]:
        """First and number of the host clusters that an L1 table leads to, in rows, each as often as it is named."""
        start = stop = 0
        for cluster in self._each(tables):
            if cluster != stop:
                if stop > start:
                    yield start, stop - start
                start = cluster
            stop = cluster + 1
        if stop > start:
            yield start, stop - start

    def _each(self, tables: Tables) -> Iterator[int]:
        bits, size = tables.entries.cluster_bits, tables.entries.cluster_size
        for index, _ in tables.tables():
            table = tables.table(index)
            if table:
                yield table >> bits
                for at in range(table, table + size, self._image.pages.size):
                    for word in self._descriptors(tables, at):
                        if word & COMPRESSED:
                            yield from tables.entries.host_clusters(word)
                        elif word & OFFSET:
                            yield (word & OFFSET) >> bits

    def _descriptors(self, tables: Tables, page: int) -> Sequence[int]:
        """First words of the descriptors in a page of an L2 table; nothing where there are none."""
        words = self._image.pages.words(page, self._image.pages.size // WORD)
        return words[:: tables.entry_size // WORD] if any(words) else ()

    def _count(self, tables: Tables, change: int) -> None:
        """Changes the count of everything that the L1 table leads to."""
        refcounts = self._image._require_writer("change its snapshots").refcounts
        for first, count in list(self._named(tables)):
            refcounts.add(first, count, change)

    def _flag(self, tables: Tables, *, all_shared: bool = False) -> None:
        """Sets the COPIED flag of every word of the active tables to what the counts say. `all_shared`: they are known
        to be above one."""
        refcounts = self._image._require_writer("change its snapshots").refcounts
        alone = (lambda _: False) if all_shared else refcounts.is_one()
        bits, size = tables.entries.cluster_bits, tables.entries.cluster_size
        for index, word in tables.tables():
            table = tables.table(index)
            if not table:
                continue
            self._put_flag(tables.l1_offset + index * WORD, word, alone(table >> bits))
            for at in range(table, table + size, self._image.pages.size):
                for place, descriptor in enumerate(self._descriptors(tables, at)):
                    if descriptor & OFFSET and not descriptor & COMPRESSED:
                        one = alone((descriptor & OFFSET) >> bits)
                        self._put_flag(at + place * tables.entry_size, descriptor, one)

    def _put_flag(self, offset: int, word: int, alone: bool) -> None:
        if bool(word & COPIED) != alone:
            self._image.pages.put_word(offset, word ^ COPIED, Stage.POINTER)

    def _write_table(self, snapshots: list[Snapshot]) -> None:
        """A new table in new clusters, then the header, then the old one is free."""
        image, size = self._image, self._image.header.cluster_size
        writer, start = image._require_writer("change its snapshots"), image.header.start
        data = b"".join(snapshot.pack() for snapshot in snapshots)
        if len(data) > MAX_SNAPSHOT_TABLE_BYTES:
            raise UnsupportedFeature(f"{image.file.name} would need a snapshot table of {len(data)} bytes")
        old, old_clusters = start.snapshots_offset, -(-snapshot_table.length(self._all) // size)
        offset, clusters = 0, -(-len(data) // size)
        if clusters:
            offset = writer.allocator.take_row(clusters) * size
            writer.pages.clear(offset, clusters * size)
            writer.pages.write(offset, data, Stage.TARGET)
        writer.flush()
        start.snapshots_offset, start.nb_snapshots = offset, len(snapshots)
        write_fixed(image.file, image.header)
        if old_clusters:
            image.regions.remove(old)
            writer.pages.forget(old, old_clusters * size)
            writer.allocator.drop(old // size, old_clusters)
        image.regions.add(offset, len(data), "the snapshot table")
        self._all = snapshots
