import asyncio
import errno

import pytest

from tests.scsi.disks import with_log
from tests.scsi.faulty import FaultyMedium
from tests.scsi.initiator import MIB, Initiator, make_unit
from vstore.scsi.commands import LogSense, RequestSense, SendDiagnostic, StartStopUnit
from vstore.scsi.logical_unit import LogicalUnit, ResetCause
from vstore.scsi.self_test import Ended, Segment, SelfTest, SelfTests

SHORT, EXTENDED = SendDiagnostic.build(self_test_code=0b101), SendDiagnostic.build(self_test_code=0b110)
BACKGROUND, BACKGROUND_EXTENDED = (SendDiagnostic.build(self_test_code=code) for code in (0b001, 0b010))
ABORT = SendDiagnostic.build(self_test_code=0b100)
IN_PROGRESS = (2, 0x04, 0x09)


def results(initiator: Initiator) -> list[str]:
    """Each of the log, without those that never were, in hex: code and result, segment, hours, address, sense."""
    data = initiator.good(LogSense.build(pc=1, page_code=0x10, allocation_length=0xFFFF))[4:]
    assert len(data) == 20 * 20
    rows = [data[at : at + 20] for at in range(0, len(data), 20)]
    assert [row[:4] for row in rows] == [bytes([0, n, 0x23, 16]) for n in range(1, 21)]
    return [row[4:].hex() for row in rows if any(row[4:])]


NOWHERE = "ffffffffffffffff"


def result(head: str, segment: str = "00", address: str = NOWHERE, sense: str = "000000") -> str:
    return f"{head}{segment}0000{address}{sense}00"


def test_results_stand_in_the_log_newest_first() -> None:
    initiator = Initiator()
    initiator.good(SHORT)
    initiator.good(EXTENDED)
    initiator.good(SendDiagnostic.build(selftest=1))  # the default test is not logged
    assert results(initiator) == [result("c0"), result("a0")]


def test_twenty_results_are_kept() -> None:
    initiator = Initiator()
    for _ in range(15):
        initiator.good(SHORT)
        initiator.good(BACKGROUND)
    assert results(initiator) == [result("20"), result("a0")] * 10


@pytest.mark.parametrize(
    ("call", "told"),
    [
        ("flush", result("c5", "01", sense="030c00")),
        ("read", result("c6", "02", f"{0:016x}", "031100")),
    ],
)
def test_a_failure_is_told_with_its_place(call: str, told: str) -> None:
    initiator, medium = with_log()
    medium.errors[call] = errno.EIO
    assert initiator.check(EXTENDED).code == (4, 0x3E, 0x03)
    assert results(initiator) == [told]
    initiator.good(BACKGROUND)  # its command is over before its fault is known
    assert results(initiator)[0][:2] == f"2{told[1]}"


class BadSpot(FaultyMedium):
    async def read(self, offset: int, length: int) -> bytes:
        if offset == 2 * MIB and length == MIB:
            raise OSError(errno.EIO, "a bad spot")
        return await super().read(offset, length)


def test_a_bad_spot_is_found_by_the_extended_test_alone() -> None:
    initiator = Initiator(make_unit(medium=BadSpot(8 * MIB)))
    initiator.good(SHORT)
    initiator.check(EXTENDED)
    assert results(initiator) == [result("c7", "03", f"{2 * MIB // 512:016x}", "031100"), result("a0")]


async def _running() -> tuple[Initiator, LogicalUnit, asyncio.Event]:
    """A background test that waits for its medium."""
    medium = FaultyMedium(4 * MIB)
    initiator = Initiator(make_unit(medium=medium))
    gate = medium.gate = asyncio.Event()
    initiator.good(BACKGROUND_EXTENDED)
    await asyncio.sleep(0)
    return initiator, initiator.unit, gate


async def test_a_test_in_the_background_goes_on_while_commands_are_served() -> None:
    initiator, unit, gate = await _running()
    assert results(initiator) == [result("4f")]
    initiator.good("00")
    told = initiator.good(RequestSense.build(allocation_length=18))
    assert (told[2] & 0xF, told[12], told[13], told[15]) == (*IN_PROGRESS, 0x80)
    assert initiator.check(SHORT).code == IN_PROGRESS
    gate.set()
    await asyncio.wait_for(unit.background.settled(), 10)
    assert results(initiator) == [result("40")]
    assert initiator.good(RequestSense.build(allocation_length=18))[2] == 0


async def test_send_diagnostic_aborts_the_test_in_the_background() -> None:
    initiator, unit, gate = await _running()
    initiator.good(ABORT)
    assert results(initiator) == [result("41")]
    initiator.refused(ABORT)
    gate.set()
    await asyncio.wait_for(unit.settle(), 10)
    assert results(initiator) == [result("41")]


@pytest.mark.parametrize("how", ["reset", "stop", "resize", "close"])
async def test_what_cannot_go_on_beside_it_aborts_it(how: str) -> None:
    initiator, unit, gate = await _running()
    if how == "reset":
        unit.reset(ResetCause.LOGICAL_UNIT_RESET)
    elif how == "stop":
        initiator.good(StartStopUnit.build(no_flush=1))
    elif how == "resize":
        with unit.limited(MIB):
            pass
    else:
        unit.give_up()
    assert [test.result for test in unit.self_tests.results] == [Ended.ABORTED_OTHERWISE]
    gate.set()
    await asyncio.wait_for(unit.settle(), 10)


async def test_a_test_whose_command_is_aborted_is_over() -> None:
    medium = FaultyMedium()
    initiator = Initiator(make_unit(medium=medium))
    medium.gate = asyncio.Event()
    command = asyncio.get_running_loop().create_task(initiator.target.execute(initiator.task(SHORT)))
    await asyncio.sleep(0)
    assert results(initiator) == [result("af")]
    assert initiator.check(SHORT).code == IN_PROGRESS
    command.cancel()
    with pytest.raises(asyncio.CancelledError):
        await command
    assert results(initiator) == [result("a2")]


def test_a_test_ends_once() -> None:
    tests = SelfTests()
    test = SelfTest(1, 0, 0, background=True)
    tests.begin(test)
    assert tests.running is test
    tests.abort()
    test.fail(Segment.CACHE, 0, test.told)
    test.end(Ended.PASSED)
    assert (tests.running, test.result, test.sense) == (None, Ended.ABORTED_OTHERWISE, None)
    SelfTests().abort()
