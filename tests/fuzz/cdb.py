"""Fuzzes the SCSI model: python -m tests.fuzz.cdb [--seconds N] [--seed S] [--atheris] [--replay FILE...] [--keep]

A case is a string of bytes; it is read as decisions: which command of the table, which values in its fields, which bits
turned over, which nexus and unit, how much room, which event in between. So the same bytes can come from a seeded
generator (plain mode), from Atheris, which breeds them by the coverage they reach, or from fixtures/cdb.

    bytes --> Draws --> steps --> Target.execute --> Bench checks: a status, never an exception; data-in within the
                                                     allocation length and the room; well-formed sense data; the bytes
                                                     on every unit as the model says

A finding is minimised and written to fixtures/cdb, where the tests replay it ever after.
"""

import argparse
import hashlib
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from tests.fuzz.cdb_bench import Bench, attempt
from vstore.scsi.commands import COMMANDS

FIXTURES = Path(__file__).parents[2] / "fixtures" / "cdb"


def cases(seed: int) -> Iterator[bytes]:
    rng = random.Random(seed)
    while True:
        yield rng.randbytes(rng.randrange(16, 400))


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


def keep(data: bytes, prefix: str) -> Path:
    FIXTURES.mkdir(parents=True, exist_ok=True)
    path = FIXTURES / f"{prefix}-{hashlib.sha256(data).hexdigest()[:12]}"
    path.write_bytes(data)
    return path


def report(bench: Bench) -> str:
    """Coverage by command: how often it ended how."""
    rows = []
    names = [row.name for row in COMMANDS] + ["(not a command)"]
    for name in names:
        ends = {end: count for (of, end), count in bench.outcomes.items() if of == name}
        refused = ", ".join(f"{end} {count}" for end, count in sorted(ends.items()) if end != "GOOD")
        rows.append(f"{name:44}{sum(ends.values()):>9}  GOOD {ends.get('GOOD', 0):>8}  {refused}")
    return "\n".join(rows)


def found(data: bytes, error: Exception) -> int:
    print(f"finding: {type(error).__name__}: {error}", file=sys.stderr)
    kind = (type(error), str(error))

    def same(shorter: bytes) -> bool:
        other = attempt(Bench(), shorter)
        return other is not None and (type(other), str(other)) == kind

    path = keep(minimise(data, same), "finding")
    print(f"kept as {path}; see it with: python -m tests.fuzz.cdb --replay {path}", file=sys.stderr)
    return 1


def fuzz_plain(seconds: float, seed: int, *, grow: bool) -> int:
    bench = Bench()
    end = time.monotonic() + seconds
    ran = 0
    for data in cases(seed):
        if time.monotonic() >= end:
            break
        seen = len(bench.outcomes)
        error = attempt(bench, data)
        if error:
            return found(data, error)
        if grow and len(bench.outcomes) > seen:
            keep(data, "case")
        ran += 1
    print(report(bench))
    print(f"{ran} cases, {sum(bench.outcomes.values())} commands, seed {seed}: no finding")
    return 0


def fuzz_atheris(seconds: float, seed: int) -> int:
    """In a process of its own: Atheris must see vstore.scsi being imported, and libFuzzer ends the process."""
    with tempfile.TemporaryDirectory(prefix="vstore-cdb-") as directory:
        arguments = [sys.executable, "-m", "tests.fuzz.cdb_atheris", f"{seconds:.0f}", str(seed), directory]
        status = subprocess.run(arguments, check=False).returncode
        told = Path(directory, "report")
        print(told.read_text() if told.exists() else "no case was run")
    return status


def replay(files: Iterable[Path]) -> int:
    bench = Bench(explain=print)
    for file in files:
        print(f"{file}:")
        error = attempt(bench, file.read_bytes())
        if error:
            print(f"finding: {type(error).__name__}: {error}")
            return 1
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.cdb", description="Fuzzes the SCSI model with CDBs.")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--atheris", action="store_true", help="breed cases by the coverage they reach")
    parser.add_argument(
        "--keep", action="store_true", help="keep cases with a new outcome in fixtures/cdb (plain mode)"
    )
    parser.add_argument("--replay", type=Path, nargs="+", metavar="FILE", help="run these cases and print every step")
    options = parser.parse_args()
    if options.replay:
        return replay(options.replay)
    if options.atheris:
        return fuzz_atheris(options.seconds, options.seed)
    return fuzz_plain(options.seconds, options.seed, grow=options.keep)


if __name__ == "__main__":
    sys.exit(main())
