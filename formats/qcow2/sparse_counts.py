"""Counts of numbers that lie far from each other, a few bytes each: sorted arrays, and what is new beside them.

Only where there are very many is numpy loaded, which takes longer than to look at a small image.
"""

from array import array
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_WAITING = 1 << 16  # counts that are kept one by one before they are sorted in
_MOST = 1 << 62


class SparseCounts:
    """A count for each of some numbers below 2^63."""

    def __init__(self) -> None:
        self._sorted: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None  # numbers, counts
        self._new: dict[int, int] = {}

    def add(self, number: int, times: int) -> None:
        self._new[number] = min(self._new.get(number, 0) + times, _MOST)
        if len(self._new) >= _WAITING and (self._sorted is None or len(self._new) >= len(self._sorted[0]) // 8):
            self._sort_in()

    def add_each(self, numbers: "array[int]") -> None:
        """One more to each, of which there may be millions."""
        if len(numbers) < _WAITING:
            for number in numbers:
                self.add(number, 1)
            return
        import numpy as np

        self._sort_in()
        self._merge(np.array(numbers, np.int64), np.ones(len(numbers), np.int64))

    def _sort_in(self) -> None:
        import numpy as np

        numbers = np.fromiter(self._new.keys(), np.int64, len(self._new))
        counts = np.fromiter(self._new.values(), np.int64, len(self._new))
        self._new.clear()
        self._merge(numbers, counts)

    def _merge(self, numbers: "NDArray[np.int64]", counts: "NDArray[np.int64]") -> None:
        import numpy as np

        if self._sorted is not None:
            numbers, counts = np.concatenate([self._sorted[0], numbers]), np.concatenate([self._sorted[1], counts])
        order = np.argsort(numbers, kind="stable")
        numbers, counts = numbers[order], counts[order]
        first = np.flatnonzero(np.diff(numbers, prepend=-1))
        self._sorted = numbers[first], np.add.reduceat(counts, first)

    def get(self, number: int) -> int:
        count = self._new.get(number, 0)
        if self._sorted is not None:
            at = int(self._sorted[0].searchsorted(number))
            if at < len(self._sorted[0]) and self._sorted[0][at] == number:
                count += int(self._sorted[1][at])
        return count

    def not_once(self, numbers: "array[int]") -> list[int]:
        """Those of these, of which there may be millions, whose count is not 1."""
        if self._sorted is None or not len(self._sorted[0]):
            return [number for number in numbers if self._new.get(number, 0) != 1]
        import numpy as np

        self._sort_in()
        known, counts = self._sorted
        wanted = np.array(numbers, np.int64)
        at = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
        found: list[int] = wanted[(known[at] != wanted) | (counts[at] != 1)].tolist()
        return found

    def _span(self, first: int, count: int) -> list[int]:
        import numpy as np

        assert self._sorted is not None
        numbers, counts = self._sorted
        low, high = np.searchsorted(numbers, [first, first + count])
        found = np.zeros(count, np.int64)
        found[numbers[low:high] - first] = counts[low:high]
        told: list[int] = found.tolist()
        return told

    def span(self, first: int, count: int) -> list[int]:
        """The counts of a range."""
        if self._sorted is not None and self._new:
            self._sort_in()
        if self._sorted is not None:
            return self._span(first, count)
        if len(self._new) > count:
            return [self._new.get(first + n, 0) for n in range(count)]
        found = [0] * count  # quickly, because a rebuild asks for all of a file, however few there are
        for number, times in self._new.items():
            if first <= number < first + count:
                found[number - first] = times
        return found

    def items(self) -> Iterator[tuple[int, int]]:
        """Numbers and their counts, in order."""
        if self._sorted is None:
            yield from sorted(self._new.items())
            return
        if self._new:
            self._sort_in()
        for at in range(0, len(self._sorted[0]), _WAITING):
            yield from zip(*(part[at : at + _WAITING].tolist() for part in self._sorted), strict=True)

    @property
    def end(self) -> int:
        """One more than the last number that has a count."""
        if self._sorted is None:
            return max((number + 1 for number, count in self._new.items() if count), default=0)
        if self._new:
            self._sort_in()
        numbers, counts = self._sorted
        there = counts.nonzero()[0]
        return int(numbers[there[-1]]) + 1 if len(there) else 0

    def chunks(self, length: int) -> set[int]:
        """Numbers of the pieces of `length` numbers that have counts."""
        if self._sorted is None:
            return {number // length for number in self._new}
        return {number // length for number, _ in self.items()}
