import time

import pytest

from tests.scsi.initiator import PARAMETER_LIST_LENGTH_ERROR, SHORT_DATA_OUT, Initiator
from vstore.scsi.clock import Clock
from vstore.scsi.commands import ReportTimestamp, SetTimestamp
from vstore.scsi.logical_unit import ResetCause

NOON = 0x01_8A_00_00_00_00  # some day


def told(initiator: Initiator) -> tuple[int, int]:
    """TIMESTAMP ORIGIN and TIMESTAMP."""
    data = initiator.good(ReportTimestamp.build(allocation_length=64))
    assert (len(data), data[:2], data[3], data[10:]) == (12, b"\0\x0a", 0, b"\0\0")
    return data[2], int.from_bytes(data[4:10])


def parameters(timestamp: int) -> bytes:
    return bytes(4) + timestamp.to_bytes(6) + bytes(2)


def test_the_commands_are_laid_out_as_spc_4_prints_them() -> None:
    assert ReportTimestamp.build(allocation_length=0x01020304).hex(" ") == "a3 0f 00 00 00 00 01 02 03 04 00 00"
    assert SetTimestamp.build(parameter_list_length=12).hex(" ") == "a4 0f 00 00 00 00 00 00 00 0c 00 00"


def test_until_it_is_set_the_clock_is_the_hosts() -> None:
    before = time.time_ns() // 1_000_000
    origin, timestamp = told(Initiator())
    assert origin == 0b011
    assert before <= timestamp <= time.time_ns() // 1_000_000


def test_a_clock_that_was_set_goes_on_and_the_others_are_told() -> None:
    one = Initiator()
    other = Initiator(one.target)
    one.good(SetTimestamp.build(parameter_list_length=12), parameters(NOON))
    assert other.check("00").code == (6, 0x2A, 0x10)
    origin, timestamp = told(other)
    assert origin == 0b010
    assert timestamp >= NOON
    one.good("00")


def test_a_reset_keeps_the_clock_and_a_power_on_does_not() -> None:
    initiator = Initiator()
    initiator.good(SetTimestamp.build(parameter_list_length=12), parameters(NOON))
    initiator.unit.reset(ResetCause.HARD_RESET)
    initiator.check("00")
    assert told(initiator)[0] == 0b010
    initiator.unit.reset(ResetCause.POWER_ON)
    initiator.check("00")
    assert told(initiator)[0] == 0b011


def test_a_clock_goes_at_the_pace_of_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic_ns", lambda: 5_000_000_000)
    clock.set(1000)
    monkeypatch.setattr(time, "monotonic_ns", lambda: 7_500_000_000)
    assert clock.now() == 3500


@pytest.mark.parametrize("length", [1, 11])
def test_a_list_without_a_whole_timestamp_is_a_length_error(length: int) -> None:
    cdb = SetTimestamp.build(parameter_list_length=length)
    assert Initiator().check(cdb, bytes(12)).code == PARAMETER_LIST_LENGTH_ERROR


def test_no_list_changes_nothing_and_a_long_one_is_read_as_far_as_it_matters() -> None:
    initiator = Initiator()
    initiator.good(SetTimestamp.build())
    assert told(initiator)[0] == 0b011
    initiator.good(SetTimestamp.build(parameter_list_length=40), parameters(NOON) + bytes(28))
    assert told(initiator)[0] == 0b010
    assert initiator.check(SetTimestamp.build(parameter_list_length=12), bytes(11)).code == SHORT_DATA_OUT


@pytest.mark.parametrize("length", range(14))
def test_the_timestamp_is_cut_at_the_allocation_length(length: int) -> None:
    assert len(Initiator().good(ReportTimestamp.build(allocation_length=length))) == min(length, 12)
