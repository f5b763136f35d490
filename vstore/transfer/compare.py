"""compare: whether two chains hold the same disk. What both have in the same place, or as zeros, is not read.

Where one disk is longer, it must be zeros there; with `strict` lengths and allocation must be equal too.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

from formats.errors import image_error
from formats.image import Image
from vstore.transfer.blocks import first_difference
from vstore.transfer.line import Turn, work_in_line
from vstore.transfer.progress import Cancelled, Meter, Progress, never, silent
from vstore.transfer.reader import STEP, Buffers, Pair, Reader, Window, paired, windows
from vstore.transfer.threads import threads


class Kind(Enum):
    """What differs."""

    CONTENT = "content"
    LENGTH = "length"
    ALLOCATION = "allocation"


@dataclass(frozen=True, slots=True)
class Difference:
    """The first one. `offset`: its first byte; of a difference in length the end of the shorter disk."""

    kind: Kind
    offset: int


class _Found(Exception):  # noqa: N818
    def __init__(self, difference: Difference) -> None:
        super().__init__(difference)
        self.difference = difference


def compare(
    one: Sequence[Image],
    two: Sequence[Image],
    *,
    strict: bool = False,
    progress: Progress = silent,
    cancelled: Cancelled = never,
) -> Difference | None:
    """The first difference of two chains of opened images, which stay the caller's; None where there is none. Errors:
    ImageError, TransferCancelled."""
    lengths = one[0].geometry.length, two[0].geometry.length
    if strict and lengths[0] != lengths[1]:
        return Difference(Kind.LENGTH, min(lengths))
    meter = Meter(max(lengths), progress, cancelled)
    readers = Reader(one), Reader(two)
    comparing = _Comparing(*readers, meter, strict=strict)
    try:
        work_in_line(comparing.windows(), comparing.look, threads())
        for reader in readers:
            reader.check()
    except _Found as found:
        return found.difference
    except OSError as error:
        raise image_error(error, "cannot compare") from error
    meter.finish()
    return None


class _Comparing:
    def __init__(self, one: Reader, two: Reader, meter: Meter, *, strict: bool) -> None:
        self._one, self._two, self._meter, self._strict = one, two, meter, strict
        self._buffers, self._others = Buffers(STEP), Buffers(STEP)

    def windows(self) -> Iterator[Window]:
        return windows(self._pairs(), STEP)

    def _pairs(self) -> Iterator[Pair]:
        """All that may differ; of strictness, an allocation that does differs, whatever the bytes."""
        for extent, other in paired(self._one, self._two, 0, self._meter.total):
            place = self._one.place(extent)
            same = extent.zero and other.zero
            unlike = self._strict and (extent.present, extent.zero) != (other.present, other.zero)
            if unlike or not (same or (place and place == self._two.place(other))):
                yield extent, other

    def look(self, window: Window, turn: Turn) -> None:
        """One window, by any thread; what it finds is told in the order of the disk."""
        difference = self._first(window)
        with turn:
            if difference is not None:
                raise _Found(difference)
        self._meter.reach(window.end)

    def _first(self, window: Window) -> Difference | None:
        for extent, other in window.pairs:
            assert other is not None
            if self._strict and (extent.present, extent.zero) != (other.present, other.zero):
                return Difference(Kind.ALLOCATION, extent.start)
            view = self._buffers.view()[: extent.end - extent.start]
            against = self._others.view()[: extent.end - extent.start]
            self._one.fill(view, extent)
            self._two.fill(against, other)
            at = first_difference(view, against)
            if at is not None:
                return Difference(Kind.CONTENT, extent.start + at)
        return None
