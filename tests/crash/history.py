"""What the guest did, and so what each sector may show after a crash: what was acknowledged last, or anything younger.

    sector 7:   parent's   write 3   [flush]   write 9   zeroes 12   <- crash
                               ^ durable         ^         ^         any of these three, and nothing else

Content describes itself: a sector that was written says which sector it is and which generation, so bytes that were
never written there cannot pass for any that were. Two requests of the guest for one sector are never under way at once.
"""

import struct
from bisect import bisect_left
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from tests.crash.recording import SECTOR, Event, Kind

_CELL = struct.Struct("<4siQ")
_MAGIC = b"VSCR"
ZEROS = -1  # a generation
PARENT = 0  # what was there before the workload
POISON = b"\xdb\x1f\xad\xeb" * (SECTOR // 4)  # fills free space of the host before the workload

NEVER = 1 << 62


@lru_cache(1 << 16)
def pattern(sector: int, generation: int) -> bytes:
    """The 512 bytes that a generation is in a sector."""
    if generation == ZEROS:
        return bytes(SECTOR)
    return _CELL.pack(_MAGIC, generation, sector) * (SECTOR // _CELL.size)


def filled(first: int, count: int, generation: int) -> bytes:
    """A row of sectors."""
    return b"".join(pattern(sector, generation) for sector in range(first, first + count))


def told(data: bytes) -> str:
    """What a sector's bytes are, for a person."""
    if data == bytes(len(data)):
        return "zeros"
    if data == POISON[: len(data)]:
        return "poison of free host space"
    magic, generation, sector = _CELL.unpack_from(data.ljust(_CELL.size, b"\0"))
    whole = data == _CELL.pack(_MAGIC, generation, sector) * (SECTOR // _CELL.size)
    if magic == _MAGIC:
        return f"generation {generation} of sector {sector}{'' if whole else ', in part'}"
    return f"bytes that begin with {data[:16].hex()}"


@dataclass(slots=True)
class Step:
    """One request's effect on one sector: asked for and, at the latest, durable behind these events. `doubtful`: it may
    never have been done, or be lost, because something failed."""

    asked: int
    generation: int
    durable: int = NEVER
    doubtful: bool = False


@dataclass(slots=True)
class Request:
    """A write or zeroing of a row of sectors; `answered` and `durable` are positions in the log."""

    asked: int
    steps: list[Step]
    fua: bool
    answered: int = NEVER


@dataclass
class Kept:
    """An internal snapshot: it must be there from `taken` until `deleting`, and may be between the pairs. `content`: of
    each sector the generations that it may show, more than one where the guest was writing to it meanwhile."""

    content: list[list[int]]
    asked: int
    taken: int = NEVER
    deleting: int = NEVER

    def wrong(self, content: bytes) -> list[str]:
        """Sentences about sectors of the snapshot that are not as it was taken; the first few."""
        found = []
        for sector, generations in enumerate(self.content):
            data = content[sector * SECTOR : (sector + 1) * SECTOR]
            found += _unlike(sector, data, generations)
        return found[:8]


def _unlike(sector: int, data: bytes, generations: list[int]) -> list[str]:
    """A sentence where a sector shows none of these."""
    if any(data == pattern(sector, generation) for generation in reversed(generations)):
        return []
    may = " or ".join(told(pattern(sector, generation)) for generation in generations)
    return [f"sector {sector} shows {told(data)}, but may show {may}"]


def _up_to(steps: list[Step], under_way: set[int]) -> list[int]:
    """The newest generation that was surely answered, and the younger ones."""
    first = max(n for n, step in enumerate(steps) if id(step) not in under_way and not step.doubtful)
    return [step.generation for step in steps[first:]]


@dataclass(frozen=True, slots=True)
class Begun:
    """Where a bitmap began, or was cleared, and how many sectors the disk had."""

    position: int
    sectors: int


@dataclass
class History:
    """Built from a recording's marks. `initial`: what `variants.prepare` told."""

    initial: dict[str, list[int]]
    events: list[Event]

    def __post_init__(self) -> None:
        content = self.initial[""]
        self.sectors = [[Step(-1, generation, -1)] for generation in content]
        self.snapshots = {name: Kept([[one] for one in kept], -1, -1) for name, kept in self.initial.items() if name}
        self._length = len(content)
        self.lengths: list[tuple[int, int]] = []  # position from which a length may be, sectors
        self.lengths_done: list[tuple[int, int]] = [(-1, self._length)]
        self._first = Begun(0, self._length)
        self.bitmaps: dict[str, list[Begun]] = {}  # those that are there from the beginning only when they are cleared
        self._open: dict[int, tuple[dict[str, Any], int]] = {}
        self._requests: list[Request] = []
        self._by_number: dict[int, Request] = {}
        for position, event in enumerate(self.events):
            if event.kind == Kind.MARK:
                self._take(position, event.mark)

    def _take(self, position: int, mark: dict[str, Any]) -> None:
        if "ask" in mark:
            self._open[mark["ask"]] = (mark, position)
            getattr(self, f"_asked_{mark['verb']}")(position, mark)
        elif "failed" in mark:
            self._failed(mark["failed"])
        else:
            asked, since = self._open.pop(mark["answer"])
            getattr(self, f"_answered_{asked['verb']}")(position, asked, since)

    def _failed(self, number: int) -> None:
        """What was asked for may have been done in part; what waited for a close that failed may be lost."""
        asked, since = self._open.pop(number)
        if number in self._by_number:
            self._doubt([self._by_number.pop(number)])
        if asked["verb"] == "snapshot":
            self._may_have_kept(asked["name"], since)
        elif asked["verb"] == "close":
            self._doubt(self._requests)
            self._requests = []

    @staticmethod
    def _doubt(requests: list[Request]) -> None:
        for request in requests:
            for step in request.steps:
                step.doubtful = True

    # writing, zeroing

    def _change(self, position: int, number: int, first: int, generations: list[int], *, fua: bool) -> None:
        steps = [Step(position, generation) for generation in generations]
        while len(self.sectors) < first + len(steps):
            self.sectors.append([Step(-1, ZEROS, -1)])
        for n, step in enumerate(steps):
            self.sectors[first + n].append(step)
        self._by_number[number] = Request(position, steps, fua)

    def _done(self, position: int, number: int) -> None:
        request = self._by_number.pop(number)
        request.answered = position
        if request.fua:
            self._settle(request, position)
        else:
            self._requests.append(request)

    def _settle(self, request: Request, position: int) -> None:
        for step in request.steps:
            step.durable = position

    def _asked_write(self, position: int, mark: dict[str, Any]) -> None:
        generations = [mark["generation"]] * mark["count"]
        self._change(position, mark["ask"], mark["first"], generations, fua=bool(mark.get("fua")))

    def _answered_write(self, position: int, asked: dict[str, Any], _since: int) -> None:
        self._done(position, asked["ask"])

    _asked_zero, _answered_zero = _asked_write, _answered_write

    def _asked_flush(self, _position: int, _mark: dict[str, Any]) -> None:
        pass

    def _answered_flush(self, position: int, _asked: dict[str, Any], since: int) -> None:
        """What was answered before it was asked for is durable now."""
        for request in self._requests:
            if request.answered < since:
                self._settle(request, position)
        self._requests = [request for request in self._requests if request.answered >= since]

    # a move to another parent changes nothing that the guest sees

    _asked_close, _answered_close = _asked_move, _answered_move = _asked_flush, _answered_flush

    # length

    def _asked_resize(self, position: int, mark: dict[str, Any]) -> None:
        new, old = mark["sectors"], self._length
        self.lengths.append((position, new))
        self._length = new
        self._change(position, mark["ask"], min(old, new), [ZEROS] * max(0, old - new), fua=True)

    def _answered_resize(self, position: int, asked: dict[str, Any], _since: int) -> None:
        self.lengths_done.append((position, asked["sectors"]))
        self._done(position, asked["ask"])

    # snapshots

    def _asked_snapshot(self, position: int, mark: dict[str, Any]) -> None:
        """What is under way may be in it or not, and so may what is still to be asked for: see the answer."""
        under_way = {id(step) for request in self._by_number.values() for step in request.steps}
        content = [_up_to(self._steps(sector), under_way) for sector in range(self._length)]
        self.snapshots[mark["name"]] = Kept(content, position)

    def _answered_snapshot(self, position: int, asked: dict[str, Any], since: int) -> None:
        self.snapshots[asked["name"]].taken = position
        self._may_have_kept(asked["name"], since)
        self._answered_flush(position, asked, since)

    def _may_have_kept(self, name: str, since: int) -> None:
        """What was asked for since then, too."""
        for generations, steps in zip(self.snapshots[name].content, self.sectors, strict=False):
            generations += [step.generation for step in steps if step.asked > since]

    def _asked_apply(self, position: int, mark: dict[str, Any]) -> None:
        kept = self.snapshots[mark["name"]].content
        content = [generations[-1] for generations in kept]
        cut = [ZEROS] * max(0, self._length - len(content))
        self.lengths.append((position, len(content)))
        self._length = len(content)
        self._change(position, mark["ask"], 0, content + cut, fua=True)
        for sector, generations in enumerate(kept):
            self.sectors[sector] += [Step(position, other, doubtful=True) for other in generations[:-1]]

    def _answered_apply(self, position: int, asked: dict[str, Any], _since: int) -> None:
        self.lengths_done.append((position, self._length))
        self._done(position, asked["ask"])

    def _asked_delete(self, position: int, mark: dict[str, Any]) -> None:
        self.snapshots[mark["name"]].deleting = position

    def _answered_delete(self, _position: int, asked: dict[str, Any], _since: int) -> None:
        del asked

    # bitmaps

    def _asked_bitmap(self, position: int, mark: dict[str, Any]) -> None:
        """From here on it need not know of older changes."""
        self.bitmaps.setdefault(mark["name"], [self._first]).append(Begun(position, self._length))

    def _answered_bitmap(self, _position: int, _asked: dict[str, Any], _since: int) -> None:
        pass

    def clean(self, name: str, position: int, content: bytes) -> set[int]:
        """Sectors of a disk that a crash at `position` has left with this content, which may be clean in a bitmap that
        says it is true: those that show what they did when it began, and those that a shorter disk did not have."""
        begun = [begun for begun in self.bitmaps.get(name, [self._first]) if begun.position <= position][-1]
        shorter = [sectors for asked, sectors in self.lengths if begun.position < asked < position]
        end = min([begun.sectors, *shorter])
        return {
            sector
            for sector in range(len(content) // SECTOR)
            if sector >= end
            or not _unlike(sector, content[sector * SECTOR : (sector + 1) * SECTOR], self._at(sector, begun))
        }

    def _at(self, sector: int, begun: Begun) -> list[int]:
        """What it may have shown when the bitmap began: nobody had the disk open."""
        steps = self._steps(sector)
        return _up_to(steps[: bisect_left(steps, begun.position, key=lambda step: step.asked)] or steps[:1], set())

    # what may be

    def length_allowed(self, position: int) -> set[int]:
        """Sectors that the disk may have after a crash at `position`."""
        done = [at for at in self.lengths_done if at[0] < position][-1]
        later = {sectors for asked, sectors in self.lengths if done[0] < asked < position}
        return {done[1]} | later

    def allowed(self, sector: int, position: int) -> list[int]:
        """Generations that a sector may show, the newest last."""
        steps = self._steps(sector)
        upto = bisect_left(steps, position, key=lambda step: step.asked)
        first = max(n for n in range(upto) if steps[n].durable < position)
        return [step.generation for step in steps[first:upto]]

    def _steps(self, sector: int) -> list[Step]:
        """Zeros from the beginning where a longer disk was never written to."""
        return self.sectors[sector] if sector < len(self.sectors) else [Step(-1, ZEROS, -1)]

    def wrong(self, content: bytes, position: int) -> list[str]:
        """Sentences about sectors that show what they must not; the first few."""
        found = []
        for sector in range(len(content) // SECTOR):
            data = content[sector * SECTOR : (sector + 1) * SECTOR]
            found += _unlike(sector, data, self.allowed(sector, position))
        return found[:8]
