"""`make bench`: every row of a table, both sides in turn, several times; prints and keeps the table.

    for each repeat
        for each distinct (side, subject, load) of the rows
            vstore, then the peer; in the next repeat the peer, then vstore

Front-end on core 0, target on core 1. Each measurement has a fresh target process, so that no side pays for the other,
and a fresh image where the load uses it up.
"""

import argparse
import contextlib
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.bench import measure
from tests.bench.report import Line, finish, keep, machine, markdown
from tests.bench.rows import TABLES, Load, Quantity, Row, Side
from tests.bench.subjects import MIB, Place, Subject
from tests.bench.targets import running

Key = tuple[Side, Subject, Load | None]
Samples = dict[Key, list[measure.Sample]]

PARENTS = {Place.TMPFS: "/dev/shm", Place.DISK: "/var/tmp", Place.NOWHERE: "/dev/shm"}


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__.splitlines()[0])
    parser.add_argument("--table", choices=list(TABLES), help="one table only (all, one after the other)")
    parser.add_argument("--rows", default="", metavar="N,N", help="numbers of rows of the table to measure (all)")
    parser.add_argument("--repeats", type=int, default=4, help="measurements of each side (4)")
    parser.add_argument("--seconds", type=float, default=1, help="length of a measurement (1)")
    parser.add_argument("--idle-seconds", type=float, default=10, help="length of the idle measurement (10)")
    parser.add_argument("--size", type=int, default=1024, metavar="MIB", help="length of the disk (1024)")
    parser.add_argument("--only", choices=[side.value for side in Side], help="one side: nothing is compared or kept")
    parser.add_argument("--list", action="store_true", help="say the rows and end")
    arguments = parser.parse_args()
    if arguments.rows and not arguments.table:
        parser.error("--rows counts within a table: say which with --table")
    return arguments


class Images:
    """The image of each subject: made when it is first needed, and again for each measurement if that uses it up."""

    def __init__(self, length: int) -> None:
        self._length = length
        self._folders: dict[Subject, Path] = {}
        self._made: dict[Subject, Path] = {}

    def length(self, subject: Subject) -> int:
        return subject.length or self._length

    def path(self, subject: Subject) -> Path | None:
        """None: the subject has no file."""
        if subject.make is None:
            return None
        folder = self._folders.get(subject)
        if folder is None:
            folder = self._folders[subject] = Path(tempfile.mkdtemp(prefix="bench-", dir=PARENTS[subject.place]))
        if subject.fresh or subject not in self._made:
            self._made[subject] = subject.make(folder, self.length(subject))
        return self._made[subject]

    def drop(self, subject: Subject) -> None:
        """Gives the space of one back."""
        self._made.pop(subject, None)
        folder = self._folders.pop(subject, None)
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)

    def close(self) -> None:
        for subject in list(self._folders):
            self.drop(subject)


def keys_of(row: Row) -> list[Key]:
    """What has to be measured for this row, its own first; rows with the same key share the measurement."""
    load = None if row.quantity is Quantity.IDLE_CPU else row.load
    own = (row.measured, row.vstore, load)
    return [own] if row.against is None else [own, (row.side, row.against, load)]


def plan(rows: list[Row], repeat: int) -> Iterator[Key]:
    """Sides take turns: who was first is second in the next repeat."""
    return iter(dict.fromkeys(key for row in rows for key in keys_of(row)[:: -1 if repeat % 2 else 1]))


def sample(key: Key, images: Images, arguments: argparse.Namespace) -> measure.Sample:
    side, subject, load = key
    image = images.path(subject)
    with (
        tempfile.TemporaryDirectory(dir="/dev/shm") as folder,
        running(side, subject, image, images.length(subject), Path(folder)) as backend,
    ):
        if load is None:
            return measure.idle(backend, arguments.idle_seconds)
        return measure.under_load(backend, load, arguments.seconds)


def line(row: Row, samples: Samples) -> Line:
    groups = [samples[key] for key in keys_of(row)]
    values = [[each.values[row.quantity] for each in group] for group in groups] + [[]]
    return finish(row, values[0], values[1], max(each.disturbance for group in groups for each in group))


def batches(rows: list[Row]) -> Iterator[list[Row]]:
    """Rows that share subjects, measured together, so that no more images lie about than these need."""
    left = list(rows)
    while left:
        batch, subjects = [left.pop(0)], set[Subject]()
        while True:
            subjects |= {key[1] for row in batch for key in keys_of(row)}
            joined = [row for row in left if any(key[1] in subjects for key in keys_of(row))]
            if not joined:
                break
            batch += joined
            left = [row for row in left if row not in joined]
        yield batch


def gather(rows: list[Row], arguments: argparse.Namespace) -> Samples:
    """Measures every key in each repeat, and says each number as it comes."""
    samples: Samples = {}
    with contextlib.closing(Images(arguments.size * MIB)) as images:
        for batch in batches(rows):
            for repeat in range(arguments.repeats):
                for key in plan(batch, repeat):
                    if arguments.only not in (None, key[0].value):
                        continue
                    samples.setdefault(key, []).append(sample(key, images, arguments))
                    say(f"[{repeat + 1}/{arguments.repeats}]", key, samples[key][-1])
            for subject in {key[1] for row in batch for key in keys_of(row)}:
                images.drop(subject)
    return samples


def say(count: str, key: Key, latest: measure.Sample) -> None:
    side, subject, load = key
    values = ", ".join(f"{value:,.2f} {quantity.value}" for quantity, value in latest.values.items())
    print(f"{count} {side.value:6} {subject}: {load or 'idle'}: {values}", file=sys.stderr, flush=True)


def conditions(lines: list[Line], arguments: argparse.Namespace) -> dict[str, str]:
    return machine() | {
        "each measurement": f"{arguments.seconds:g} s after 1 s of running in, or so many requests as the row says; "
        f"{arguments.repeats} repeats",
        "disk": f"{arguments.size} MiB where the row says nothing else, written, in the page cache",
        "cores": "front-end on 0, target on 1",
        "disturbance": f"others used at most {max(each.disturbance for each in lines):.2f} cores meanwhile",
    }


def run(table: str, arguments: argparse.Namespace) -> bool:
    """Whether every row reached its bar."""
    numbers = [int(n) - 1 for n in arguments.rows.split(",")] if arguments.rows else range(len(TABLES[table]))
    rows = [TABLES[table][n] for n in numbers]
    samples = gather(rows, arguments)
    if arguments.only:
        return True
    lines = [line(row, samples) for row in rows]
    about = conditions(lines, arguments)
    print(markdown(lines, about))
    print(f"kept as {keep(table, lines, about)}")
    return all(each.reached for each in lines)


def main() -> int:
    arguments = options()
    tables = [arguments.table] if arguments.table else list(TABLES)
    if arguments.list:
        for table in tables:
            print("\n".join([f"{table}:", *(f"{number:3} {row}" for number, row in enumerate(TABLES[table], 1))]))
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # an exception, so that images and targets are cleared away
    reached = [run(table, arguments) for table in tables]  # all of them, also after one that missed
    return 0 if all(reached) else 1


if __name__ == "__main__":
    sys.exit(main())
