"""What the files may hold if power fails: at each position every change before it is there, not there, or torn.

    events  0    1    2    3  |  4    5    6                  durable: what a barrier of the same file stands behind
            w    w    w    barrier    w    w    w  <- crash   pending: 4 5 6, each of which may have arrived or not

    draw 0   all pending changes have arrived (the prefix)
    draw 1   none has
    then     for each of them: all but this one; then for each: this one alone; then for each: this one torn
    then     by a seed: half of them, those before or behind one, one of them torn, or anything

What has arrived is applied in order, because the page cache never lets an older byte replace a younger one. Where a
barrier failed, what was pending may be lost for good: the kernel tells of that once, and no later one brings it back.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from tests.crash.recording import SECTOR, Event, Kind, Recording

Files = dict[str, bytes]


@dataclass(frozen=True)
class State:
    """One crash: after so many events, with this subset of what was pending."""

    position: int
    draw: int
    files: Files

    @property
    def name(self) -> str:
        return f"{self.position}.{self.draw}"


@dataclass(slots=True)
class Waiting:
    """A change behind the last barrier, or behind one that cannot be made durable any more."""

    change: Event
    doomed: bool = False
    settled: bool = False


class Replay:
    """Walks through a recording; `advance` takes one event in."""

    def __init__(self, recording: Recording) -> None:
        self._events = recording.events
        self._durable = {name: bytearray(content) for name, content in recording.before.items()}
        self._pending: dict[str, list[Waiting]] = {name: [] for name in recording.before}
        self.position = 0

    def advance(self) -> Event:
        event = self._events[self.position]
        self.position += 1
        if event.kind == Kind.FILE and event.file not in self._durable:
            self._durable[event.file], self._pending[event.file] = bytearray(), []
        elif event.kind == Kind.BARRIER:
            self._settle(event.file)
        elif event.failed_barrier:
            for waiting in self._pending[event.file]:
                waiting.doomed = True
        elif event.changes:
            self._pending[event.file].append(Waiting(event))
        return event

    def _settle(self, file: str) -> None:
        row = self._pending[file]
        for waiting in row:
            waiting.settled = not waiting.doomed
        first = next((n for n, waiting in enumerate(row) if not waiting.settled), len(row))
        for waiting in row[:first]:
            waiting.change.apply(self._durable[file])
        del row[:first]

    @property
    def pending(self) -> int:
        """Changes that no barrier has made durable."""
        return sum(not waiting.settled for row in self._pending.values() for waiting in row)

    def switching(self) -> tuple[list[int], list[int]]:
        """Draws that part a pending write of a header from the others, and those that tear it."""
        pending = [waiting.change for row in self._pending.values() for waiting in row if not waiting.settled]
        headers = [n for n, change in enumerate(pending) if change.kind == Kind.WRITE and not change.offset]
        count = len(pending)
        torn = [2 + way * count + n for way in range(2, 2 + TEARS) for n in headers if pending[n].length > SECTOR]
        return list(range(2, 2 + 2 * count)) if headers else [], torn

    def state(self, draw: int) -> State:
        """The files after a crash now."""
        seeded = random.Random(f"{self.position}.{draw}")
        fates = _fates(self.pending, draw, seeded)
        files = {}
        for name, durable in self._durable.items():
            content = bytearray(durable)
            for waiting in self._pending[name]:
                fate = ALL if waiting.settled else next(fates)
                if waiting.change.durable or fate == ALL:
                    waiting.change.apply(content)
                elif fate == TORN:
                    _tear(waiting.change, content, seeded)
            files[name] = bytes(content)
        return State(self.position, draw, files)


NONE, ALL, TORN = range(3)
TEARS = 4  # ways in which each change is torn


def _fates(count: int, draw: int, seeded: random.Random) -> Iterator[int]:
    """What becomes of each of `count` pending changes."""
    if draw < 2 or not count:
        return iter([NONE if draw else ALL] * count)
    if draw < 2 + count:
        return iter([NONE if n == draw - 2 else ALL for n in range(count)])
    if draw < 2 + 2 * count:
        return iter([ALL if n == draw - 2 - count else NONE for n in range(count)])
    if draw < 2 + (2 + TEARS) * count:
        return iter([TORN if n == (draw - 2) % count else ALL for n in range(count)])
    one = seeded.randrange(count)
    ways = (
        lambda: [seeded.choice((NONE, ALL)) for _ in range(count)],
        lambda: [ALL if n < one else NONE for n in range(count)],
        lambda: [ALL if n >= one else NONE for n in range(count)],
        lambda: [TORN if n == one else NONE for n in range(count)],
        lambda: [seeded.choice((NONE, ALL, TORN)) for _ in range(count)],
    )
    return iter(seeded.choice(ways)())


def _tear(change: Event, content: bytearray, seeded: random.Random) -> None:
    """Some sectors, or pages, of it have arrived."""
    unit = seeded.choice((512, 4096))
    change.apply(content, unit, [seeded.random() < 0.5 for _ in range(61)])


def states(recording: Recording, most: int, seed: object) -> Iterator[State]:
    """At most `most` crash states, all different, in the order of their positions."""
    plan = _plan(recording, most, random.Random(f"{seed}"))
    replay, seen = Replay(recording), set[int]()
    for position in range(len(recording.events) + 1):
        for draw in sorted(plan.get(position, ())):
            state = replay.state(draw)
            print_of_it = hash(tuple(sorted(state.files.items())))
            if print_of_it not in seen:
                seen.add(print_of_it)
                yield state
        if position < len(recording.events) and replay.advance().answers:
            seen.clear()  # the same files may not be enough any more


Draw = tuple[int, int]  # position, number


@dataclass
class Pools:
    """What states are drawn from. Right before a barrier everything since the one before is pending, so all that may
    be lost on the way there may also be lost there; so it is before one that fails, and at the end."""

    prefixes: list[Draw]
    promises: list[Draw]  # right behind answers that promise something, with nothing of what is pending
    subsets: list[Draw]
    switches: list[Draw]  # that part a pending header, which switches from old to new, from the others
    tears: list[Draw]  # that tear it

    @classmethod
    def of(cls, recording: Recording) -> "Pools":
        replay, pools = Replay(recording), cls([(0, 0)], [(at, 1) for at in _promises(recording)], [], [], [])
        for event in [*recording.events, None]:
            if event is None or event.kind == Kind.BARRIER or event.failed_barrier:
                pools._add_subsets(replay)
            if event is not None:
                replay.advance()
                if event.changes or event.answers:
                    pools.prefixes.append((replay.position, 0))
        return pools

    def _add_subsets(self, replay: Replay) -> None:
        draws = 2 + (3 + TEARS) * replay.pending
        self.subsets += [(replay.position, draw) for draw in range(1, draws)]
        parted, torn = replay.switching()
        self.switches += [(replay.position, draw) for draw in parted]
        self.tears += [(replay.position, draw) for draw in torn]


def _plan(recording: Recording, most: int, seeded: random.Random) -> dict[int, list[int]]:
    """Draws for each position: a third of them prefixes, if there are as many, a sixth promises, up to a third those of
    headers, and the rest subsets."""
    pools = Pools.of(recording)
    some = min(len(pools.prefixes), max(most // 3, most - len(pools.subsets)))
    told = min(len(pools.promises), (most - some) // 4)
    switching = [*_shuffled(pools.tears, seeded), *_shuffled(pools.switches, seeded)][: (most - some - told) // 2]
    rest = min(len(pools.subsets), most - some - told - len(switching))
    picked = seeded.sample(pools.prefixes, some) + seeded.sample(pools.promises, told) + switching
    plan: dict[int, list[int]] = {}
    for position, draw in picked + seeded.sample(pools.subsets, rest):
        plan.setdefault(position, []).append(draw)
    return plan


def _shuffled(draws: list[Draw], seeded: random.Random) -> list[Draw]:
    return seeded.sample(draws, len(draws))


def _promises(recording: Recording) -> Iterator[int]:
    """Positions right behind answers to more than a plain write: what they made durable needs nothing that comes."""
    waiting = set[int]()
    for position, event in enumerate(recording.events):
        words = event.mark if event.kind == Kind.MARK else {}
        if "ask" in words and (words["verb"] not in ("write", "zero") or words.get("fua")):
            waiting.add(words["ask"])
        elif words.get("answer") in waiting:
            yield position + 1


def at(recording: Recording, name: str) -> State:
    """The state of this name, as `State.name` told it."""
    position, draw = map(int, name.split("."))
    replay = Replay(recording)
    while replay.position < position:
        replay.advance()
    return replay.state(draw)
