"""L1 and L2 tables: which descriptor each guest cluster has, read as runs of map entries and changed word by word.

    L1 table   [ word | word | 0 | ... ]          one word per L2 table, contiguous, named by header or snapshot
                  |
    L2 table   [ word | word | ... ]              one cluster, one word (extended: two) per guest cluster

Reading is lazy: an L2 table is looked at in pages of 4 KiB, and only when a block of it is asked for. A table that the
active L1 does not own alone (COPIED clear) is copied before its first change.

Two words that both say COPIED (“refcount is exactly one”) of one cluster contradict each other, and a write through one
would change what the other shows. QEMU does not look for that while it runs. Of an image that is written to, L1 words
are compared when it is opened, the words of a page of an L2 table when that is loaded; only a check compares all.
"""

import struct
import sys
from array import array
from collections.abc import Container, Iterator, Sequence
from itertools import repeat

from formats.errors import CorruptImage
from formats.image import SECTOR, BlockState, Masks, Run, compressed_entry, entry
from formats.qcow2.entries import Entries, Meaning
from formats.qcow2.pages import Pages, Stage
from formats.qcow2.regions import L2_TABLE, Regions
from formats.qcow2.structures import ALL_SUBCLUSTERS, COMPRESSED, COPIED, OFFSET, SUBCLUSTERS, WORD

_PLACED = (BlockState.DATA, BlockState.SHARED)
_HOLE, _DATA, _SHARED = (entry(state) for state in (BlockState.HOLE, BlockState.DATA, BlockState.SHARED))
_PLACE = (1 << 48) - 1  # of an entry: its offset in sectors
_EVERY_BIT = (1 << 64) - 1
_L1_STEP = 512  # words of L1 looked at together


class Frozen:
    """What a snapshot that is being taken holds on to: the L2 tables as they were, so that none of them, and nothing
    that they name, is changed or freed. `replaced`: where those lie that the active L1 has another table for by now."""

    def __init__(self) -> None:
        self.replaced: dict[int, int] = {}  # offset by index; 0: there was none
        self.ending = False  # given up: only what is in `replaced` is still to be let go of

    def holds(self, index: int) -> bool:
        return not self.ending or index in self.replaced


