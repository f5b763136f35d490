"""Writer: the changing half of an open qcow2 image; room for new clusters, and batches of map changes made durable.

    reserve   counts raised in memory                                   nothing on disk needs them yet
    commit    1. data, new tables, counts                  | barrier    a crash leaks clusters at worst
              2. words of tables in use, whole pages       | barrier    now the map has changed
              3. counts of what was let go fall            .. ride along in 1. of the next batch

Two barriers for a batch, one where no word changed; a new refcount block costs one more in front, because the word
that names it may not come before it. Applying a batch twice changes nothing, so after an I/O error it is tried again.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from formats.errors import CorruptImage, InvalidArgument, UnsupportedFeature
from formats.host_file import HostFile
from formats.image import SECTOR, BlockState, Change, HostExtent
from formats.qcow2.allocator import Allocator
from formats.qcow2.clearing import Clearing
from formats.qcow2.discarding import kept_meaning
from formats.qcow2.entries import Meaning
from formats.qcow2.pages import Pages, Stage
from formats.qcow2.placing import Placing
from formats.qcow2.refcounts import Refcounts
from formats.qcow2.regions import Regions
from formats.qcow2.structures import ALL_SUBCLUSTERS, COMPRESSED, COPIED
from formats.qcow2.tables import Tables
from formats.qcow2.tail import draw_in

if TYPE_CHECKING:
    from formats.qcow2.switch import Switch

_PLACE = (1 << 48) - 1  # of a map entry, in sectors


class Writer:
    """Holds what only a writable image needs. `data_file` is the external one, if there is."""

    def __init__(
        self, tables: Tables, pages: Pages, regions: Regions, refcounts: Refcounts, data_file: HostFile | None
    ) -> None:
        self.tables = tables
        self.pages, self.regions, self.refcounts = pages, regions, refcounts
        self.allocator = Allocator(pages.file, refcounts, regions)
        self.data_file = data_file
        self.raw_data = False
        self.has_backing = False
        self._keeps_places = False
        self.switch: Switch | None = None  # while a snapshot verb is under way
        self._reserved: set[int] = set()
        self._placing = Placing(tables, pages, self._reserved)
        self._clearing = Clearing(tables, pages, regions, refcounts, self.allocator)
        self._cluster_size = tables.entries.cluster_size

    def keep_places(self, keep: bool) -> None:
        """Whether clusters that are zeroed keep their host clusters."""
        self._keeps_places = self._clearing.keeps_places = keep

    def reserve(self, count: int) -> list[HostExtent]:
        """Clusters for `count` blocks."""
        runs = self.allocator.take(count)
        for first, length in runs:
            self._reserved.update(range(first, first + length))
        return [HostExtent(first * self._cluster_size, length) for first, length in runs]

    def free(self, extents: Sequence[HostExtent]) -> None:
        """Takes reserved clusters back."""
        clusters = [
            cluster
            for extent in extents
            for cluster in range(
                extent.offset // self._cluster_size, extent.offset // self._cluster_size + extent.blocks
            )
        ]
        strange = [cluster for cluster in clusters if cluster not in self._reserved]
        if strange:
            raise InvalidArgument(f"host cluster {strange[0]} is not reserved, so it cannot be given back")
        self._reserved.difference_update(clusters)
        self.allocator.give_back(clusters)

    # changes

    def apply(self, changes: Sequence[Change]) -> None:
        """Changes the map in memory; `flush` makes it durable."""
        ahead = 0
        for place, change in enumerate(changes):
            if change.count > 1:
                self._placing.apply(changes[ahead:place], self._apply)
                self._clear(change)
                ahead = place + 1
        self._placing.apply(changes[ahead:], self._apply)

    def place_row(self, block: int, offset: int, count: int) -> None:
        """The same for `count` blocks that get reserved clusters in a row."""
        self._placing.apply_row(block, offset, count, self._apply)

    def _clear(self, change: Change) -> None:
        if self.switch is None and not self.raw_data:
            self._clearing.apply(change, self._apply)
            return
        for block in range(change.block, change.block + change.count):
            self._apply(Change(block, change.entry))

    def _apply(self, change: Change) -> None:
        new = self._meaning(change)
        entries, tables = self.tables.entries, self.tables
        old_word, old_bits = tables.descriptor(change.block)
        if self._keeps_places and not tables.held(change.block, old_word):
            new = kept_meaning(new, old_word)
        word, bits = entries.encode(new)
        if (word, bits) == (old_word, old_bits):
            return
        old = entries.host_clusters(old_word)
        kept = entries.host_clusters(word)
        moved = bool(old_word & COMPRESSED) or kept != old
        if kept and moved:
            self._claim(change.block, kept.start)
        elif kept:  # other sub-clusters of the same place: whose it is does not change
            word = word & ~COPIED | old_word & COPIED
        self._put(change.block, word, bits)
        if moved:
            self._let_go(change.block, old_word, punch=not kept)

    def _put(self, block: int, word: int, bits: int) -> None:
        index = block // self.tables.per_table
        if not self.tables.owned(index):
            self.own_table(index)
        self.tables.put(block, word, bits)

    def _let_go(self, block: int, word: int, *, punch: bool) -> None:
        """The active tables no longer have this word; a snapshot that is being taken may."""
        clusters = self.tables.entries.host_clusters(word)
        if not self.tables.held(block, word):
            self._drop(block, clusters, punch=punch)
        elif block // self.tables.per_table in self.tables.second:
            assert self.switch is not None
            self.switch.release(clusters)

    def point(self, block: int, word: int) -> None:
        """Gives a block this word, whose host clusters have been counted for it; lets go of what it had."""
        old_word, _ = self.tables.descriptor(block)
        self._put(block, word, 0)
        self._let_go(block, old_word, punch=False)

    def _meaning(self, change: Change) -> Meaning:
        """The change as a descriptor's meaning. InvalidArgument, UnsupportedFeature."""
        state = BlockState(change.entry >> 60)
        offset = (change.entry & _PLACE) * SECTOR
        if not 0 <= change.block < self.tables.l1_size * self.tables.per_table:
            raise InvalidArgument(f"block {change.block} is beyond the end of the map")
        if state in (BlockState.ZERO, BlockState.HOLE):
            return self._zeroed(change.block, state)
        if state == BlockState.PARTIAL and self.tables.entries.extended:
            if change.allocated & change.zero or (change.allocated | change.zero) > ALL_SUBCLUSTERS:
                raise InvalidArgument(f"block {change.block}: a sub-block is allocated or zero, not both")
            return Meaning(state, offset, False, change.allocated, change.zero)
        if state == BlockState.DATA:
            return Meaning(state, offset)
        raise InvalidArgument(f"block {change.block} cannot become {state.name} in this image")

    def _zeroed(self, block: int, state: BlockState) -> Meaning:
        if self.raw_data:  # the data file is a disk by itself, so the zeros must stand in it
            assert self.data_file is not None
            offset = block * self._cluster_size
            self.data_file.zero_range(offset, min(self._cluster_size, max(0, self.data_file.length - offset)))
            return Meaning(BlockState.DATA, offset)
        if state == BlockState.ZERO and not self.tables.entries.can_zero:
            if self.has_backing:
                raise UnsupportedFeature("qcow2 version 2 has no zero clusters; write zeros, or upgrade the image")
            return Meaning(BlockState.HOLE)
        return Meaning(state)

    def _claim(self, block: int, cluster: int) -> None:
        if cluster not in self._reserved:
            raise InvalidArgument(f"block {block} cannot lie in host cluster {cluster}, which is not reserved")
        self._reserved.discard(cluster)

    def _drop(self, block: int, clusters: range, *, punch: bool) -> None:
        for cluster in clusters:
            self.regions.require_free(cluster * self._cluster_size, 1, f"the data of cluster {block}")
            if not self.refcounts.get(cluster):
                raise CorruptImage(
                    f"cluster {block} lies in host cluster {cluster}, whose refcount is 0; repair the image"
                )
        self.allocator.drop(clusters.start, len(clusters), punch=punch)

    def own_table(self, index: int) -> None:
        """Gives the active L1 an L2 table of its own at this place."""
        ((cluster, _),) = self.allocator.take(1)
        old = self.tables.replace_table(index, cluster)
        if old:
            self.allocator.drop(old // self._cluster_size, 1)

    # durable

    def flush(self) -> None:
        """All that was written and applied so far is durable when this returns."""
        if self.data_file is not None:
            self.data_file.fdatasync()
        if self.pages.dirty(Stage.BLOCK):
            self._stage(Stage.BLOCK)
        self._stage(Stage.TARGET)
        if self.pages.dirty(Stage.POINTER):
            self._stage(Stage.POINTER)
        self.allocator.settle()

    def _stage(self, stage: Stage) -> None:
        written = self.pages.write_back(stage)
        self.pages.file.fdatasync()
        self.pages.written(written)

    def trickle(self, most: int) -> None:
        """Writes changed tables out early where more than `most` pages wait; the next barrier makes them durable."""
        if len(self.pages.dirty(Stage.TARGET)) > most:
            if self.pages.dirty(Stage.BLOCK):
                self._stage(Stage.BLOCK)
            self.pages.written(self.pages.write_back(Stage.TARGET))

    def finish(self) -> None:
        """Leaves no leak: what was reserved in vain is free, all counts are on disk, the file ends where it is used."""
        self.flush()
        self.allocator.give_back(sorted(self._reserved))
        self._reserved.clear()
        draw_in(self)
        if self.pages.dirty(Stage.TARGET):
            self._stage(Stage.TARGET)
        self.allocator.cut()
