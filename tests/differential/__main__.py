"""The long mode: `python -m tests.differential --seconds N [--seed S]` compares the two paths until the time is over.

Each round is a fresh pair of units with its own seed, printed on disagreement so that the round can be run again alone.
"""

import argparse
import sys
import tempfile
import time
from collections import Counter
from itertools import count
from pathlib import Path
from random import Random

from tests.differential.configurations import CONFIGURATIONS
from tests.differential.twins import Disagreement, Twins

CASES = 2000


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.differential", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="how long to go on (default 60)")
    parser.add_argument("--seed", type=int, default=1, help="the first round's seed; the others follow it (default 1)")
    return parser.parse_args()


def main() -> int:
    arguments = _arguments()
    end = time.monotonic() + arguments.seconds
    fast: Counter[str] = Counter()
    slow: Counter[str] = Counter()
    for seed in count(arguments.seed):
        if time.monotonic() >= end:
            break
        configuration = CONFIGURATIONS[seed % len(CONFIGURATIONS)]
        with tempfile.TemporaryDirectory() as folder, Twins(Path(folder), configuration) as twins:
            try:
                twins.run_random(Random(seed), CASES)
            except Disagreement as disagreement:
                print(f"seed {seed}: {disagreement}", file=sys.stderr)
                return 1
            fast += twins.fast
            slow += twins.slow
    for name in sorted(fast | slow):
        print(f"{name:32} {fast[name]:8} fast {slow[name]:8} slow")
    print(f"{fast.total()} cases on the fast path, {slow.total()} on the slow, no disagreement")
    return 0


if __name__ == "__main__":
    sys.exit(main())
