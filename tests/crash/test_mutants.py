"""The enumeration can fail: each defect that is put into the code on purpose is caught."""

import pytest

from tests.crash.mutants import MUTANTS
from tests.crash.trial import crash
from tests.crash.variants import VARIANTS

STATES = 130
TRIES = 24  # recordings, because which requests meet is a matter of threads


@pytest.mark.timeout(300)
@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_defect_is_caught(mutant: str) -> None:
    variant = VARIANTS[MUTANTS[mutant].variant]
    assert any(crash(variant, seed, STATES, qemu_every=STATES + 1, mutant=mutant).failures for seed in range(TRIES))
