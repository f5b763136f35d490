"""Case: a seed, the recipe and the operations that it gives, run to the end; and a failing run made small.

What fails may also crash or hang, so the runs that make it small are processes of their own.
"""

import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from formats.errors import ImageError
from tests.copy_on_write import operations, recipe
from tests.copy_on_write.doing import do
from tests.copy_on_write.operations import Operation
from tests.copy_on_write.recipe import Recipe
from tests.copy_on_write.world import Disagreement, World
from vstore.transfer.offline import Refused

OPERATIONS = 120
SECONDS = 60  # that one run may take


@dataclass(frozen=True)
class Case:
    """The same seed gives the same case."""

    seed: int
    recipe: Recipe
    operations: tuple[Operation, ...]

    def run(self, keep: Sequence[int] | None = None) -> Counter[str]:
        """How often each kind was done. `keep`: only the operations of these numbers. Raises Disagreement."""
        numbers = range(len(self.operations)) if keep is None else keep
        number = -1
        try:
            with tempfile.TemporaryDirectory(prefix="vstore-") as folder, World(self.recipe, Path(folder)) as world:
                for number in numbers:
                    do(world, self.operations[number])
                world.check()
                world.close()
                return world.done
        except (AssertionError, ImageError, OSError, Refused) as error:
            what = f"operation {number}, {self.operations[number]}" if number >= 0 else "making it"
            raise Disagreement(f"{what}: {type(error).__name__}: {error}") from error

    def told(self, keep: Sequence[int]) -> str:
        """What one needs to look for the cause."""
        steps = "\n".join(f"{number:4} {self.operations[number]}" for number in keep)
        return f"{self.recipe}\n{steps}\n{replay(self.seed, keep)}"


def draw(seed: int, count: int = OPERATIONS) -> Case:
    source = random.Random(seed)
    chain = recipe.draw(source)
    return Case(seed, chain, tuple(operations.draw(source, chain, count)))


def replay(seed: int, keep: Sequence[int]) -> str:
    """The command that runs these operations of a case again."""
    return f"python -m tests.copy_on_write --seed {seed} --keep {','.join(map(str, keep)) or 'none'}"


def smallest(case: Case, *, seconds: float) -> list[int]:
    """Numbers of as few operations of a failing case as are found in some time that still fail."""
    end = time.monotonic() + seconds
    kept = list(range(len(case.operations)))
    width = len(kept) // 2
    while width:
        at = 0
        while at < len(kept) and time.monotonic() < end:
            fewer = kept[:at] + kept[at + width :]
            if fails(case.seed, fewer):
                kept = fewer
            else:
                at += width
        width //= 2
    return kept


def fails(seed: int, keep: Sequence[int]) -> bool:
    command = [sys.executable, *replay(seed, keep).split()[1:], "--quiet"]
    try:
        code = subprocess.run(command, capture_output=True, timeout=SECONDS, check=False).returncode
        return code == 1 or code < 0
    except subprocess.TimeoutExpired:
        return True
