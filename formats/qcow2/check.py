"""Checking a qcow2 image: every reference counted, held against the refcounts on disk; and what is wrong put right.

    header, tables, snapshots, bitmaps  --walk-->  References: how many times each host cluster is named
                                                        |  compared with
    refcount table, refcount blocks     --read-->  Refcounts: more: corruption; fewer: leak; COPIED flags that lie

The file may be anything, so the walk trusts no offset: what cannot be is counted as a corruption and, on repair, taken
out of its table. The numbers are those that `qemu-img check` prints.
"""

import heapq
import itertools
import operator
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from formats.errors import InvalidArgument, ReadOnlyImage
from formats.host_file import HostFile
from formats.qcow2 import rebuild, snapshot_table, widths
from formats.qcow2.header import Header, write_fixed
from formats.qcow2.pages import Pages
from formats.qcow2.references import Walk
from formats.qcow2.structures import COMPRESSED, COPIED, OFFSET, REFCOUNT_BLOCK_OFFSET, WORD, Incompatible

_TOLD = 100  # findings that are told in words
_LONG = 1 << 16  # words of a refcount table that is looked at with numpy


@dataclass
class Report:
    """Counts, under qemu-img's names; `findings` are sentences, the first hundred of them."""

    corruptions: int = 0
    leaks: int = 0
    corruptions_fixed: int = 0
    leaks_fixed: int = 0
    total_clusters: int = 0
    allocated_clusters: int = 0
    fragmented_clusters: int = 0
    compressed_clusters: int = 0
    image_end_offset: int = 0
    findings: list[str] = field(default_factory=list)

    def tell(self, sentence: str) -> None:
        if len(self.findings) < _TOLD:
            self.findings.append(sentence)

    def as_json(self, filename: str) -> dict[str, object]:
        """The object of `qemu-img check --output=json`, which leaves most zeros out."""
        always = {
            "filename": filename,
            "format": "qcow2",
            "check-errors": 0,
            "total-clusters": self.total_clusters,
            "image-end-offset": self.image_end_offset,
        }
        problems = ("corruptions", "leaks", "corruptions_fixed", "leaks_fixed")
        names = (*problems, "allocated_clusters", "fragmented_clusters", "compressed_clusters")
        found = {name.replace("_", "-"): getattr(self, name) for name in names}
        return always | {name: value for name, value in found.items() if value}


def _used(counts: list[int]) -> int:
    """How many there are without the zeros at the end."""
    return next(itertools.compress(range(len(counts), 0, -1), reversed(counts)), 0)


REPAIRS = ("none", "leaks", "all")


def check(file: HostFile, *, repair: str = "none") -> Report:
    """Examines an image that nobody uses. `repair`: none; leaks (lower refcounts only); all, which also clears the
    dirty and the corrupt bit. What was found and put right is told as fixed, what is left as corruptions and leaks.

    Errors: ImageError where the header itself is wrong; OSError.
    """
    if repair not in REPAIRS:
        raise InvalidArgument(f"repair {repair!r} is none of {', '.join(REPAIRS)}")
    if repair != "none" and file.read_only:
        raise ReadOnlyImage(f"cannot repair {file.name}: it is open read-only")
    found = Examination(file)
    report = found.report
    if repair == "none" or not (report.corruptions or report.leaks or found.marked):
        return report
    found.mend(leaks_only=repair == "leaks")
    after = Examination(file)
    if repair == "all" and not after.report.corruptions and after.marked:
        after.header.features.incompatible_features &= ~int(Incompatible.DIRTY | Incompatible.CORRUPT)
        write_fixed(file, after.header)
    after.report.corruptions_fixed = max(0, report.corruptions - after.report.corruptions)
    after.report.leaks_fixed = max(0, report.leaks - after.report.leaks)
    after.report.findings = report.findings
    return after.report


