"""Crash enumeration from the command line.

python -m tests.crash [--seed N] [--seeds N] [--states N] [--qemu-every N] [--faults N] [--seconds N] [VARIANT ...]
python -m tests.crash --again FOLDER STATE
"""

import argparse
import itertools
import random
import sys
import time
from pathlib import Path

from tests.crash import faulty
from tests.crash.recording import Fault
from tests.crash.trial import again, calls, crash
from tests.crash.variants import VARIANTS


def main() -> int:
    options = parsed()
    if options.again:
        complaints = again(Path(options.again[0]), options.again[1])
        print("\n".join(complaints) or "nothing is wrong with it")
        return bool(complaints)
    return enumerate_all(options)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.crash")
    parser.add_argument("variants", nargs="*", metavar="VARIANT", help=f"of: {', '.join(VARIANTS)}; all by default")
    parser.add_argument("--seed", type=int, default=1, help="the first seed")
    parser.add_argument("--seeds", type=int, default=1, help="how many seeds of each variant")
    parser.add_argument("--states", type=int, default=400, help="most crash states of a variant and seed")
    parser.add_argument("--qemu-every", type=int, default=25, help="qemu-img checks every so manieth state too")
    parser.add_argument("--faults", type=int, default=0, help="runs of a trial in which calls of the host fail")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="no new trial begins after that")
    parser.add_argument("--patience", type=int, default=3, help="failures of a trial that are told")
    parser.add_argument("--again", nargs=2, metavar=("FOLDER", "STATE"), help="judge one state of a kept recording")
    return parser.parse_args()


def enumerate_all(options: argparse.Namespace) -> int:
    began, total, failed = time.monotonic(), 0, 0
    trials = itertools.product(range(options.seed, options.seed + options.seeds), options.variants or VARIANTS)
    for seed, name in trials:
        at = time.monotonic()
        if at - began > options.seconds:
            break
        for fault in [None, *faults(name, seed, options.faults)]:
            outcome = crash(
                VARIANTS[name],
                seed,
                options.states // 10 if fault else options.states,
                qemu_every=options.qemu_every,
                patience=options.patience,
                fault=fault,
            )
            total, failed = total + outcome.states, failed + len(outcome.failures)
            took = time.monotonic() - at
            told = f"{name}, seed {seed}{f', fault {fault}' if fault else ''}"
            print(f"{told}: {outcome.states} states of {outcome.events} events, {took:.1f} s", flush=True)
            print("\n".join(outcome.failures), end="\n" * bool(outcome.failures), flush=True)
    print(f"{total} crash states, {failed} of them wrong, {time.monotonic() - began:.0f} s")
    return bool(failed)


def faults(name: str, seed: int, count: int) -> list[Fault]:
    """As many for one trial; none where the guest sits behind rings, whose errors it does not await."""
    if not count or VARIANTS[name].served:
        return []
    source, there = random.Random(f"{name}:{seed}"), calls(VARIANTS[name], seed)
    return [faulty.draw(source, there) for _ in range(count)]


if __name__ == "__main__":
    sys.exit(main())
