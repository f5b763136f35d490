"""Allocator: which host clusters are free, which are promised, and when a freed one may be used again.

    free --take--> counted in memory --commit--> counted and named on disk --drop--> quarantine --settle--> free

A cluster that loses its last reference stays in quarantine until the words that named it are gone from the disk: reuse
within a batch would let a crash show the new owner's bytes through the old word. Free clusters below the end of the
file are found by a scan that goes on a little with every call; until it finds some, the file grows.
"""

import contextlib
import errno
import os

from formats.host_file import HostFile
from formats.qcow2.refcounts import Refcounts
from formats.qcow2.regions import Regions

_SCAN = 1 << 17  # refcounts looked at per call


class Allocator:
    """Clusters are named by number, runs as (first, count)."""

    def __init__(self, file: HostFile, refcounts: Refcounts, regions: Regions) -> None:
        self._file, self._refcounts, self._regions = file, refcounts, regions
        self._cluster_size = refcounts.cluster_size
        self.end = self.first_appended = -(-file.length // self._cluster_size)
        self._scanned, self._scan_end = 0, self.end
        self.holding = False  # what is free below the end stays unused for now
        self._free: list[tuple[int, int]] = []
        self._dropped: list[tuple[int, int, bool]] = []  # first, count, give back to the host
        self._punches = file.punches() and not file.is_block_device

    @property
    def has_grown(self) -> bool:
        """Whether clusters were appended that may be cut off again."""
        return self.end > self.first_appended and not self._file.is_block_device

    def prefer_lowest(self) -> None:
        """Of those that are known to be free, the lowest is taken next."""
        self._free.sort(reverse=True)

    def take(self, count: int) -> list[tuple[int, int]]:
        """`count` clusters in any pieces, each counted once from now on. OSError (ENOSPC) where there is no room."""
        taken: list[tuple[int, int]] = []
        while count:
            first, length = self._next(count)
            taken.append((first, length))
            count -= length
        return taken

    def take_row(self, count: int) -> int:
        """`count` clusters in a row, for a table."""
        return self._append(count)

    def _next(self, count: int) -> tuple[int, int]:
        if not self._free and not self.holding:
            self._scan()
        if not self._free:
            return self._append(count), count
        first, length = self._free.pop()
        if length > count:
            self._free.append((first + count, length - count))
            length = count
        self._claim(first, length)
        return first, length

    def _scan(self) -> None:
        stop = min(self._scanned + _SCAN, self._scan_end)
        while self._scanned < stop:
            run = self._refcounts.next_free(self._scanned, stop)
            self._scanned = stop if run is None else sum(run)
            if run is not None:
                self._free.append(run)
        self._free.reverse()  # the lowest are taken first

    def _append(self, count: int) -> int:
        at, extra = self.end, -1
        while extra != sum(self._refcounts.extra(at, count)):
            extra = sum(self._refcounts.extra(at, count))
            at = self._refcounts.free_from(at, count + extra)
        self._lengthen(at + extra + count)
        first = self._refcounts.extend(at, count)
        self._claim(first, count)
        self.end = first + count
        return first

    def _claim(self, first: int, count: int) -> None:
        offset, length = first * self._cluster_size, count * self._cluster_size
        self._regions.require_free(offset, length, "a free cluster")
        self._refcounts.add(first, count, 1)

    def _lengthen(self, clusters: int) -> None:
        length = clusters * self._cluster_size
        if length <= self._file.length:
            return
        if self._file.is_block_device:
            raise OSError(errno.ENOSPC, f"{self._file.name} ends at {self._file.length}: {os.strerror(errno.ENOSPC)}")
        self._file.truncate(length)

    def drop(self, first: int, count: int, *, punch: bool = False) -> None:
        """One reference less for each, from the moment on that no word on disk names them: see `settle`."""
        if count:
            self._dropped.append((first, count, punch))

    def settle(self) -> None:
        """The words are gone from the disk: counts fall, and what reaches 0 is free."""
        dropped, self._dropped = self._dropped, []
        unused: list[tuple[int, int]] = []
        for first, count, punch in dropped:
            for start, length in self._refcounts.add(first, count, -1):
                self._add_free(start, length)
                if punch and self._punches:
                    unused.append((start, length))
        for start, length in _joined(unused):  # clusters may be shorter than what the host gives back
            self._punch(start, length)

    def _punch(self, first: int, count: int) -> None:
        with contextlib.suppress(OSError):  # they are free all the same
            self._file.punch(first * self._cluster_size, count * self._cluster_size)

    def give_back(self, clusters: list[int]) -> None:
        """Clusters that were taken and never named by any word."""
        for first, count in _runs(sorted(clusters)):
            self._refcounts.add(first, count, -1)
            self._add_free(first, count)

    def _add_free(self, first: int, count: int) -> None:
        """What the scan has yet to pass is left to it."""
        end = first + count
        for start, stop in ((first, min(end, self._scanned)), (max(first, self._scan_end), end)):
            if start < stop:
                self._free.append((start, stop - start))

    def rescan(self) -> None:
        """Many counts have fallen to 0 all over the file: the search for free clusters begins anew."""
        self._free.clear()
        self._scanned, self._scan_end = 0, self.end
        self.holding = False

    def punch(self, clusters: list[int]) -> None:
        """Gives the space of those that are free back to the host."""
        for first, count in _runs(sorted(set(clusters))) if self._punches else ():
            self._punch(first, count)

    def cut(self) -> None:
        """Shortens the file by the free clusters at its end that this allocator had appended."""
        behind = end = max(self.end, -(-self._file.length // self._cluster_size))  # more where appending has failed
        if end > self.first_appended:
            end = self._refcounts.used_end(self.first_appended, end)
        if end < behind and not self._file.is_block_device:
            self._file.truncate(min(end * self._cluster_size, self._file.length))


def _runs(clusters: list[int]) -> list[tuple[int, int]]:
    runs: list[tuple[int, int]] = []
    for cluster in clusters:
        if runs and sum(runs[-1]) == cluster:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((cluster, 1))
    return runs


def _joined(runs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    joined: list[tuple[int, int]] = []
    for first, count in sorted(runs):
        if joined and sum(joined[-1]) == first:
            joined[-1] = (joined[-1][0], joined[-1][1] + count)
        else:
            joined.append((first, count))
    return joined