class Examination:
    """One look at the whole image."""

    def __init__(self, file: HostFile) -> None:
        self.file = file
        self.header = Header.read(file)
        self._size = self.header.cluster_size
        self._bits = self.header.refcount_bits
        self._per_block = self._size * 8 // self._bits
        self._maximum = (1 << self._bits) - 1
        self.report = Report(total_clusters=-(-self.header.start.size // self._size))
        self._look()

    @property
    def marked(self) -> bool:
        """Whether the header says that something may be wrong."""
        return bool(self.header.incompatible & (Incompatible.DIRTY | Incompatible.CORRUPT))

    def _look(self) -> None:
        self._pages = Pages(self.file, self._size)
        self._per_page = self._pages.size * 8 // self._bits
        self._walk = Walk(self.file, self.header, self._pages)
        self._walk.run()
        for finding in self._walk.findings:
            self._corrupt(finding.sentence)
        for number in snapshot_table.incomplete(self._walk.snapshots, self.header.start.version):
            self._corrupt(f"snapshot table entry {number} is incomplete: version 3 demands the size of its disk")
        self.report.corruptions += self._walk.more
        self._read_structure()
        self._compare()
        for _, _, sentence in self._lying_flags():
            self._corrupt(sentence)
        usage = self._walk.usage
        self.report.allocated_clusters = usage.allocated
        self.report.fragmented_clusters, self.report.compressed_clusters = usage.fragmented, usage.compressed

    def _corrupt(self, sentence: str) -> None:
        self.report.corruptions += 1
        self.report.tell(f"ERROR {sentence}")

    # the refcount structures

    def _blocks_in_order(self, unit: int = 1) -> Sequence[int]:
        """Where there are refcount blocks, sorted, in units of so many bytes."""
        if len(self._blocks) < _LONG:
            return sorted(offset // unit for offset in self._blocks if offset)
        from formats.qcow2 import arrays  # which takes longer to load than to look through a short table

        return arrays.in_order(self._blocks, unit)

    def _read_structure(self) -> None:
        start = self.header.start
        length = start.refcount_table_clusters * self._size
        self._walk.counts.add(start.refcount_table_offset // self._size, start.refcount_table_clusters)
        self._blocks = widths.words_of(self.file.pread(start.refcount_table_offset, length))
        self._broken = False
        self._check_blocks()
        first = start.refcount_table_offset // self._size
        structure = array("Q", range(first, first + start.refcount_table_clusters))
        structure.extend(self._blocks_in_order(self._size))
        self._walk.counts.add_each(structure[start.refcount_table_clusters :])
        self._structure = structure
        for cluster in self._walk.counts.not_once(structure):
            self._broken = True
            self._corrupt(f"host cluster {cluster} of the refcount structures has other uses")

    def _check_blocks(self) -> None:
        """Words of the refcount table become offsets; 0 where there is none, or where none can be."""
        most = (self.file.length - 1) // self._size * self._size
        whole = REFCOUNT_BLOCK_OFFSET & -self._size
        if len(self._blocks) < _LONG:
            wrong = [n for n, word in enumerate(self._blocks) if word & ~whole or word > most]
        else:
            from formats.qcow2 import arrays

            wrong = arrays.block_words(self._blocks, most, whole)
        for index in wrong:
            self._blocks[index] = self._checked_block(index, self._blocks[index])

    def _checked_block(self, index: int, word: int) -> int:
        offset = word & REFCOUNT_BLOCK_OFFSET
        if offset % self._size or offset + self._size - self.file.length >= self._size:
            self._broken = True
            self._corrupt(f"refcount table entry {index} is {offset:#x}, which no refcount block can lie at")
            offset = 0
        if word & ~REFCOUNT_BLOCK_OFFSET:
            self._broken = True
            self._corrupt(f"refcount table entry {index} is {word:#x}: reserved bits are set")
        return offset

    def _block(self, index: int) -> int:
        """Where the refcount block of this number lies, 0 where there is none."""
        return self._blocks[index] if index < len(self._blocks) else 0

    def _disk_counts(self, first: int, count: int) -> list[int]:
        """Counts on disk of clusters inside one page of a block."""
        index, within = divmod(first, self._per_block)
        block = self._block(index)
        if not block:
            return [0] * count
        page = block + within // self._per_page * self._pages.size
        at = within % self._per_page
        first_byte, behind = at * self._bits // 8, -(-(at + count) * self._bits // 8)
        counts = widths.unpack(self._pages.read(page + first_byte, behind - first_byte), self._bits)
        skipped = at - first_byte * 8 // self._bits
        return list(counts[skipped : skipped + count])

    def _spans(self, *, loose: bool = True) -> Iterator[tuple[int, int]]:
        """First cluster and length of every page of counts that either side may have, perhaps but for those that lie
        so loosely that they are kept one by one, where the disk has none."""
        end = max(-(-self.file.length // self._size), self._walk.counts.end)
        named = self._walk.counts.chunks(loose=loose)
        pages = heapq.merge(self._pages_of(self._told()), self._pages_of(named))
        for page, _ in itertools.groupby(pages):
            first = page * self._per_page
            if first < end:
                yield first, min(self._per_page, end - first)

    def _told(self) -> Iterator[tuple[int, int]]:
        """Ranges of clusters, first and length, whose counts the file has."""
        there = set(self._walk.tables_in_data(self._blocks_in_order()))
        for index, offset in enumerate(self._blocks) if there else ():
            if offset not in there:
                continue
            for start, end in self.file.written(offset, self._size):
                first = (start - offset) * 8 // self._bits
                yield index * self._per_block + first, -(-(end - offset) * 8 // self._bits) - first

    def _pages_of(self, ranges: Iterable[tuple[int, int]]) -> Iterator[int]:
        """Numbers of the pages of counts that these ranges of clusters, first and length, have theirs in."""
        for first, count in ranges:
            yield from range(first // self._per_page, -(-(first + count) // self._per_page))

    def _compare(self) -> None:
        highest, seen = -1, set[int]()
        for first, count in self._spans(loose=False):
            seen.add(first // self._per_page)
            told, named = self._disk_counts(first, count), self._walk.counts.span(first, count)
            if any(named) or any(told):
                highest = first + max(_used(told), _used(named)) - 1
            if told == named:
                continue
            for n in itertools.compress(range(count), map(operator.ne, told, named)):
                self._judge(first + n, told[n], named[n])
        cluster = highest
        for cluster, named_times in self._walk.counts.loose():
            if cluster // self._per_page in seen:
                continue
            if len(self.report.findings) < _TOLD:
                self._judge(cluster, 0, named_times)
            else:
                self.report.corruptions += 1  # of which there may be millions
        highest = max(highest, cluster)
        self.report.image_end_offset = (highest + 1) * self._size

    def _judge(self, cluster: int, told: int, named: int) -> None:
        if told > named:
            self.report.leaks += 1
        else:
            self.report.corruptions += 1
        if len(self.report.findings) < _TOLD:
            kind = "Leaked" if told > named else "ERROR"
            self.report.tell(f"{kind} cluster {cluster} refcount={told} reference={named}")

    # flags

    def _lying_flags(self) -> Iterator[tuple[int, int, str]]:
        """Place, right word and a sentence for each COPIED flag of the active tables that is not what refcounts say."""
        start, length = self.header.start, self.file.length
        for index, word in self._walk.entries(start.l1_table_offset, start.l1_size, again=True):
            place, table = start.l1_table_offset + index * WORD, word & OFFSET
            if table and not table % self._size and table < length:
                yield from self._lying(place, word, "L1")
        step = self.header.l2_entry_size // WORD
        for table in self._walk.in_data(table for table, _ in self._walk.tables.items()):
            for at, descriptor in self._walk.words(table, self._size // WORD):
                if at % step == 0 and not descriptor & COMPRESSED and descriptor & OFFSET:
                    yield from self._lying(table + at * WORD, descriptor, "L2")

    def _lying(self, place: int, word: int, kind: str) -> Iterator[tuple[int, int, str]]:
        cluster = (word & OFFSET) // self._size
        external = kind == "L2" and self.header.has_data_file
        count = 1 if external else self._disk_counts(cluster, 1)[0]
        if (count == 1) != bool(word & COPIED):
            yield place, word ^ COPIED, f"{kind} entry at {place:#x} is {word:#018x}, but the refcount is {count}"

    # putting right

    def mend(self, *, leaks_only: bool) -> None:
        """Corrects what was found: counts that are too low first, because what is counted too often only leaks; flags
        last, because they follow from the counts."""
        flags = not leaks_only or not self.report.corruptions
        if not leaks_only:
            for finding in self._walk.findings:
                if finding.patch is not None:
                    self.file.pwrite(*finding.patch)
            self.file.fdatasync()
            if snapshot_table.incomplete(self._walk.snapshots, self.header.start.version):
                snapshot_table.move_completed(self.file, self.header, self._walk.snapshots)
            self.report = Report()
            self._look()
            self._raise()
        self._pages.drop()
        self._settle(lower=True)
        self.file.fdatasync()
        self._pages.drop()
        for place, word, _ in list(self._lying_flags()) if flags else ():
            self.file.pwrite(place, word.to_bytes(WORD, "big"))
        self.file.fdatasync()

    def _raise(self) -> None:
        """No count is lower than the references afterwards."""
        if self._broken or not self._settle(lower=False):
            rebuild.rebuild(self.file, self.header, self._walk.counts, self._structure)
            self.header = Header.read(self.file)
            self.report = Report()
            self._look()
        self.file.fdatasync()

    def _settle(self, *, lower: bool) -> bool:
        """Writes the right counts; False where a block for one is missing, or a width too small for one."""
        for first, count in self._spans():
            told, named = self._disk_counts(first, count), self._walk.counts.span(first, count)
            right = [b if (b < a) == lower else a for a, b in zip(told, named, strict=True)]
            if right == told:
                continue
            block = self._block(first // self._per_block)
            if not block or max(right) > self._maximum:
                return False
            page = block + first % self._per_block // self._per_page * self._pages.size
            whole = list(widths.unpack(self._pages.read(page, self._pages.size), self._bits))
            whole[: len(right)] = right
            self.file.pwrite(page, widths.pack(whole, self._bits))
        return True
