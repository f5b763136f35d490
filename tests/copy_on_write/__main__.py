"""The long form: `python -m tests.copy_on_write` does random operations on random image chains, 20,000 and more.

Each case has its own seed, which is printed on failure with as few of its operations as still fail, and the command
that does just these again.
"""

import argparse
import concurrent.futures
import subprocess
import sys
import time
from collections import Counter
from itertools import count

from tests.copy_on_write import case
from tests.copy_on_write.case import SECONDS

SHRINK_SECONDS = 120


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.copy_on_write", description=__doc__.splitlines()[0])
    parser.add_argument("--operations", type=int, default=20_000, help="how many to do (default 20000)")
    parser.add_argument("--seconds", type=float, help="for so long, however many they are")
    parser.add_argument("--seed", type=int, default=1, help="the first case's seed; the others follow it (default 1)")
    parser.add_argument("--jobs", type=int, default=2, help="cases at once (default 2)")
    parser.add_argument("--keep", help="one case, and only the operations of these numbers: 3,17,18; or all, or none")
    parser.add_argument("--quiet", action="store_true")
    return parser.parse_args()


def one(seed: int, keep: list[int] | None, *, quiet: bool) -> int:
    found = case.draw(seed)
    if not quiet:
        print(found.told(range(len(found.operations)) if keep is None else keep), flush=True)
    done = found.run(keep)
    print(" ".join(f"{name.replace(' ', '-')}={number}" for name, number in done.items()))
    return 0


def apart(seed: int) -> tuple[Counter[str], str]:
    """Runs a whole case in a process of its own: what was done, and what went wrong."""
    command = [sys.executable, "-m", "tests.copy_on_write", "--seed", str(seed), "--keep", "all", "--quiet"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return Counter(), f"not done after {SECONDS} s"
    if done.returncode:
        return Counter(), f"exit code {done.returncode}: {done.stderr[-3000:]}"
    pairs = (word.split("=") for word in done.stdout.split())
    return Counter({name: int(number) for name, number in pairs}), ""


def many(arguments: argparse.Namespace) -> int:
    total: Counter[str] = Counter()
    seeds, began, cases = count(arguments.seed), time.monotonic(), 0

    def enough() -> bool:
        if arguments.seconds is not None:
            return time.monotonic() - began > float(arguments.seconds)
        return total.total() >= int(arguments.operations)

    with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
        while not enough():
            batch = [next(seeds) for _ in range(arguments.jobs)]
            for seed, (done, error) in zip(batch, pool.map(apart, batch), strict=True):
                if error:
                    print(f"seed {seed}: {error}")
                    failed = case.draw(seed)
                    print(failed.told(case.smallest(failed, seconds=SHRINK_SECONDS)))
                    return 1
                total += done
                cases += 1
    told = ", ".join(f"{number} {name}" for name, number in total.most_common())
    print(f"{total.total()} operations in {cases} cases from seed {arguments.seed}, no disagreement: {told}")
    return 0


def main() -> int:
    arguments = _arguments()
    if arguments.keep is None:
        return many(arguments)
    words: str = arguments.keep.replace("none", "")
    numbers = None if words == "all" else [int(number) for number in words.split(",") if number]
    return one(arguments.seed, numbers, quiet=arguments.quiet)


if __name__ == "__main__":
    sys.exit(main())
