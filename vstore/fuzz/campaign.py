"""A campaign: cases from seeds, run until the time or the number of commands is reached, or one breaks a rule.

    seed, seed + 1, ... --> a process each --> Ran: how often each command ended how; the finding, minimised
                                                |
                              cases that ended a command in a new way are kept where that is wanted

Stopping early is the rule: the first finding ends its process, and its case is made as short as it can be.
"""

import hashlib
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from vstore.fuzz.bench import Bench, attempt
from vstore.scsi.commands import COMMANDS

NO_COMMAND = "(not a command)"
_OF_A_COMMAND = ("GOOD", "CONDITION MET")


@dataclass(frozen=True)
class Budget:
    """When to stop, whichever comes first. None: no limit."""

    seconds: float | None
    commands: int | None = None


@dataclass
class Ran:
    """What a campaign did. `outcomes`: (name of the command, how it ended) -> how often."""

    cases: int = 0
    outcomes: "Counter[tuple[str, str]]" = field(default_factory=Counter)
    finding: "Finding | None" = None

    @property
    def commands(self) -> int:
        return self.outcomes.total()


@dataclass(frozen=True)
class Finding:
    """A minimised case, and the rule that it breaks."""

    data: bytes
    error: str


def drawn(seed: int) -> Iterator[bytes]:
    """Cases from a seed, without end."""
    rng = random.Random(seed)
    while True:
        yield rng.randbytes(rng.randrange(16, 400))


def run(seed: int, budget: Budget, fresh: Callable[[bytes], object] = lambda _: None) -> Ran:
    """Cases from one seed. `fresh` is told of each that ended a command in a new way."""
    bench, ran = Bench(), Ran()
    ran.outcomes = bench.outcomes
    end = time.monotonic() + (budget.seconds if budget.seconds is not None else float("inf"))
    for data in drawn(seed):
        if time.monotonic() >= end or (budget.commands is not None and ran.commands >= budget.commands):
            break
        ways = len(bench.outcomes)
        if error := attempt(bench, data):
            ran.finding = examine(data, error)
            break
        if len(bench.outcomes) > ways:
            fresh(data)
        ran.cases += 1
    return ran


def run_parallel(seed: int, budget: Budget, jobs: int) -> Ran:
    """Consecutive seeds, a process each; the commands are shared out among them."""
    share = Budget(budget.seconds, None if budget.commands is None else -(-budget.commands // jobs))
    whole = Ran()
    with ProcessPoolExecutor(jobs) as pool:
        for ran in pool.map(run, range(seed, seed + jobs), [share] * jobs):
            whole.cases += ran.cases
            whole.outcomes += ran.outcomes
            whole.finding = whole.finding or ran.finding
    return whole


def replay(files: Iterable[Path], explain: Callable[[str], None]) -> Finding | None:
    """Runs kept cases, and tells of every step."""
    bench = Bench(explain=explain)
    for file in files:
        explain(f"{file}:")
        data = file.read_bytes()
        if error := attempt(bench, data):
            return Finding(data, _told(error))
    return None


# ---- findings --------------------------------------------------------------------------------------------


def examine(data: bytes, error: Exception) -> Finding:
    """The shortest case that breaks the same rule."""
    kind = (type(error), str(error))

    def same(shorter: bytes) -> bool:
        other = attempt(Bench(), shorter)
        return other is not None and (type(other), str(other)) == kind

    return Finding(minimise(data, same), _told(error))


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def minimise(data: bytes, same: Callable[[bytes], bool]) -> bytes:
    """Leaves out whatever can be left out, then zeroes whatever can be zero."""
    size = len(data) // 2
    while size:
        at = 0
        while at < len(data):
            shorter = data[:at] + data[at + size :]
            if same(shorter):
                data = shorter
            else:
                at += size
        size //= 2
    for at in range(len(data)):
        zeroed = data[:at] + b"\0" + data[at + 1 :]
        if zeroed != data and same(zeroed):
            data = zeroed
    return data


def keep(directory: Path, data: bytes, kind: str) -> Path:
    """Makes a file of a case, whose name says what it is of: `finding`, `case`. OSError."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{kind}-{hashlib.sha256(data).hexdigest()[:12]}"
    path.write_bytes(data)
    return path


# ---- report ----------------------------------------------------------------------------------------------


def report(outcomes: "Counter[tuple[str, str]]") -> str:
    """Coverage by command: how often it was sent, ended well, and was refused with which sense (key/ASC/ASCQ)."""
    width = max(len(row.name) for row in COMMANDS) + 2
    lines = []
    for name, ends in by_command(outcomes).items():
        well = sum(ends.get(end, 0) for end in _OF_A_COMMAND)
        refused = ", ".join(f"{end} {count}" for end, count in sorted(ends.items()) if end not in _OF_A_COMMAND)
        lines.append(f"{name:{width}}{sum(ends.values()):>9}  ended well {well:>8}  {refused}")
    return "\n".join(lines)


def by_command(outcomes: "Counter[tuple[str, str]]") -> dict[str, dict[str, int]]:
    """Every command of the table, in its order, also those that were never sent."""
    told: dict[str, dict[str, int]] = {name: {} for name in (*(row.name for row in COMMANDS), NO_COMMAND)}
    for (name, end), count in outcomes.items():
        told[name][end] = count
    return told
