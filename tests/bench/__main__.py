"""`make bench`: every row, both sides in turn, several times; prints and keeps the table.

    for each repeat
        for each distinct (medium, load) of the rows
            vstore, then the peer; in the next repeat the peer, then vstore

Front-end on core 0, target on core 1. Each measurement has a fresh target process, so that no side pays for the other.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.bench import measure
from tests.bench.report import Line, finish, keep, machine, markdown
from tests.bench.rows import ROWS, Load, Medium, Quantity, Row
from tests.bench.targets import Files, running

Key = tuple[str, Medium, Load | None]
Samples = dict[Key, list[measure.Sample]]


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__.splitlines()[0])
    parser.add_argument("--rows", default="", metavar="N,N", help="numbers of rows to measure (all)")
    parser.add_argument("--repeats", type=int, default=5, help="measurements of each side (5)")
    parser.add_argument("--seconds", type=float, default=3, help="length of a measurement (3)")
    parser.add_argument("--idle-seconds", type=float, default=10, help="length of the idle measurement (10)")
    parser.add_argument("--size", type=int, default=1024, metavar="MIB", help="length of the disk (1024)")
    parser.add_argument("--only", choices=["vstore", "peer"], help="one side only: nothing is compared or kept")
    parser.add_argument("--list", action="store_true", help="say the rows and end")
    return parser.parse_args()


def written_file(path: Path, length: int) -> Path:
    """A raw file without holes, its bytes in the page cache."""
    piece = bytes(range(1, 256)) * 4112
    with path.open("wb") as file:
        while (left := length - file.tell()) > 0:
            file.write(piece[:left])
    return path


def keys_of(row: Row, side: str) -> Key | None:
    """What has to be measured for this row on this side; rows with the same key share the measurement."""
    medium = row.vstore if side == "vstore" else row.peer
    if medium is None:
        return None
    return side, medium, None if row.quantity is Quantity.IDLE_CPU else row.load


def plan(rows: list[Row], repeat: int) -> Iterator[Key]:
    sides = ("vstore", "peer") if repeat % 2 == 0 else ("peer", "vstore")
    wanted = [keys_of(row, side) for row in rows for side in sides]
    return iter(dict.fromkeys(key for key in wanted if key))


def sample(key: Key, files: Files, folder: Path, arguments: argparse.Namespace) -> measure.Sample:
    side, medium, load = key
    with running(side, medium, files, folder) as backend:
        if load is None:
            return measure.idle(backend, arguments.idle_seconds)
        return measure.under_load(backend, load, arguments.seconds)


def line(row: Row, samples: Samples) -> Line:
    ours, theirs = (samples[key] if (key := keys_of(row, side)) else [] for side in ("vstore", "peer"))
    values = [[each.values[row.quantity] for each in some] for some in (ours, theirs)]
    return finish(row, values[0], values[1], max(each.disturbance for each in ours + theirs))


def gather(rows: list[Row], files: Files, folder: Path, arguments: argparse.Namespace) -> Samples:
    """Measures every key in each repeat, and says each number as it comes."""
    samples: Samples = {}
    for repeat in range(arguments.repeats):
        for key in plan(rows, repeat):
            side, medium, load = key
            if arguments.only not in (None, side):
                continue
            samples.setdefault(key, []).append(sample(key, files, folder, arguments))
            latest = ", ".join(f"{value:,.2f} {quantity.value}" for quantity, value in samples[key][-1].values.items())
            about = f"[{repeat + 1}/{arguments.repeats}] {side:6} {medium.value}: {load or 'idle'}"
            print(f"{about}: {latest}", file=sys.stderr, flush=True)
    return samples


def conditions(lines: list[Line], arguments: argparse.Namespace) -> dict[str, str]:
    return machine() | {
        "each measurement": f"{arguments.seconds:g} s after 1 s of running in, {arguments.repeats} repeats",
        "disk": f"{arguments.size} MiB, written, in the page cache",
        "cores": "front-end on 0, target on 1",
        "disturbance": f"others used at most {max(each.disturbance for each in lines):.2f} cores meanwhile",
    }


def main() -> int:
    arguments = options()
    rows = [ROWS[int(n) - 1] for n in arguments.rows.split(",")] if arguments.rows else list(ROWS)
    if arguments.list:
        print("\n".join(f"{number:2} {row}" for number, row in enumerate(ROWS, 1)))
        return 0
    with tempfile.TemporaryDirectory(dir="/dev/shm") as memory, tempfile.TemporaryDirectory(dir="/var/tmp") as disk:
        length = arguments.size << 20
        used = {medium for row in rows for medium in (row.vstore, row.peer)}
        folders = {Medium.TMPFS: memory, Medium.DISK: disk}
        files = Files({m: written_file(Path(f, "disk.raw"), length) for m, f in folders.items() if m in used}, length)
        samples = gather(rows, files, Path(memory), arguments)
    if arguments.only:
        return 0
    lines = [line(row, samples) for row in rows]
    about = conditions(lines, arguments)
    print(markdown(lines, about))
    print(f"kept as {keep(lines, about)}")
    return 0 if all(each.reached for each in lines) else 1


if __name__ == "__main__":
    sys.exit(main())
