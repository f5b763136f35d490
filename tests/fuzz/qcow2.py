"""Fuzzes the qcow2 images that vstore opens, reads, writes, checks and repairs: python -m tests.fuzz.qcow2.

    base (qemu-img) --damage--> image --session in a child--> only clear errors, in bounded time and memory
                                       `--qemu-img check--> an image that took writes is no worse than before,
                                                            one that a repair calls whole is whole

A finding is kept under fixtures/images/damaged as text: the base, and what was written over it. Replay it with
--replay FILE.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.fuzz import qcow2_bases, qcow2_session
from tests.fuzz.qcow2_bases import BASES, IMAGE
from tests.fuzz.qcow2_layout import Layout
from tests.fuzz.qcow2_mutations import Damage, Mutator, parse

KEPT = Path(__file__).parents[2] / "fixtures" / "images" / "damaged"
SAMPLED = 4  # one of so many cases is held against qemu-img
TRIES = 3  # of a case before it is said to take too long: what else runs may have changed in the midst of one

_PHASES = ("look", "change", "repair")
_AMBIGUOUS = {"header", "L1 table", "snapshot L1 table"}  # by them data becomes a table, and a table data


class FindingError(Exception):
    """Something that no image may do."""


class Bench:
    """The bases, in a folder of their own, and a folder for each phase of the case that runs."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._bases: dict[str, bytes] = {}
        self.counts: Counter[str] = Counter()

    def base(self, name: str) -> bytes:
        """The bytes of a base; what lies beside it is made once, too."""
        if name not in self._bases:
            folder = self._folder / name
            folder.mkdir()
            self._bases[name] = qcow2_bases.make(name, folder).read_bytes()
        return self._bases[name]

    def run(self, damage: Damage, *, seed: int, sampled: bool) -> None:
        """Raises FindingError."""
        for _ in range(TRIES):
            paths = self._lay_out(damage)
            before = corruptions(paths[1]) if sampled else None
            told = qcow2_session.run(paths, seed, keeps=not self._kinds(damage) & _AMBIGUOUS)
            if not told.slow:
                break
        self.counts["wrote" if told.wrote else "refused"] += 1
        self.counts["repaired"] += told.repaired
        if told.finding:
            raise FindingError(told.finding)
        if sampled and told.wrote and before is not None:
            after = corruptions(paths[1])
            if after is None or (after and not before):  # what is named twice goes wrong in more ways by every write
                raise FindingError(f"it had {before} corruptions for qemu-img before it was written to, then {after}")
        if sampled and told.repaired and corruptions(paths[2]) not in (0, None):
            raise FindingError("it is called whole after a repair, and qemu-img finds corruptions")

    def _lay_out(self, damage: Damage) -> list[Path]:
        data = damage.apply(self.base(damage.base))
        return [self._place(damage, phase, data) for phase in _PHASES]

    def _kinds(self, damage: Damage) -> set[str]:
        layout = Layout(self.base(damage.base))
        return set().union(*(layout.kinds_at(offset) for offset, _ in damage.patches))

    def _place(self, damage: Damage, phase: str, data: bytes) -> Path:
        """A copy of the damaged image, with what its base has beside it, if anything."""
        folder = self._folder / damage.base / phase
        folder.mkdir(exist_ok=True)
        for other in (self._folder / damage.base).iterdir():
            if other.is_file() and other.name != IMAGE:
                shutil.copy(other, folder)
        path = folder / IMAGE
        path.write_bytes(data)
        if damage.length is not None:
            os.truncate(path, damage.length)
        return path


def corruptions(path: Path) -> int | None:
    """What qemu-img counts; None where it refuses the image, or takes too long over it."""
    command = ["qemu-img", "check", "-f", "qcow2", "--output=json", path.name]
    try:
        done = subprocess.run(command, capture_output=True, timeout=10, check=False, cwd=path.parent)
    except subprocess.TimeoutExpired:
        return None
    if done.returncode not in (0, 2, 3):
        return None
    told = json.loads(done.stdout)
    return None if told["check-errors"] else int(told.get("corruptions", 0))


def generate(seconds: float, seed: int) -> str:
    """Seeded cases for some time; what they came to. Raises FindingError, after the case was kept."""
    end, cases = time.monotonic() + seconds, 0
    with tempfile.TemporaryDirectory(prefix="vstore-") as folder:
        bench = Bench(Path(folder))
        mutators = [Mutator(name, bench.base(name)) for name in BASES]
        while time.monotonic() < end:
            source = random.Random(f"{seed}-{cases}")
            damage = source.choice(mutators).draw(source)
            try:
                bench.run(damage, seed=cases, sampled=cases % SAMPLED == 0)
            except FindingError as error:
                raise FindingError(f"case {cases} of seed {seed}, kept as {keep(damage, cases)}: {error}") from error
            cases += 1
    return f"{cases} images from seed {seed}, no finding: {dict(bench.counts)}"


def keep(damage: Damage, seed: int) -> Path:
    KEPT.mkdir(parents=True, exist_ok=True)
    path = KEPT / hashlib.sha256(str(damage).encode()).hexdigest()[:16]
    path.write_text(f"# session {seed}\n{damage}")
    return path


def replay(paths: list[Path]) -> None:
    """Raises FindingError."""
    with tempfile.TemporaryDirectory(prefix="vstore-") as folder:
        bench = Bench(Path(folder))
        for path in paths:
            text = path.read_text()
            try:
                bench.run(parse(text), seed=_session(text), sampled=True)
            except FindingError as error:
                raise FindingError(f"{path.name}: {error}") from error


def _session(text: str) -> int:
    """The seed of what was done to the image."""
    return next((int(line.split()[2]) for line in text.splitlines() if line.startswith("# session ")), 0)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.qcow2", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--replay", type=Path, nargs="+", metavar="FILE")
    options = parser.parse_args()
    try:
        if options.replay:
            replay(options.replay)
            print(f"{len(options.replay)} images replayed, no finding")
        else:
            print(generate(options.seconds, options.seed))
    except FindingError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
