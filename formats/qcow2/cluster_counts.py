"""Counts of host clusters, where there are any: in long pieces, and one by one where those would take too much memory.

cluster 0 .. 4095 | 4096 .. 8191 | ...   the first 4096 pieces that are met: arrays
all others                                SparseCounts
"""

from array import array
from collections.abc import Iterator, Sequence

from formats.qcow2.sparse_counts import SparseCounts

_CHUNK = 4096
_MOST_CHUNKS = 4096  # 64 MiB, enough for all of a disk of 1 TiB in the usual clusters
_MOST_COUNTED = (1 << 32) - 1  # in a piece, until a cluster in it has more
_LONG = 1 << 16  # clusters that are parted with numpy, which takes longer to load than to go through fewer


class Counts:
    """A count per host cluster, kept only where there are any: in long pieces, and one by one where those would take
    too much memory."""

    def __init__(self) -> None:
        self._chunks: dict[int, array[int]] = {}
        self._scattered = SparseCounts()

    def add(self, first: int, count: int, times: int = 1) -> None:
        for cluster in range(first, first + count):
            chunk, place = divmod(cluster, _CHUNK)
            counts = self._chunks.get(chunk) or self._new_chunk(chunk)
            if counts is None:
                self._scattered.add(cluster, times)
            else:
                self._count(chunk, place, times)

    def _count(self, chunk: int, place: int, times: int) -> None:
        try:
            self._chunks[chunk][place] += times
        except OverflowError:  # a snapshot table of 65,536 times one L1 table of 65,536 times one L2 table
            self._chunks[chunk] = array("Q", self._chunks[chunk])
            self._chunks[chunk][place] += times

    def add_each(self, clusters: Sequence[int]) -> None:
        """One reference more to each, of which there may be millions."""
        chunks, scattered = self._chunks, array("Q")
        clusters, apart = self._parted(clusters, fresh=True)
        for cluster in clusters:
            counts = chunks.get(cluster // _CHUNK)
            if counts is None and len(chunks) < _MOST_CHUNKS:
                counts = self._new_chunk(cluster // _CHUNK)
            if counts is None:
                scattered.append(cluster)
            elif counts[cluster % _CHUNK] < _MOST_COUNTED:
                counts[cluster % _CHUNK] += 1
            else:
                self._count(cluster // _CHUNK, cluster % _CHUNK, 1)
        self._scattered.add_each(scattered + apart)

    def _parted(self, clusters: Sequence[int], *, fresh: bool = False) -> tuple[Sequence[int], "array[int]"]:
        """Where there are very many: those that are kept in long pieces (`fresh`: or will be), and the others."""
        if len(clusters) < _LONG:
            return clusters, array("Q")
        from formats.qcow2 import arrays

        room = _MOST_CHUNKS - len(self._chunks) if fresh else 0
        return arrays.parted(clusters, _CHUNK, self._chunks.keys(), room)

    def not_once(self, clusters: Sequence[int]) -> Iterator[int]:
        """Those of them whose count is not 1."""
        chunks, scattered = self._chunks, array("Q")
        clusters, apart = self._parted(clusters)
        for cluster in clusters:
            counts = chunks.get(cluster // _CHUNK)
            if counts is None:
                scattered.append(cluster)
            elif counts[cluster % _CHUNK] != 1:
                yield cluster
        yield from self._scattered.not_once(scattered + apart)

    def _new_chunk(self, chunk: int) -> "array[int] | None":
        if len(self._chunks) >= _MOST_CHUNKS:
            return None
        self._chunks[chunk] = array("I", bytes(_CHUNK * 4))
        return self._chunks[chunk]

    def get(self, cluster: int) -> int:
        counts = self._chunks.get(cluster // _CHUNK)
        return self._scattered.get(cluster) if counts is None else counts[cluster % _CHUNK]

    def span(self, first: int, count: int) -> list[int]:
        """The counts of a range."""
        found: list[int] = []
        while count:
            chunk, at = divmod(first, _CHUNK)
            take = min(count, _CHUNK - at)
            counts = self._chunks.get(chunk)
            if counts is not None:
                found += counts[at : at + take].tolist()
            else:
                found += self._scattered.span(first, take)
            first, count = first + take, count - take
        return found

    def chunks(self, *, loose: bool) -> Iterator[tuple[int, int]]:
        """Ranges of clusters, first and length, outside of which there are no counts, but those that are `loose`."""
        return ((chunk * _CHUNK, _CHUNK) for chunk in (self._numbers() if loose else sorted(self._chunks)))

    def loose(self) -> Iterator[tuple[int, int]]:
        """Clusters and counts of those that are kept one by one."""
        return self._scattered.items()

    def _numbers(self) -> list[int]:
        return sorted(self._chunks.keys() | self._scattered.chunks(_CHUNK))

    @property
    def end(self) -> int:
        """One more than the last cluster that is named."""
        for chunk in sorted(self._chunks, reverse=True):
            used = self._chunks[chunk].tobytes().rstrip(b"\0")
            if used:
                last = (len(used) - 1) // self._chunks[chunk].itemsize
                return max(chunk * _CHUNK + last + 1, self._scattered.end)
        return self._scattered.end
