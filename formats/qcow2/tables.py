"""L1 and L2 tables: which descriptor each guest cluster has, read as runs of map entries and changed word by word.

    L1 table   [ word | word | 0 | ... ]          one word per L2 table, contiguous, named by header or snapshot
                  |
    L2 table   [ word | word | ... ]              one cluster, one word (extended: two) per guest cluster

Reading is lazy: an L2 table is looked at in pages of 4 KiB, and only when a block of it is asked for. A table that the
active L1 does not own alone (COPIED clear) is copied before its first change.
"""

from collections.abc import Iterator, Sequence

from formats.errors import CorruptImage
from formats.image import SECTOR, BlockState, Run, entry
from formats.qcow2.entries import Entries, Meaning
from formats.qcow2.pages import Pages, Stage
from formats.qcow2.regions import L2_TABLE, Regions
from formats.qcow2.structures import COMPRESSED, COPIED, OFFSET, WORD

_PLACED = (BlockState.DATA, BlockState.SHARED)
_L1_STEP = 512  # words of L1 looked at together


class Tables:
    """One L1 table and what it leads to. `l1_offset` is in bytes, `l1_size` in words, blocks are guest clusters."""

    def __init__(self, entries: Entries, pages: Pages, regions: Regions, l1_offset: int, l1_size: int) -> None:
        self._file, self._pages, self._regions = pages.file, pages, regions
        self.entries = entries
        self.l1_offset, self.l1_size = l1_offset, l1_size
        self._width = 2 if entries.extended else 1  # words per descriptor
        self.per_table = entries.cluster_size // (WORD * self._width)
        self._per_page = pages.size // (WORD * self._width)

    # reading

    def l1_word(self, index: int) -> int:
        return self._pages.word(self.l1_offset + index * WORD)

    def table(self, index: int) -> int:
        """Offset of the L2 table, 0 for none. CorruptImage where the word leads nowhere good."""
        offset = self.l1_word(index) & OFFSET
        if offset:
            if offset % self.entries.cluster_size:
                raise self._corrupt(index, f"not at a multiple of {self.entries.cluster_size}")
            if offset >= self._file.length:
                raise self._corrupt(index, f"behind the end of the file at {self._file.length:#x}")
            hit = self._regions.overlapping(offset, self.entries.cluster_size, but=L2_TABLE)
            if hit:
                raise self._corrupt(index, f"on {hit}")
        return offset

    def _corrupt(self, index: int, what: str) -> CorruptImage:
        return CorruptImage(f"{self._file.name}: L1 entry {index} is {self.l1_word(index):#018x}: {what}")

    def tables(self) -> Iterator[tuple[int, int]]:
        """Index and word of every L1 entry that is not 0, in order."""
        for first in range(0, self.l1_size, _L1_STEP):
            count = min(_L1_STEP, self.l1_size - first)
            data = self._pages.read(self.l1_offset + first * WORD, count * WORD)
            if any(data):
                for place, word in enumerate(self._pages.words(self.l1_offset + first * WORD, count)):
                    if word:
                        yield first + place, word

    def descriptor(self, block: int) -> tuple[int, int]:
        """The word of a block and its sub-cluster bits (0 where there are none)."""
        table = self.table(block // self.per_table)
        if not table:
            return 0, 0
        return self._descriptor_at(table + block % self.per_table * WORD * self._width)

    def _descriptor_at(self, offset: int) -> tuple[int, int]:
        return self._pages.word(offset), self._pages.word(offset + WORD) if self._width == 2 else 0

    def meaning(self, block: int) -> Meaning:
        """What the descriptor of the block says, checked as in `load`."""
        meaning = self.entries.decode(block, *self.descriptor(block))
        if meaning.state in (*_PLACED, BlockState.PARTIAL):
            self._check(block, meaning.offset, 1)
        return meaning

    def load(self, first: int, count: int) -> list[Run]:
        """The map of `count` blocks from `first` on. CorruptImage names what is wrong."""
        runs: list[Run] = []
        block, end = first, first + count
        while block < end:
            index, within = divmod(block, self.per_table)
            stop = min(end, (index + 1) * self.per_table)
            table = self.table(index)
            if table:
                stop = min(stop, block - within + (within // self._per_page + 1) * self._per_page)
                more = self._page_runs(block, stop - block, table + within * WORD * self._width)
            else:
                more = [Run(block, stop - block, entry(BlockState.HOLE))]
            _extend(runs, more, self.entries.cluster_size)
            block = stop
        return runs

    def _page_runs(self, first: int, count: int, offset: int) -> list[Run]:
        words = self._pages.words(offset, count * self._width)
        if not any(words):
            return [Run(first, count, entry(BlockState.HOLE))]
        runs: list[Run] = []
        at = 0
        while at < count:
            meaning = self._decode(first + at, words, at)
            length = self._same(words, at, count, meaning)
            runs.append(self._run(first + at, length, meaning))
            at += length
        return runs

    def _decode(self, block: int, words: Sequence[int], at: int) -> Meaning:
        if self._width == 2:
            return self.entries.decode(block, words[2 * at], words[2 * at + 1])
        return self.entries.decode(block, words[at])

    def _same(self, words: Sequence[int], at: int, count: int, meaning: Meaning) -> int:
        """How many descriptors from `at` on say the same, offsets moving on."""
        width, start = self._width, words[at * self._width]
        step = self.entries.cluster_size if meaning.state in _PLACED else 0
        stop = at + 1
        while stop < count and words[stop * width] == start + (stop - at) * step:
            if width == 2 and words[2 * stop + 1] != words[2 * at + 1]:
                break
            stop += 1
        return 1 if meaning.state == BlockState.PARTIAL else stop - at

    def _run(self, block: int, count: int, meaning: Meaning) -> Run:
        state = meaning.state
        if state not in (*_PLACED, BlockState.PARTIAL):
            return Run(block, count, entry(state))
        self._check(block, meaning.offset, count)
        return Run(block, count, entry(state, int(self.entries.external), meaning.offset))

    def _check(self, block: int, offset: int, count: int) -> None:
        """A run of host clusters: inside the file, and nothing of the image's own."""
        if self.entries.external or not offset:
            return
        length = count * self.entries.cluster_size
        what = f"the data of cluster {block}" if count == 1 else f"the data of clusters {block} to {block + count - 1}"
        end = -(-self._file.length // self.entries.cluster_size) * self.entries.cluster_size
        if offset + length > end:
            raise CorruptImage(
                f"{self._file.name}: {what} lies at {offset:#x}, {length} bytes, but the file ends at {end:#x}"
            )
        self._regions.require_free(offset, length, what)

    # changing

    def put(self, block: int, word: int, subclusters: int) -> None:
        """Changes a descriptor in memory; its L2 table must be there and owned."""
        offset = self.table(block // self.per_table) + block % self.per_table * WORD * self._width
        self._pages.put_word(offset, word, Stage.POINTER)
        if self._width == 2:
            self._pages.put_word(offset + WORD, subclusters, Stage.POINTER)

    def owned(self, index: int) -> bool:
        """Whether the L2 table is there and may be changed in place."""
        return bool(self.l1_word(index) & OFFSET) and bool(self.l1_word(index) & COPIED)

    def replace_table(self, index: int, cluster: int) -> int:
        """Puts a new L2 table, with the old one's words, into a cluster that was taken for it. Returns the old one's
        offset, 0 for none."""
        old, size = self.table(index), self.entries.cluster_size
        offset = cluster * size
        self._pages.clear(offset, size)
        if old:
            self._pages.write(offset, self._pages.read(old, size), Stage.TARGET)
        self._regions.add_cluster(offset, L2_TABLE)
        self._regions.remove_cluster(old, L2_TABLE)
        self._pages.put_word(self.l1_offset + index * WORD, offset | COPIED, Stage.POINTER)
        return old

    def read_compressed(self, block: int) -> bytes | None:
        """What may hold the compressed data of a block, None where it is not compressed."""
        word, _ = self.descriptor(block)
        if not word & COMPRESSED:
            return None
        offset, length = self.entries.compressed_span(word)
        self._regions.require_free(offset, length, f"the compressed data of cluster {block}")
        return self._file.pread(offset, length)


def _extend(runs: list[Run], more: list[Run], cluster_size: int) -> None:
    """Joins runs that go on where the one before ends."""
    for run in more:
        if runs and _following(runs[-1], cluster_size) == run.entry:
            runs[-1] = Run(runs[-1].first, runs[-1].count + run.count, runs[-1].entry)
        else:
            runs.append(run)


def _following(run: Run, cluster_size: int) -> int:
    """The entry that would continue the run; one that no block has where none can."""
    state = run.entry >> 60
    if state in _PLACED:
        return run.entry + run.count * cluster_size // SECTOR
    return -1 if state == BlockState.PARTIAL else run.entry
