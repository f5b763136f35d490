import asyncio
import errno
from typing import Any

import pytest

from tests.scsi.faulty import FaultyMedium
from tests.scsi.initiator import IDENTITY, LBA_OUT_OF_RANGE, MIB, POWER_ON, Initiator, make_unit
from vstore.fuzz.sense_data import parse_sense
from vstore.scsi.commands import Read10, StartStopUnit, SynchronizeCache10, Write10
from vstore.scsi.direct_access import MAXIMUM_BACKGROUND
from vstore.scsi.logical_unit import LogicalUnit, ResetCause
from vstore.scsi.medium import MemoryMedium
from vstore.scsi.task import ITNexus, Status

CAPACITY_CHANGED = (6, 0x2A, 0x09)
WRITE_ERROR = (3, 0x0C, 0x00)


# ---- settings ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"logical_block_length": 0}, "the logical block length is 0; it must be one of 512, 1024, 2048, 4096"),
        ({"logical_block_length": 520}, "the logical block length is 520"),
        ({"logical_block_length": 8192}, "the logical block length is 8192"),
        ({"physical_block_exponent": 16}, "the physical block exponent is 16; it must be 0 to 15"),
        ({"physical_block_exponent": -1}, "the physical block exponent is -1"),
        ({"rotation_rate": 2}, "the rotation rate is 2; it must be 1025 to 65534 a minute"),
        ({"rotation_rate": 0xFFFF}, "the rotation rate is 65535"),
    ],
)
def test_settings_that_make_no_disk_are_refused(settings: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_unit(**settings)


def test_a_medium_shorter_than_a_block_is_refused() -> None:
    with pytest.raises(ValueError, match="the medium has 511 bytes, less than one block of 512"):
        make_unit(511)
    with pytest.raises(ValueError, match="the medium has 512 bytes, less than one block of 4096"):
        make_unit(512, logical_block_length=4096)


@pytest.mark.parametrize(("size", "exponent"), [(512, 3), (1024, 2), (2048, 1), (4096, 0)])
def test_physical_blocks_have_4096_bytes_unless_told_otherwise(size: int, exponent: int) -> None:
    assert make_unit(logical_block_length=size).physical_block_exponent == exponent
    assert make_unit(logical_block_length=size, physical_block_exponent=0).physical_block_exponent == 0


# ---- nexuses and unit attentions -----------------------------------------------------------------------


def test_a_nexus_that_was_added_is_told_of_the_power_on_once() -> None:
    initiator = Initiator(settled=False)
    initiator.unit.add_nexus(initiator.nexus)
    initiator.unit.add_nexus(initiator.nexus)
    assert initiator.check("00").code == POWER_ON
    initiator.unit.add_nexus(initiator.nexus)
    initiator.good("00")


def test_a_nexus_that_comes_back_is_told_again() -> None:
    initiator = Initiator()
    initiator.unit.remove_nexus(initiator.nexus)
    assert initiator.check("00").code == POWER_ON


def test_a_changed_capacity_is_told_to_every_nexus_and_is_the_one_reported() -> None:
    medium = MemoryMedium(MIB)
    one = Initiator(make_unit(medium=medium))
    other = Initiator(one.target)
    medium.data.extend(bytes(MIB))
    one.unit.capacity_changed()
    assert one.check("00").code == CAPACITY_CHANGED
    assert other.check("00").code == CAPACITY_CHANGED
    assert one.good("25")[:4] == (2 * MIB // 512 - 1).to_bytes(4)


def test_what_is_about_to_be_cut_off_is_out_of_range_and_back_when_it_stays() -> None:
    initiator = Initiator(make_unit(8192))
    last = Write10.build(lba=15, transfer_length=1).hex()
    heard: list[int] = []
    initiator.unit.on_change(lambda: heard.append(initiator.unit.fast_path(initiator.nexus).blocks))
    with initiator.unit.limited(4096):
        assert heard == [8]
        assert initiator.check(last, bytes(512)).code == LBA_OUT_OF_RANGE
        assert initiator.unit.fast_path(initiator.nexus).blocks == 8
    initiator.good(last, bytes(512))
    assert heard == [8, 16]
    with initiator.unit.limited(16384):
        initiator.good(last, bytes(512))


def test_a_capacity_of_no_blocks_is_refused_and_the_old_one_stays() -> None:
    medium = MemoryMedium(MIB)
    unit = make_unit(medium=medium)
    medium.data.clear()
    with pytest.raises(ValueError, match="0 bytes, less than one block"):
        unit.capacity_changed()
    assert unit.blocks == MIB // 512


@pytest.mark.parametrize(
    ("cause", "code"),
    [
        (ResetCause.HARD_RESET, (6, 0x29, 0x02)),
        (ResetCause.LOGICAL_UNIT_RESET, (6, 0x29, 0x03)),
        (ResetCause.POWER_ON, (6, 0x29, 0x01)),
    ],
)
def test_a_reset_is_told_to_every_nexus_and_starts_the_unit(cause: ResetCause, code: tuple[int, int, int]) -> None:
    one = Initiator()
    other = Initiator(one.target)
    one.good(StartStopUnit.build(start=0))
    one.unit.reset(cause, one.nexus)
    assert one.check("00").code == code
    assert other.check("00").code == code
    one.good("00")


def test_the_loss_of_a_nexus_is_told_to_that_one_alone() -> None:
    one = Initiator()
    other = Initiator(one.target)
    one.good(StartStopUnit.build(start=0))
    one.unit.reset(ResetCause.I_T_NEXUS_LOSS, one.nexus)
    one.unit.reset(ResetCause.I_T_NEXUS_LOSS)
    one.unit.stopped = False
    assert one.check("00").code == (6, 0x29, 0x07)
    other.good("00")


# ---- the fast path -------------------------------------------------------------------------------------


def gates(initiator: Initiator) -> tuple[bool, bool]:
    fast = initiator.unit.fast_path(initiator.nexus)
    return fast.read, fast.write


def test_the_fast_path_knows_the_limits() -> None:
    fast = Initiator(make_unit(logical_block_length=4096, write_cache=False)).unit.fast_path(ITNexus("x"))
    assert (fast.blocks, fast.block_shift, fast.max_transfer) == (256, 12, 8192)
    assert (fast.max_write_same, fast.max_unmap_descriptors) == (1 << 18, 256)
    assert fast.write_through
    assert fast.deallocates
    thick = make_unit(thin=False).fast_path(ITNexus("x"))
    assert (thick.deallocates, thick.max_unmap_descriptors) == (False, 0)


def test_the_fast_path_is_shut_to_a_nexus_that_must_be_told_something() -> None:
    initiator = Initiator(settled=False)
    assert gates(initiator) == (False, False)  # not even known
    initiator.unit.add_nexus(initiator.nexus)
    assert gates(initiator) == (False, False)
    initiator.check("00")
    assert gates(initiator) == (True, True)
    initiator.unit.capacity_changed()
    assert gates(initiator) == (False, False)


def test_the_fast_path_of_a_read_only_unit_reads() -> None:
    assert gates(Initiator(make_unit(read_only=True))) == (True, False)


def test_the_fast_path_of_a_stopped_unit_is_shut() -> None:
    initiator = Initiator()
    initiator.good(StartStopUnit.build(start=0))
    assert gates(initiator) == (False, False)
    initiator.good(StartStopUnit.build(start=1))
    assert gates(initiator) == (True, True)


@pytest.mark.parametrize(
    "change",
    [
        lambda i: i.unit.add_nexus(ITNexus("new")),
        lambda i: i.unit.remove_nexus(i.nexus),
        lambda i: i.unit.capacity_changed(),
        lambda i: i.unit.report_luns_changed(),
        lambda i: i.unit.reset(ResetCause.LOGICAL_UNIT_RESET),
        lambda i: i.unit.reset(ResetCause.I_T_NEXUS_LOSS, i.nexus),
        lambda i: i.good(StartStopUnit.build(start=0)),
        lambda i: i.good("15 10 00 00 18 00", bytes(4) + bytes.fromhex("0812") + bytes(18)),  # WCE = 0
    ],
)
def test_listeners_hear_of_every_change(change: Any) -> None:
    initiator = Initiator()
    heard: list[int] = []
    initiator.unit.on_change(lambda: heard.append(1))
    change(initiator)
    assert heard


def test_a_listener_that_was_forgotten_hears_nothing() -> None:
    unit, heard = make_unit(), []
    listener = lambda: heard.append(1)  # noqa: E731 - one object, to be forgotten again
    unit.on_change(listener)
    unit.forget_change(listener)
    unit.changed()
    assert not heard


def test_listeners_hear_when_a_unit_attention_was_told_and_not_of_plain_commands() -> None:
    initiator = Initiator()
    initiator.unit.capacity_changed()
    heard: list[tuple[bool, bool]] = []
    initiator.unit.on_change(lambda: heard.append(gates(initiator)))
    initiator.check("00")
    assert heard == [(True, True)]
    initiator.good("00")
    initiator.good(Read10.build(transfer_length=1))
    initiator.good(Write10.build(transfer_length=1), bytes(512))
    assert heard == [(True, True)]


# ---- background work -----------------------------------------------------------------------------------


async def test_immed_completes_before_the_flush_does() -> None:
    medium = FaultyMedium()
    initiator = Initiator(make_unit(medium=medium))
    medium.gate = asyncio.Event()
    response = await initiator.target.execute(initiator.task(SynchronizeCache10.build(immed=1)))
    assert response.status is Status.GOOD
    assert medium.flushes == 0
    medium.gate.set()
    await initiator.unit.settle()
    assert medium.flushes == 1
    initiator.good("00")


async def test_an_error_after_immed_is_deferred_to_the_next_command_of_the_nexus() -> None:
    medium = FaultyMedium()
    one = Initiator(make_unit(medium=medium))
    other = Initiator(one.target)
    medium.errors["flush"] = errno.EIO
    heard: list[int] = []
    one.unit.on_change(lambda: heard.append(1))
    response = await one.target.execute(one.task(SynchronizeCache10.build(immed=1)))
    assert response.status is Status.GOOD
    await one.unit.settle()
    assert heard
    assert not one.unit.fast_path(one.nexus).read
    sense = one.check("00")
    assert (sense.code, sense.deferred) == (WRITE_ERROR, True)
    one.good("00")
    other.good("00")


def test_without_an_event_loop_immed_work_is_done_at_once() -> None:
    medium = FaultyMedium()
    initiator = Initiator(make_unit(medium=medium))
    initiator.good(SynchronizeCache10.build(immed=1))
    assert medium.flushes == 1
    medium.errors["flush"] = errno.ENOSPC
    initiator.good(SynchronizeCache10.build(immed=1))
    sense = parse_sense(initiator.good("03 01 00 00 fc 00"))
    assert (sense.code, sense.deferred) == ((7, 0x27, 0x07), True)


async def test_no_more_than_so_many_works_wait_behind_an_initiator_that_does_not() -> None:
    medium = FaultyMedium()
    medium.gate = asyncio.Event()
    initiator = Initiator(make_unit(medium=medium))

    async def flush() -> Status:
        return (await initiator.target.execute(initiator.task(SynchronizeCache10.build(immed=1)))).status

    sent = [asyncio.create_task(flush()) for _ in range(3 * MAXIMUM_BACKGROUND)]
    for _ in range(5):
        await asyncio.sleep(0)
    assert sum(one.done() for one in sent) == MAXIMUM_BACKGROUND
    medium.gate.set()
    assert set(await asyncio.gather(*sent)) == {Status.GOOD}
    await initiator.unit.settle()
    assert medium.flushes == len(sent)


async def test_settling_with_nothing_under_way_returns_at_once() -> None:
    await make_unit().settle()


def test_a_unit_needs_only_what_a_medium_promises() -> None:
    assert LogicalUnit(MemoryMedium(512), IDENTITY).blocks == 1
