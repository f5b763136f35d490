"""References: how many times the structures of an image name each host cluster, found by walking all of them.

The walk trusts nothing. What cannot be true is a Finding: told in words, with the place of the word that says it, so
that a repair can overwrite it. A table that several L1 tables share is read once and counted as often as it is named.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from formats.errors import ImageError
from formats.host_file import HostFile
from formats.qcow2 import bitmap_directory, snapshot_table
from formats.qcow2 import structures as disk
from formats.qcow2.cluster_counts import Counts
from formats.qcow2.entries import Entries
from formats.qcow2.header import Header
from formats.qcow2.pages import Pages
from formats.qcow2.sparse_counts import SparseCounts
from formats.qcow2.structures import ALL_SUBCLUSTERS, COMPRESSED, COPIED, OFFSET, SUBCLUSTERS, WORD, ZERO

_MOST_FINDINGS = 1 << 16
_LONG = 1 << 16  # words of a table that is read in large pieces:
_PIECE = 1 << 19  # bytes
_MOST_BYTES = 2 << 30  # of all L1 tables of snapshots, or all tables of bitmaps


@dataclass(frozen=True)
class Finding:
    """Something that cannot be. `patch`: offset and bytes that would take it out of its table, where they can."""

    sentence: str
    patch: tuple[int, bytes] | None = None


@dataclass
class Usage:
    """What the active tables hold, as `qemu-img check` counts it."""

    allocated: int = 0
    fragmented: int = 0
    compressed: int = 0


class Walk:
    """One walk over an image; afterwards `counts`, `findings` and `usage` tell. Offsets are in bytes."""

    def __init__(self, file: HostFile, header: Header, pages: Pages) -> None:
        self.file, self.header, self.pages = file, header, pages
        self.counts = Counts()
        self.findings: list[Finding] = []
        self.usage = Usage()
        self._size = header.cluster_size
        self._file_end = file.length
        self._entries = Entries(
            file.name,
            header.start.cluster_bits,
            version=header.start.version,
            extended=header.extended_l2,
            external=header.has_data_file,
        )
        self.tables = SparseCounts()  # the disk's L2 tables, by their offsets
        self._apart_tables: list[tuple[int, int]] = []  # offsets and ends, sorted, of what is not repaired in place now
        self.more = 0  # findings that are not kept
        self.snapshots: Sequence[snapshot_table.Snapshot] = ()
        self._bitmaps: Sequence[bitmap_directory.BitmapEntry] = ()
        self._next = 0  # where the next cluster would lie if nothing were fragmented

    def run(self) -> None:
        """Everything but the refcount structures themselves."""
        start = self.header.start
        self.name(0, self._size, "the header")
        self.name(start.l1_table_offset, start.l1_size * WORD, "the L1 table")
        # before the disk's own tables, because what such a table seems to share with these is not repaired in place
        self._guarded("the LUKS header", self._encryption)
        self._guarded("the snapshots", self._read_snapshots)
        self._guarded("the bitmaps", self._read_bitmaps)
        self._apart_tables = self._snapshot_tables()
        self._l1(start.l1_table_offset, start.l1_size, self.tables)
        self._l2_tables(self.tables, active=True)
        self._apart_tables = []
        self._guarded("the snapshots", self._walk_snapshots)
        self._guarded("the bitmaps", self._walk_bitmaps)

    def _guarded(self, what: str, walk: Callable[[], None]) -> None:
        try:
            walk()
        except ImageError as error:
            self.findings.append(Finding(f"{what}: {error}"))

    def name(self, offset: int, length: int, what: str, times: int = 1, patch: tuple[int, bytes] | None = None) -> None:
        """Counts a reference for every cluster of the range."""
        if not length:
            return
        if offset + length - self._file_end >= self._size:
            self._find(f"{what} at {offset:#x} lies behind the end of the file at {self._file_end:#x}", patch)
            return
        first = offset // self._size
        self.counts.add(first, (offset + length - 1) // self._size - first + 1, times)

    def _find(self, sentence: str, patch: tuple[int, bytes] | None = None) -> None:
        if len(self.findings) < _MOST_FINDINGS:
            self.findings.append(Finding(sentence, None if patch and self._lies_apart(patch[0]) else patch))
        else:
            self.more += 1

    # L1, L2

    def _l1(self, offset: int, size: int, named: SparseCounts, times: int = 1) -> None:
        """Adds the offsets of the L2 tables that it names."""
        for index, word in self.entries(offset, size):
            table = word & OFFSET
            patch = (offset + index * WORD, bytes(WORD))
            if word & ~(OFFSET | COPIED) or not table:
                kept = word & (OFFSET | COPIED) if table else 0
                mended = (offset + index * WORD, kept.to_bytes(WORD, "big"))
                wrong = "reserved bits are set" if word & ~(OFFSET | COPIED) else "COPIED is set, but there is no table"
                self._find(f"L1 entry {index} is {word:#018x}: {wrong}", mended)
            if table % self._size:
                self._find(f"L1 entry {index} is {word:#018x}: not at a multiple of {self._size}", patch)
            elif table:
                if table + self._size - self._file_end >= self._size:
                    self._find(f"L1 entry {index} is {word:#018x}: behind the end of the file", patch)
                elif not self._may_be_table(table):
                    self._find(f"L1 entry {index} is {word:#018x}: on something that is no L2 table", patch)
                else:
                    named.add(table, times)

    def entries(self, offset: int, size: int, *, again: bool = False) -> Iterator[tuple[int, int]]:
        """As `words`, of an L1 table; where no more findings are kept, what is plainly wrong is only counted."""
        if size <= _LONG:
            yield from self.words(offset, size)
            return
        from formats.qcow2 import arrays  # which takes longer to load than a short table to read

        for start, end in self.file.written(offset, size * WORD):
            for at in range(start - (start - offset) % WORD, end, _PIECE):
                words = arrays.words(self.file.pread(at, min(_PIECE, offset + size * WORD - at)))
                kept = words != 0
                if len(self.findings) >= _MOST_FINDINGS:
                    strange, misplaced = arrays.wrong_l1(words, self._size, self._file_end)
                    self.more += 0 if again else int(strange.sum()) + int(misplaced.sum())
                    kept &= ~(strange | misplaced)
                first = (at - offset) // WORD
                yield from ((first + n, int(words[n])) for n in kept.nonzero()[0].tolist())

    def _may_be_table(self, table: int) -> bool:
        """What a snapshot calls one may be the disk's data, and what the disk calls one the table of snapshots."""
        return bool(self.tables.get(table)) or not self.counts.get(table // self._size)

    def words(self, offset: int, count: int) -> Iterator[tuple[int, int]]:
        """Index and word of those of a table that are not 0."""
        step, done = self.pages.size, offset
        for start, end in self.file.written(offset, count * WORD):
            for at in range(max(start // step * step, done), end, step):
                done = at + step
                words = self.pages.words(at, min(step, offset + count * WORD - at) // WORD)
                if any(words):
                    index = (at - offset) // WORD
                    yield from ((index + n, word) for n, word in enumerate(words) if word)

    def _l2_tables(self, named: SparseCounts, *, active: bool) -> None:
        """Counts each as often as it is named, and walks it once."""
        for table, times in named.items():
            self.name(table, self._size, "an L2 table", times)
        for table in self.in_data(table for table, _ in named.items()):
            self._l2(table, named.get(table), active=active)

    def tables_in_data(self, offsets: Sequence[int]) -> Iterator[int]:
        """As `in_data`, of sorted offsets: what lies in a hole is passed over at once, however much it is."""
        at = 0
        while at < len(offsets):
            offset = offsets[at]
            data = next((start for start, _ in self.file.written(offset, self._file_end - offset)), self._file_end)
            at = max(at + 1, bisect_right(offsets, data - self._size, at))
            if data < offset + self._size:
                yield offset

    def in_data(self, offsets: Iterable[int]) -> Iterator[int]:
        """Those of some clusters, in order, of which the file has anything."""
        data = 0  # where it has some next
        for offset in offsets:
            if data < offset + self._size:
                data = next((start for start, _ in self.file.written(offset, self._file_end - offset)), self._file_end)
            if data < offset + self._size:
                yield offset

    def _l2(self, table: int, times: int, *, active: bool) -> None:
        width = 2 if self._entries.extended else 1
        step = self.pages.size // WORD
        self._next = 0
        for at in range(table, table + self._size, self.pages.size):
            words = self.pages.words(at, step)
            if not any(words):
                continue
            for place in range(0, step, width):
                bits = words[place + 1] if width == 2 else 0
                if words[place] or bits:
                    self._descriptor(at + place * WORD, words[place], bits, times, active)

    def _descriptor(self, place: int, word: int, bits: int, times: int, active: bool) -> None:
        patch = (place, self._zeros())
        what = f"the L2 entry at {place:#x} is {word:#018x}"
        if word & COMPRESSED:
            self._compressed(what, word, times, active, patch)
            return
        self._reserved(what, word, place)
        offset = word & OFFSET
        allocated, zero = bits & ALL_SUBCLUSTERS, bits >> SUBCLUSTERS
        if allocated & zero or (allocated and not offset and not self._entries.external):
            self._find(f"{what} with sub-clusters {bits:#018x}, which contradict it", patch)
        elif offset % self._size:
            self._find(f"{what}: not at a multiple of {self._size}", patch)
        elif offset or (self._entries.external and word & COPIED):
            if not self._entries.external:
                self.name(offset, self._size, what, times, patch)
            if active:
                self.usage.allocated += 1
                self.usage.fragmented += bool(self._next and offset != self._next)
                self._next = offset + self._size

    def _reserved(self, what: str, word: int, place: int) -> None:
        known = COPIED | OFFSET | (ZERO if not self._entries.extended else 0)
        if word & ~known:
            self._find(f"{what}: reserved bits are set", (place, (word & known).to_bytes(WORD, "big")))

    def _compressed(self, what: str, word: int, times: int, active: bool, patch: tuple[int, bytes]) -> None:
        if word & COPIED:
            right = (patch[0], (word & ~COPIED).to_bytes(WORD, "big"))  # what it says of the data may well be true
            self._find(f"{what}: compressed clusters never have the COPIED flag", right)
        if self._entries.external:
            self._find(f"{what}: compressed, in an image with a data file", patch)
            return
        offset, length = self._entries.compressed_span(word)
        self.name(offset, length, what, times, patch)
        if active:
            self.usage.allocated += 1
            self.usage.compressed += 1
            self.usage.fragmented += 1

    def _zeros(self) -> bytes:
        """A descriptor that reads as zeros, or (version 2) is not there."""
        if self._entries.extended:
            return bytes(8) + (ALL_SUBCLUSTERS << SUBCLUSTERS).to_bytes(8, "big")
        return (ZERO if self._entries.can_zero else 0).to_bytes(8, "big")

    # snapshots, bitmaps, encryption

    def _read_snapshots(self) -> None:
        self.snapshots = snapshot_table.read(self.file, self.header)
        self.name(self.header.start.snapshots_offset, snapshot_table.length(self.snapshots), "the snapshot table")

    def _snapshot_tables(self) -> list[tuple[int, int]]:
        """Where snapshots have their L1 tables. What an L1 entry of the disk calls an L2 table may be one of these, and
        zeros for what cannot be in an L2 table would destroy the snapshot."""
        found, end = [], 0
        for offset, size in sorted({(each.start.l1_table_offset, each.start.l1_size) for each in self.snapshots}):
            end = max(end, offset + size * WORD)
            found.append((offset, end))  # perhaps with what lies between two: harmless
        return found

    def _lies_apart(self, place: int) -> bool:
        at = bisect_right(self._apart_tables, (place, 1 << 65))
        return at > 0 and place < self._apart_tables[at - 1][1]

    def _walk_snapshots(self) -> None:
        places = Counter((each.start.l1_table_offset, each.start.l1_size) for each in self.snapshots)
        named = SparseCounts()
        for (offset, size), times in self._apart(places, "the L1 table of a snapshot"):
            if offset % self._size or size * WORD > disk.MAX_L1_BYTES:
                self._find(f"a snapshot has an L1 table at {offset:#x} of {size} entries")
            elif offset + size * WORD > self._file_end:
                self._find(f"the L1 table of a snapshot at {offset:#x} lies behind the end of the file")
            else:
                self.name(offset, size * WORD, "the L1 table of a snapshot", times)
                self._l1(offset, size, named, times)
        self._l2_tables(named, active=False)

    def _apart(self, places: Counter[tuple[int, int]], what: str) -> Iterator[tuple[tuple[int, int], int]]:
        """Tables at (offset, words), each place once with how often it is named; not those that overlap others."""
        end = total = 0
        for (offset, size), times in sorted(places.items()):
            total += size * WORD
            if (offset < end and size) or total > _MOST_BYTES:
                self._find(f"{what} at {offset:#x} overlaps another, or lies behind {_MOST_BYTES} bytes of others")
                continue
            end = max(end, offset + size * WORD)
            yield (offset, size), times

    def _encryption(self) -> None:
        if self.header.encrypted:
            where = self.header.encryption
            self.name(where.offset, where.length, "the LUKS header")

    def _read_bitmaps(self) -> None:
        if not self.header.features.autoclear_features & disk.Autoclear.BITMAPS:
            return  # worthless as a whole, so what they hold is a leak
        where = bitmap_directory.pointer(self.header)
        self._bitmaps = bitmap_directory.read(self.file, self.header)
        if where is not None:
            self.name(where.bitmap_directory_offset, where.bitmap_directory_size, "the bitmap directory")

    def _walk_bitmaps(self) -> None:
        places = Counter((entry.start.bitmap_table_offset, entry.start.bitmap_table_size) for entry in self._bitmaps)
        for (offset, size), times in self._apart(places, "the table of a bitmap"):
            self.name(offset, size * WORD, "the table of a bitmap", times)
            for _, word in self.words(offset, size):
                if word & OFFSET:
                    self.name(word & OFFSET, self._size, "the data of a bitmap", times)
