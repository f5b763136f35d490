"""The second version of refcounts: blocks copied when they first differ, then changed a page at a time, vectorised.

What a commit counts meanwhile it counts in both versions (`Refcounts.add`). Clusters are named by number.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from formats.errors import CorruptImage, UnsupportedFeature
from formats.qcow2 import arrays
from formats.qcow2.arrays import Words
from formats.qcow2.pages import Stage

if TYPE_CHECKING:
    from formats.qcow2.writer import Writer

_PAGES = 32  # pages of counts changed in one slice
_WAITING = 1024  # changed pages kept in memory
_GATHERED = 1 << 16  # references collected before they are counted, so that each page is visited seldom


class SecondCounts:
    """`take` gives the offset of a new cluster. Raises OSError, CorruptImage, UnsupportedFeature (too narrow)."""

    def __init__(self, writer: "Writer", take: Callable[[], int]) -> None:
        self._writer, self._take = writer, take
        self._pages, self._refcounts = writer.pages, writer.refcounts
        self._name = writer.pages.file.name
        self._waiting: list[Words] = []

    def _open(self, cluster: int) -> None:
        """Makes sure that the cluster's count has a second version."""
        refcounts, size = self._refcounts, self._refcounts.cluster_size
        index = cluster // refcounts.per_block
        if index in refcounts.second:
            return
        block = refcounts.block(index)
        if not block:
            raise CorruptImage(f"{self._name}: host cluster {cluster} is in use, but has no refcount block")
        offset = self._take()  # first, because it may be counted in this very block
        self._pages.begin(offset, self._pages.peek(block, size))
        refcounts.second[index] = offset

    def release(self, clusters: range) -> None:
        """One reference less for each, in the second version only."""
        for cluster in clusters:
            self._open(cluster)
            self._refcounts.add_second(cluster, -1)

    def gather(self, clusters: Words, change: int) -> Iterator[None]:
        """Adds `change` to the count of each, as often as it is named; perhaps not before `settle`."""
        self._waiting.append(clusters)
        if sum(map(len, self._waiting)) >= _GATHERED:
            yield from self.settle(change)

    def settle(self, change: int) -> Iterator[None]:
        """Counts what was gathered, a slice at a time."""
        if not self._waiting:
            return
        unique, times = np.unique(np.concatenate(self._waiting), return_counts=True)
        self._waiting.clear()
        yield
        for number, (start, stop) in enumerate(self._by_page(unique)):
            self._count(unique[start:stop], times[start:stop].astype(np.uint64), change)
            if number % _PAGES == _PAGES - 1:
                self._writer.trickle(_WAITING)
                yield

    def _by_page(self, clusters: Words) -> Iterator[tuple[int, int]]:
        """Start and end of those, of sorted clusters, whose counts lie in one page."""
        if len(clusters):
            edges = (np.flatnonzero(np.diff(clusters // np.uint64(self._refcounts.per_page))) + 1).tolist()
            yield from zip([0, *edges], [*edges, len(clusters)], strict=True)

    def _count(self, clusters: Words, times: Words, change: int) -> None:
        """Of one page."""
        self._open(int(clusters[0]))
        page, values = self._values(int(clusters[0]))
        places = (clusters % np.uint64(self._refcounts.per_page)).astype(np.intp)
        if change > 0 and np.any(values[places] > np.uint64(self._refcounts.maximum) - times):
            raise UnsupportedFeature(
                f"{self._name} counts references in {self._refcounts.bits} bits, so a cluster has at most "
                f"{self._refcounts.maximum}: no more snapshots fit"
            )
        if change < 0 and np.any(values[places] < times):
            raise CorruptImage(f"{self._name}: refcounts are lower than the references; repair the image")
        values[places] = values[places] + times if change > 0 else values[places] - times
        self._pages.write(page, arrays.pack_counts(values, self._refcounts.bits), Stage.TARGET)

    def _values(self, cluster: int) -> tuple[int, Words]:
        """The page with the cluster's count, and all counts of it; zeros where there is none."""
        page, _ = self._refcounts.page(cluster, second=True)
        if not page:
            return 0, np.zeros(self._refcounts.per_page, np.uint64)
        page -= page % self._pages.size
        return page, arrays.counts(self._pages.read(page, self._pages.size), self._refcounts.bits)

    def counts(self, clusters: Words) -> Words:
        """The second version's counts of these, the first's where there is no second."""
        unique, where = np.unique(clusters, return_inverse=True)
        found = np.zeros(len(unique), np.uint64)
        for start, stop in self._by_page(unique):
            _, values = self._values(int(unique[start]))
            found[start:stop] = values[(unique[start:stop] % np.uint64(self._refcounts.per_page)).astype(np.intp)]
        return found[where]
