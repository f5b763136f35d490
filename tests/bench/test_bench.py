"""The benchmark's own arithmetic and table; no times are measured here."""

import pytest

from tests.bench.__main__ import keys_of, plan
from tests.bench.report import finish, markdown
from tests.bench.rows import ROWS, Load, Medium, Quantity, Row

ROW = Row(Medium.TMPFS, Medium.TMPFS, Load(), 1.6)
IDLE = Row(Medium.TMPFS, None, Load(), 0.5, Quantity.IDLE_CPU)


def test_a_ratio_is_of_the_medians_and_its_spread_of_the_repeats() -> None:
    line = finish(ROW, [300.0, 320.0, 400.0], [100.0, 200.0, 160.0], 0.0)
    assert (line.vstore, line.peer, line.ratio) == (320.0, 160.0, 2.0)
    assert (line.lowest, line.highest) == (1.6, 3.0)


@pytest.mark.parametrize(("ours", "reached"), [(160.0, True), (159.0, False)])
def test_the_bar_is_reached_at_its_ratio(ours: float, reached: bool) -> None:
    assert finish(ROW, [ours], [100.0], 0.0).reached is reached


@pytest.mark.parametrize(("used", "reached"), [(0.49, True), (0.5, False)])
def test_an_idle_target_must_stay_below_its_limit(used: float, reached: bool) -> None:
    line = finish(IDLE, [used], [], 0.0)
    assert (line.ratio, line.reached) == (None, reached)


def test_sides_take_turns_and_the_next_repeat_turns_them_round() -> None:
    rows = [row for row in ROWS if row.quantity is Quantity.IOPS]
    for repeat, first in ((0, "vstore"), (1, "peer"), (2, "vstore")):
        sides = [side for side, _, _ in plan(rows[:2], repeat)]
        assert sides == [first, "peer" if first == "vstore" else "vstore"] * 2


def test_rows_with_the_same_load_share_its_measurement() -> None:
    by_iops = Row(Medium.TMPFS, Medium.TMPFS, Load(), 1.6)
    by_cpu = Row(Medium.TMPFS, Medium.TMPFS, Load(), 1.6, Quantity.IOPS_PER_CPU)
    assert keys_of(by_iops, "peer") == keys_of(by_cpu, "peer")
    assert len(list(plan([by_iops, by_cpu], 0))) == 2


def test_every_row_is_said_differently() -> None:
    assert len({str(row) for row in ROWS}) == len(ROWS)


def test_the_table_names_what_missed_its_bar() -> None:
    lines = [finish(ROW, [100.0], [100.0], 0.1), finish(IDLE, [0.0], [], 0.0)]
    table = markdown(lines, {"processor": "two cores"}).splitlines()
    assert [cell.strip() for cell in table[2].split("|")[3:9]] == [
        "100",
        "100",
        "1.00x",
        "1.00-1.00",
        ">= 1.6x",
        "MISSED",
    ]
    assert table[3].split("|")[8].strip() == "reached"
    assert table[-1] == "- processor: two cores"
