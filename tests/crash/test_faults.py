"""The host's disk breaks or is full at any call: the guest is told, the image stays valid, and nothing that was
acknowledged is lost, also when power fails afterwards."""

import os
import random

import pytest

from tests.crash import faulty, trial
from tests.crash.recording import Fault, Kind
from tests.crash.variants import VARIANTS

SEED = int(os.environ.get("CRASH_SEED", "2"))
FAULTS = 2  # of a variant
STATES = 12  # of a fault
SEEDS = range(1, 5)  # of which one brings the defect to light: which requests meet is a matter of threads

UNSERVED = [name for name, variant in VARIANTS.items() if not (variant.served or variant.secret or variant.crowded)]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("variant", UNSERVED)
def test_no_call_that_fails_loses_what_was_acknowledged(variant: str) -> None:
    calls, source = trial.calls(VARIANTS[variant], 1), random.Random(f"{variant}:{SEED}")
    for _ in range(FAULTS):
        fault = faulty.draw(source, calls)
        outcome = trial.crash(VARIANTS[variant], 1, STATES, qemu_every=8, fault=fault)
        assert not outcome.failures, f"{variant}, {fault}\n" + "\n".join(outcome.failures)


def test_a_flush_that_fails_and_is_answered_all_the_same_is_caught() -> None:
    fault = Fault(Kind.BARRIER, 2, faulty.FOR_GOOD, faulty.EIO)
    mutant, most = "failed barriers are passed over", 60
    trials = (trial.crash(VARIANTS["plain"], seed, most, fault=fault, mutant=mutant, qemu_every=99) for seed in SEEDS)
    assert any(told.failures for told in trials)


def test_a_read_that_fails_and_is_taken_for_zeros_is_caught() -> None:
    """One trial in five meets a read of what is then copied up."""
    fault = Fault(Kind.READ, 60, 200, faulty.EIO)
    mutant, most, variant = "failed reads are zeros", 60, VARIANTS["raw parent"]
    trials = (trial.crash(variant, seed, most, fault=fault, mutant=mutant, qemu_every=99) for seed in range(1, 31))
    assert any(told.failures for told in trials)
