"""Power may fail at any write: nothing acknowledged is lost, no block shows what was never written to it, and every
image stays valid for qemu-img."""

import os

import pytest

from tests.crash.trial import crash
from tests.crash.variants import VARIANTS

STATES = int(os.environ.get("CRASH_STATES", "215"))  # of each variant, at least
SEEDS = [1, int(os.environ.get("CRASH_SEED", "2"))]
OF_A_TRIAL = 140


@pytest.mark.timeout(600)
@pytest.mark.parametrize("variant", VARIANTS)
def test_no_crash_corrupts_loses_or_exposes(variant: str) -> None:
    judged, seeds = 0, list(SEEDS)
    while judged < STATES:
        seed = seeds.pop(0)
        outcome = crash(VARIANTS[variant], seed, OF_A_TRIAL)
        assert not outcome.failures, f"{variant}, seed {seed}\n" + "\n".join(outcome.failures)
        assert outcome.states > OF_A_TRIAL // 2, "a recording with hardly any events"
        judged += outcome.states
        seeds.append(seed + 1000)
