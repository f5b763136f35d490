"""The benchmark's own arithmetic and table; no times are measured here."""

import contextlib

import pytest

from tests.bench.__main__ import Images, batches, keys_of, plan
from tests.bench.opening import Opening, table
from tests.bench.report import finish, markdown
from tests.bench.rows import DATA_PLANE, TABLES, TMPFS, Load, Quantity, Row, Side
from tests.bench.subjects import EXTENDED, MIB, SMALL, Maker, Place, Subject, fresh, overlay

ROW = Row(TMPFS, TMPFS, Load(), 1.6)
IDLE = Row(TMPFS, None, Load(), 0.5, Quantity.IDLE_CPU)


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


@pytest.mark.parametrize(("done", "reached"), [(50.0, True), (49.0, False)])
def test_a_row_against_nobody_must_reach_its_number(done: float, reached: bool) -> None:
    row = Row(TMPFS, None, Load(command="TEST UNIT READY"), 50)
    line = finish(row, [done], [], 0.0)
    assert (line.ratio, line.reached) == (None, reached)
    assert ">= 50 " in markdown([line], {})
    assert str(row) == "raw on tmpfs, TEST UNIT READY qd 32, interrupts"


def test_sides_take_turns_and_the_next_repeat_turns_them_round() -> None:
    rows = [row for row in DATA_PLANE if row.quantity is Quantity.IOPS]
    for repeat, first in ((0, Side.VSTORE), (1, Side.PEER), (2, Side.VSTORE)):
        sides = [side for side, _, _ in plan(rows[:2], repeat)]
        assert sides == [first, Side.PEER if first is Side.VSTORE else Side.VSTORE] * 2


def test_rows_with_the_same_load_share_its_measurement() -> None:
    by_iops = Row(TMPFS, TMPFS, Load(), 1.6)
    by_cpu = Row(TMPFS, TMPFS, Load(), 1.6, Quantity.IOPS_PER_CPU)
    assert keys_of(by_iops) == keys_of(by_cpu)
    assert len(list(plan([by_iops, by_cpu], 0))) == 2


@pytest.mark.parametrize("table", TABLES)
def test_every_row_is_said_differently(table: str) -> None:
    assert len({str(row) for row in TABLES[table]}) == len(TABLES[table])


@pytest.mark.parametrize("table", TABLES)
def test_rows_that_share_a_subject_are_measured_together(table: str) -> None:
    groups = list(batches(list(TABLES[table])))
    assert sorted(str(row) for group in groups for row in group) == sorted(map(str, TABLES[table]))
    subjects = [{key[1] for row in group for key in keys_of(row)} for group in groups]
    assert all(not one & other for n, one in enumerate(subjects) for other in subjects[:n])


@pytest.mark.parametrize("make", [fresh(SMALL), fresh(EXTENDED), overlay(SMALL)])
def test_a_used_up_image_is_made_anew_and_another_is_kept(make: Maker) -> None:
    folders = set()
    with contextlib.closing(Images(MIB)) as images:
        used_up = Subject("used up", Place.TMPFS, "qcow2", make, fresh=True)
        lasting = Subject("lasting", Place.TMPFS, "qcow2", make)
        for subject, lasts in ((used_up, False), (lasting, True)):
            path = images.path(subject)
            assert path is not None
            path.write_bytes(b"")
            folders.add(path.parent)
            assert images.path(subject) == path
            assert (path.read_bytes() == b"") is lasts
    assert not any(folder.exists() for folder in folders)


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


def test_openings_are_told_by_their_medians_and_their_spread() -> None:
    found = {"a process": [Opening(8, 10, 30), Opening(9, 40, 32), Opening(20, 30, 31)]}
    assert table(found).splitlines()[-1] == "| a process | 9 | 30 | 10, 40 | 31 |"
