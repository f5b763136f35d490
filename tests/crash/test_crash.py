"""Power may fail at any write: nothing acknowledged is lost, no block shows what was never written to it, and every
image stays valid for qemu-img."""

import os

import pytest

from tests.crash.trial import crash
from tests.crash.variants import VARIANTS

STATES = int(os.environ.get("CRASH_STATES", "166"))  # of each variant, at least
STATES_OF_SLOW = 60  # those whose states take long to judge
SEEDS = [1, int(os.environ.get("CRASH_SEED", "2"))]
OF_A_TRIAL = 110
FEWEST = 30  # asked of a trial, else making its recording is most of the work


@pytest.mark.timeout(600)
@pytest.mark.parametrize("variant", VARIANTS)
def test_no_crash_corrupts_loses_or_exposes(variant: str) -> None:
    slow = VARIANTS[variant].secret or VARIANTS[variant].crowded
    judged, seeds = 0, list(SEEDS)
    wanted = min(STATES, STATES_OF_SLOW) if slow else STATES
    while judged < wanted:
        seed = seeds.pop(0)
        missing = max(FEWEST, (wanted - judged) * 5 // 4)  # some states are the same
        most = min(STATES_OF_SLOW // 2 + 8 if slow else OF_A_TRIAL, missing)
        outcome = crash(VARIANTS[variant], seed, most)
        assert not outcome.failures, f"{variant}, seed {seed}\n" + "\n".join(outcome.failures)
        assert outcome.states > most // 2, "a recording with hardly any events"
        judged += outcome.states
        seeds.append(seed + 1000)