class Tables:
    """One L1 table and what it leads to. `l1_offset` is in bytes, `l1_size` in words, blocks are guest clusters."""

    def __init__(self, entries: Entries, pages: Pages, regions: Regions, l1_offset: int, l1_size: int) -> None:
        self._file, self._pages, self._regions = pages.file, pages, regions
        self.entries = entries
        self.l1_offset, self.l1_size = l1_offset, l1_size
        self._width = 2 if entries.extended else 1  # words per descriptor
        self.entry_size = WORD * self._width
        self.per_table = entries.cluster_size // self.entry_size
        self._per_page = pages.size // (WORD * self._width)
        self._every_lane = ((1 << 64 * self._per_page) - 1) // _EVERY_BIT  # 1 in every word of a page as one number
        self.frozen: Frozen | None = None
        self.keeps_places = False  # the place of a zeroed block is told too, where it is the block's alone
        self.exclusive = False  # what is told to be nobody else's will be written to
        self.second: dict[int, int] = {}  # offsets of other versions of some L2 tables, by index: see switch.py

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
        word, bits = self.descriptor(block)
        if self.held(block, word):
            word &= ~COPIED
        meaning = self.entries.decode(block, word, bits)
        if meaning.state in (*_PLACED, BlockState.PARTIAL):
            self._check(block, meaning.offset)
        return meaning

    def load(self, first: int, count: int) -> list[Run]:
        """The map of `count` blocks from `first` on. CorruptImage names what is wrong."""
        runs: list[Run] = []
        for block, length, place in self._pieces(first, count):
            entries = self._page_entries(block, length, place) if place else None
            more = [Run(block, length, _HOLE)] if entries is None else self._runs(block, entries)
            _extend(runs, more, self.entries.cluster_size)
        return runs

    def load_entries(self, first: int, count: int) -> "array[int]":
        """The same, one entry for each block."""
        found = array("Q")
        for block, length, place in self._pieces(first, count):
            entries = self._page_entries(block, length, place) if place else None
            found.extend(array("Q", [_HOLE]) * length if entries is None else entries)
        return found

    def masks(self, first: int, count: int) -> list[Masks]:
        """Of blocks that `load` told to be PARTIAL, and so has checked."""
        found: list[Masks] = []
        for block, length, place in self._pieces(first, count):
            words = self._pages.words(place, length * self._width)
            if self.frozen is not None:
                words = self._as_held(block, words)
            for word, bits in zip(words[::2], words[1::2], strict=True):
                shared = bool(word & OFFSET) and not word & COPIED
                found.append(Masks(bits & ALL_SUBCLUSTERS, bits >> SUBCLUSTERS, shared))
        return found

    def _pieces(self, first: int, count: int) -> Iterator[tuple[int, int, int]]:
        """First block, number, and offset of their descriptors inside one page, 0 where there is no L2 table."""
        block, end = first, first + count
        while block < end:
            index, within = divmod(block, self.per_table)
            stop = min(end, (index + 1) * self.per_table)
            table = self.table(index)
            if table:
                stop = min(stop, block - within + (within // self._per_page + 1) * self._per_page)
            yield block, stop - block, table and table + within * WORD * self._width
            block = stop

    def _page_entries(self, first: int, count: int, offset: int) -> "array[int] | None":
        """None where all are HOLE. Plain descriptors are decoded here, because there are many; the rest by Entries."""
        words = self._pages.words(offset, count * self._width)
        if not any(words):
            return None
        if self.frozen is not None:
            words = self._as_held(first, words)
        plain = self._plain_entries(words)
        if plain is not None:
            return plain
        self._require_apart(first, words[:: self._width])
        found = array("Q", [_HOLE]) * count
        places: list[int] = []
        extended = self.entries.extended
        odd = _EVERY_BIT if self.entries.external else _EVERY_BIT ^ (COPIED | OFFSET & -self.entries.cluster_size)
        pairs = (
            zip(words[::2], words[1::2], strict=True) if extended else zip(words, repeat(ALL_SUBCLUSTERS), strict=False)
        )
        for n, (word, bits) in enumerate(pairs):
            if word & OFFSET and not word & odd and bits == ALL_SUBCLUSTERS:
                found[n] = (_DATA if word & COPIED else _SHARED) | (word & OFFSET) // SECTOR
                places.append(word & OFFSET)
            elif word or (extended and bits):
                found[n] = self._entry(first + n, word, bits)
        if places and (max(places) >= self._file.length or self._regions.any_overlapping(places)):
            for n, word in enumerate(found):
                if word >> 60 in _PLACED:
                    self._check(first + n, (word & _PLACE) * SECTOR)
        return found

    def _entry(self, block: int, word: int, bits: int) -> int:
        meaning = self.entries.decode(block, word, bits)
        kept = self.keeps_places and meaning.state == BlockState.ZERO and not meaning.shared
        if kept or meaning.state in (*_PLACED, BlockState.PARTIAL):
            self._check(block, meaning.offset)
            return entry(meaning.state, int(self.entries.external), meaning.offset)
        if meaning.state == BlockState.COMPRESSED:
            return compressed_entry(self._compressed_place(word))
        return entry(meaning.state)

    def _plain_entries(self, words: Sequence[int]) -> "array[int] | None":
        """The entries where all are DATA and in places where they may be, all made at once as one long number; None
        where each has to be looked at."""
        count = len(words)
        if self.entries.extended or self.entries.external or count < self._per_page:
            return None
        each = self._every_lane
        lanes = int.from_bytes(struct.pack(f"<{count}Q", *words), "little")
        if lanes & each * (_EVERY_BIT ^ OFFSET & -self.entries.cluster_size) != each * COPIED:
            return None
        found = array("Q", ((lanes ^ each * COPIED) // SECTOR | each * _DATA).to_bytes(count * WORD, "little"))
        if sys.byteorder == "big":
            found.byteswap()
        places = [word & OFFSET for word in words]
        bad = not all(places) or max(places) >= self._file.length or self._regions.any_overlapping(places)
        bad = bad or (self.exclusive and len(set(places)) < count)
        return None if bad else found

    def require_apart(self, repeated: Container[int]) -> None:
        """CorruptImage where a word of the L1 table has for itself what others name too; `repeated`: those tables."""
        for index, word in self.tables():
            if word & COPIED and word & OFFSET in repeated:
                raise self._corrupt(index, "for it alone, but another entry names the same L2 table; repair the image")

    def _require_apart(self, first: int, words: Sequence[int]) -> None:
        """The same of some blocks."""
        if not self.exclusive:
            return
        own = [word & OFFSET if word & COPIED and not word & COMPRESSED else 0 for word in words]
        if len(set(own)) + own.count(0) - (0 in own) < len(own):
            block = next(n for n, place in enumerate(own) if place and place in own[:n])
            raise CorruptImage(
                f"{self._file.name}: cluster {first + block} lies at {own[block]:#x}, which cluster "
                f"{first + own.index(own[block])} has for itself too; repair the image"
            )

    def _compressed_place(self, word: int) -> int:
        """Where compressed data begins; 0 where it cannot be true, which `read_compressed` says when it is asked."""
        offset, length = self.entries.compressed_span(word)
        return 0 if self._regions.overlapping(offset, length) else offset

    def _runs(self, first: int, entries: "array[int]") -> list[Run]:
        step = self.entries.cluster_size // SECTOR
        runs: list[Run] = []
        start, expected = 0, -1
        for n, word in enumerate(entries):
            if word != expected and n:
                runs.append(Run(first + start, n - start, entries[start]))
                start = n
            state = word >> 60
            expected = word + step if state in _PLACED else -1 if state == BlockState.PARTIAL else word
        runs.append(Run(first + start, len(entries) - start, entries[start]))
        return runs

    def _check(self, block: int, offset: int) -> None:
        """The host cluster of a block: inside the file, and nothing of the image's own."""
        if self.entries.external or not offset:
            return
        end = self._file.length
        if offset >= end:
            raise CorruptImage(
                f"{self._file.name}: the data of cluster {block} lies at {offset:#x}, but the file ends at {end:#x}"
            )
        self._regions.require_free(offset, self.entries.cluster_size, f"the data of cluster {block}")

    # what a snapshot that is being taken holds on to

    def held(self, block: int, word: int) -> bool:
        """Whether it has, at this block, what `word` names."""
        index, within = divmod(block, self.per_table)
        if self.frozen is None or not self.frozen.holds(index):
            return False
        if index not in self.frozen.replaced:
            return True
        table = self.frozen.replaced[index]
        return bool(table) and _alike(word, self._pages.word(table + within * self.entry_size))

    def _as_held(self, first: int, words: Sequence[int]) -> Sequence[int]:
        """The descriptors of some blocks without the COPIED flag where it holds what they name."""
        step = self._width
        flags = (COPIED if self.held(first + n, word) else 0 for n, word in enumerate(words[::step]))
        plain = [word & ~flag for word, flag in zip(words[::step], flags, strict=True)]
        return plain if step == 1 else [word for pair in zip(plain, words[1::2], strict=True) for word in pair]

    # changing

    def put(self, block: int, word: int, subclusters: int) -> None:
        """Changes a descriptor in memory; its L2 table must be there and owned."""
        index, within = divmod(block, self.per_table)
        self._put(self.table(index) + within * self.entry_size, word, subclusters, Stage.POINTER)
        second = self.second.get(index)
        if second is not None:
            place = second + within * self.entry_size
            old = self._pages.word(place)
            if (old ^ word) & OFFSET == 0 and not (old | word) & COMPRESSED:  # the flag goes with the place
                word = word & ~COPIED | old & COPIED
            self._put(place, word, subclusters, Stage.TARGET)

    def _put(self, place: int, word: int, subclusters: int, stage: Stage) -> None:
        self._pages.put_word(place, word, stage)
        if self._width == 2:
            self._pages.put_word(place + WORD, subclusters, stage)

    def owned(self, index: int) -> bool:
        """Whether the L2 table is there and may be changed in place."""
        word = self.l1_word(index)
        return bool(word & OFFSET) and bool(word & COPIED) and not self._holds_table(index)

    def _holds_table(self, index: int) -> bool:
        return self.frozen is not None and self.frozen.holds(index) and index not in self.frozen.replaced

    def owned_table(self, index: int) -> int:
        """Offset of the L2 table if it may be changed in place, and there alone, else 0."""
        there = 0 <= index < self.l1_size and index not in self.second and self.owned(index)
        return self.table(index) if there else 0

    def replace_table(self, index: int, cluster: int) -> int:
        """Puts a new L2 table, with the old one's words, into a cluster that was taken for it. Returns the offset of
        the old one, which nobody needs now; 0 for none."""
        old, size = self.table(index), self.entries.cluster_size
        offset = cluster * size
        self._pages.clear(offset, size)
        if old:
            self._pages.write(offset, self._pages.read(old, size), Stage.TARGET)
        self._regions.add_cluster(offset, L2_TABLE)
        self._regions.remove_cluster(old, L2_TABLE)
        held = self.frozen is not None and self._holds_table(index)
        if self.frozen is not None and held:
            self.frozen.replaced[index] = old
        self._pages.put_word(self.l1_offset + index * WORD, offset | COPIED, Stage.POINTER)
        return 0 if held else old

    def read_compressed(self, block: int) -> bytes | None:
        """What may hold the compressed data of a block, None where it is not compressed."""
        word, _ = self.descriptor(block)
        if not word & COMPRESSED:
            return None
        offset, length = self.entries.compressed_span(word)
        self._regions.require_free(offset, length, f"the compressed data of cluster {block}")
        return self._file.pread(offset, length)


def _alike(one: int, two: int) -> bool:
    """Whether two descriptors name the same place."""
    return one == two if (one | two) & COMPRESSED else (one ^ two) & OFFSET == 0


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
