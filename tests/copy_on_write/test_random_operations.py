"""Random operations on random image chains: the disk agrees with a model, qemu-img with both, and nothing leaks."""

import os
import random

import pytest

from tests.copy_on_write import case
from tests.copy_on_write.world import Disagreement
from vstore.disk import Disk

SEEDS = range(1, 7)
FRESH = int(os.environ.get("FRESH_SEED") or random.SystemRandom().randrange(1 << 30))


def run(seed: int) -> None:
    drawn = case.draw(seed)
    try:
        drawn.run()
    except Disagreement as error:
        pytest.fail(f"{error}\n{drawn.told(case.smallest(drawn, seconds=20))}", pytrace=False)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_disk_over_any_chain_agrees_with_its_model_and_with_qemu(seed: int) -> None:
    run(seed)


def test_so_does_one_that_no_run_has_seen_before() -> None:
    print(f"fresh seed {FRESH}")
    run(FRESH)


def test_the_same_seed_gives_the_same_case() -> None:
    assert case.draw(5) == case.draw(5) != case.draw(6)


def test_a_lost_write_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = case.draw(3)
    number = next(n for n, one in enumerate(drawn.operations) if one.kind == "write" and one.stamp % 16)
    monkeypatch.setattr(Disk, "write_blocking", lambda *_: None)
    with pytest.raises(Disagreement, match="bytes wrong"):
        drawn.run([number])


def test_a_failing_case_is_made_as_small_as_it_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(case, "fails", lambda _, keep: {7, 31, 64} <= set(keep))
    assert case.smallest(case.draw(3), seconds=20) == [7, 31, 64]
