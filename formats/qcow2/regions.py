"""Regions: which host clusters hold the image's own metadata, so that no guest byte is ever put there.

Two kinds of table are many and one cluster long each, so they are sorted arrays of offsets; the rest is a short list.
L2 tables of snapshots are not here: reading them all would make opening slow, and what a guest could do to them through
a forged descriptor it could as well do to its own disk.
"""

from array import array
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable
from heapq import merge
from itertools import pairwise

from formats.errors import CorruptImage

L2_TABLE = "an L2 table"
REFCOUNT_BLOCK = "a refcount block"

_FEW = 4096  # tables that are looked through one after the other quicker than places are looked up among them


class Regions:
    """All offsets and lengths are in bytes; every region begins at a cluster boundary."""

    def __init__(self, name: str, cluster_size: int) -> None:
        self._name = name
        self._cluster_size = cluster_size
        self._spans: list[tuple[int, int, str]] = []  # start, end, what
        self._clusters: dict[str, array[int]] = {L2_TABLE: array("Q"), REFCOUNT_BLOCK: array("Q")}

    def add(self, offset: int, length: int, what: str) -> None:
        """Takes a new region in. CorruptImage where it overlaps another."""
        if length:
            self.require_free(offset, length, what)
            end = -(-(offset + length) // self._cluster_size) * self._cluster_size
            insort(self._spans, (offset, end, what))

    def remove(self, offset: int) -> None:
        """Forgets the region that begins there."""
        at = bisect_left(self._spans, (offset, 0, ""))
        if at < len(self._spans) and self._spans[at][0] == offset:
            del self._spans[at]

    def fill(self, what: str, pieces: Iterable[list[int]]) -> None:
        """Takes in all tables of one kind at once; what leads to them checks them one by one, when they are used.

        There may be millions, so they come in pieces, and only those out of order are merged.
        """
        parts = [array("Q", sorted(piece)) for piece in pieces if piece]
        if any(one[-1] > two[0] for one, two in pairwise(parts)):
            self._clusters[what] = array("Q", merge(*parts))
            return
        self._clusters[what] = array("Q")
        for part in parts:
            self._clusters[what].extend(part)

    def require_apart(self, what: str) -> None:
        """CorruptImage where two tables of this kind are one, or one lies on a region that is no table."""
        clusters = self._clusters[what]
        for start, end, other in self._spans:
            at = bisect_left(clusters, start)
            if at < len(clusters) and clusters[at] < end:
                raise CorruptImage(f"{self._name}: {what} at offset {clusters[at]:#x} lies on {other}")
        for one, two in pairwise(clusters):
            if one == two:
                raise CorruptImage(f"{self._name}: {what} at offset {one:#x} is named twice")

    def repeated(self, what: str) -> set[int]:
        """Tables of this kind that were taken in more than once."""
        clusters = self._clusters[what]
        return {one for one, two in pairwise(clusters) if one == two}

    def add_cluster(self, offset: int, what: str) -> None:
        """Takes in one more table of a kind that is one cluster long."""
        clusters = self._clusters[what]
        clusters.insert(bisect_left(clusters, offset), offset)

    def remove_cluster(self, offset: int, what: str) -> None:
        """Forgets one."""
        clusters = self._clusters[what]
        at = bisect_left(clusters, offset)
        if at < len(clusters) and clusters[at] == offset:
            del clusters[at]

    def overlapping(self, offset: int, length: int, *, but: str | None = None) -> str | None:
        """What the range touches; `but` is a kind that does not matter."""
        start = offset // self._cluster_size * self._cluster_size
        end = offset + length
        at = bisect_right(self._spans, (start, 1 << 65, ""))
        if at and self._spans[at - 1][1] > start:
            return self._spans[at - 1][2]
        if at < len(self._spans) and self._spans[at][0] < end:
            return self._spans[at][2]
        for what, clusters in self._clusters.items():
            at = bisect_left(clusters, start)
            if what != but and at < len(clusters) and clusters[at] < end:
                return what
        return None

    def any_overlapping(self, offsets: list[int]) -> bool:
        """Whether any of these clusters is metadata; quick, because whole pages of the map are asked for."""
        low, high, wanted = min(offsets), max(offsets), set(offsets)
        for start, end, _ in self._spans:
            if start <= high and end > low and any(start <= offset < end for offset in offsets):
                return True
        for clusters in self._clusters.values():
            first, last = bisect_left(clusters, low), bisect_right(clusters, high)
            if last - first <= _FEW:
                hit = not wanted.isdisjoint(clusters[first:last])
            else:
                hit = any(clusters[bisect_left(clusters, offset, first, last - 1)] == offset for offset in offsets)
            if hit:
                return True
        return False

    def require_free(self, offset: int, length: int, what: str, *, but: str | None = None) -> None:
        """CorruptImage, naming `what`, where the range is metadata."""
        hit = self.overlapping(offset, length, but=but)
        if hit is not None:
            raise CorruptImage(f"{self._name}: {what} at offset {offset:#x} lies on {hit}; repair the image first")
