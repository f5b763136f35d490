import asyncio

import pytest

from tests.scsi.initiator import MIB, Initiator, make_unit
from vstore.scsi import counting
from vstore.scsi.commands import Inquiry, LogSense, ModeSelect10, ModeSense10
from vstore.scsi.kept_state import MemoryState
from vstore.scsi.logical_unit import ResetCause
from vstore.scsi.medium import MemoryMedium, Room

REACHED = (6, 0x38, 0x07)


def page(available: int | None = None, used: int | None = None) -> bytes:
    """Thresholds in sets of 1 MiB; None: it is not enabled."""
    rows = ((available, "00 01"), (used, "01 02"))
    descriptors = b"".join(
        bytes([bytes.fromhex(head)[0] | (0x80 if count is not None else 0), bytes.fromhex(head)[1], 0, 0])
        + (count or 0).to_bytes(4)
        for count, head in rows
    )
    return bytes.fromhex("5c 02 00 1c") + bytes(12) + descriptors


def enable(initiator: Initiator, sp: int = 0, **counts: int) -> None:
    data = bytes(8) + page(**counts)
    initiator.good(ModeSelect10.build(pf=1, sp=sp, parameter_list_length=len(data)), data)


def look(initiator: Initiator) -> None:
    initiator.good(LogSense.build(pc=1, page_code=0x0C, allocation_length=64))


def with_room(available: int, used: int = 0, **settings: MemoryState) -> tuple[Initiator, MemoryMedium]:
    medium = MemoryMedium(MIB)
    medium.room = Room(used * MIB, available * MIB)
    return Initiator(make_unit(medium=medium, **settings)), medium


def test_the_unit_says_how_large_a_threshold_set_is() -> None:
    for size in (512, 4096):
        initiator = Initiator(make_unit(logical_block_length=size))
        data = initiator.good(Inquiry.build(evpd=1, page_code=0xB2, allocation_length=64))
        assert size << data[4] == MIB
    thick = Initiator(make_unit(thin=False))
    assert thick.good(Inquiry.build(evpd=1, page_code=0xB2, allocation_length=64))[4] == 0
    assert thick.refused(ModeSense10.build(page_code=0x1C, subpage_code=2, allocation_length=64)) == (3, 7)


@pytest.mark.parametrize(
    ("counts", "before", "after"),
    [
        ({"available": 10}, Room(0, 11 * MIB), Room(0, 11 * MIB - 1)),
        ({"used": 5}, Room(5 * MIB - 1, 0), Room(5 * MIB, 0)),
    ],
)
def test_a_threshold_that_is_crossed_is_told_to_all_once(counts: dict[str, int], before: Room, after: Room) -> None:
    initiator, medium = with_room(0)
    other = Initiator(initiator.target)
    medium.room = before
    enable(initiator, **counts)
    other.check("00")  # mode parameters changed
    look(initiator)
    initiator.good("00")
    medium.room = after
    look(initiator)
    assert initiator.check("00").code == other.check("00").code == REACHED
    look(initiator)
    initiator.good("00")
    other.good("00")


def test_a_machine_that_comes_later_is_told_too() -> None:
    initiator, _ = with_room(5)
    enable(initiator, available=10)
    look(initiator)
    initiator.check("00")
    initiator.unit.reset(ResetCause.POWER_ON)
    initiator.check("00")
    enable(initiator, available=10)
    look(initiator)
    assert initiator.check("00").code == REACHED


def test_it_is_told_again_when_it_was_on_the_other_side_meanwhile() -> None:
    initiator, medium = with_room(100)
    enable(initiator, available=10)
    for _ in range(2):
        medium.room = Room(0, 5 * MIB)
        look(initiator)
        assert initiator.check("00").code == REACHED
        look(initiator)
        initiator.good("00")
        medium.room = Room(0, 50 * MIB)
        look(initiator)
        initiator.good("00")


def test_a_threshold_that_is_not_enabled_and_a_space_that_nobody_knows_are_not_told_of() -> None:
    initiator, medium = with_room(0, 100)
    look(initiator)
    initiator.good("00")
    enable(initiator, available=10, used=1)
    medium.room = None
    look(initiator)
    initiator.good("00")


async def test_the_space_is_watched_while_a_threshold_is_enabled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "SPACE_PERIOD", 0.001)
    initiator, medium = with_room(100)
    enable(initiator, available=10)
    medium.room = Room(0, 0)
    looked = asyncio.Event()
    initiator.unit.on_change(looked.set)
    await asyncio.wait_for(looked.wait(), 10)
    assert initiator.check("00").code == REACHED
    enable(initiator)
    assert initiator.unit._watching
    await asyncio.wait_for(initiator.unit._watching, 10)
    initiator.good("00")


async def test_a_threshold_that_was_saved_is_watched_from_the_first_nexus_on() -> None:
    state = MemoryState()
    enable(with_room(100, state=state)[0], sp=1, available=10)
    initiator, _ = with_room(5, state=state)
    initiator.unit.add_nexus(initiator.nexus)
    await asyncio.sleep(0)
    assert initiator.check("00").code == REACHED
    await initiator.unit.settle()
    await asyncio.sleep(0)
    assert initiator.unit._watching
    assert initiator.unit._watching.cancelled()
