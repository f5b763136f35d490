import asyncio
import errno
from collections.abc import Coroutine
from typing import Any

import pytest

from tests.scsi.faulty import FaultyMedium
from tests.scsi.initiator import IDENTITY, INVALID_FIELD_IN_CDB, MIB, Initiator, make_unit
from vstore.fuzz.sense_data import ParsedSense, parse_sense
from vstore.scsi.commands import (
    ExtendedCopy,
    FormatUnit,
    Inquiry,
    Read10,
    SanitizeBlockErase,
    SanitizeCryptographicErase,
    SanitizeExitFailureMode,
    SanitizeOverwrite,
    Write10,
)
from vstore.scsi.identity import Identity
from vstore.scsi.kept_state import MemorySection, MemoryState
from vstore.scsi.logical_unit import LogicalUnit
from vstore.scsi.task import Response, Status

SANITIZING = (2, 0x04, 0x1B)
CORRUPTED, SANITIZE_FAILED = (3, 0x31, 0x00), (3, 0x31, 0x03)
COPY_ABORTED = 0xA
OVERWRITE = SanitizeOverwrite.build(immed=1, parameter_list_length=6), bytes.fromhex("03 00 0002 a55a")
BLOCK_ERASE = SanitizeBlockErase.build(immed=1), b""
CRYPTOGRAPHIC_ERASE = SanitizeCryptographicErase.build(immed=1), b""
FORMAT = FormatUnit.build(fmtdata=1), bytes([0, 2, 0, 0])


async def sent(initiator: Initiator, cdb: bytes, data: bytes = b"") -> Response:
    return await initiator.target.execute(initiator.task(cdb, data))


async def told(initiator: Initiator, cdb: bytes = bytes(6)) -> ParsedSense:
    return parse_sense((await sent(initiator, cdb)).sense)


def settled(unit: LogicalUnit) -> Initiator:
    initiator = Initiator(unit, settled=False)
    unit.add_nexus(initiator.nexus)
    unit.attentions.take(initiator.nexus)
    return initiator


async def killed(cdb: bytes, data: bytes, **settings: Any) -> tuple[FaultyMedium, MemoryState]:
    """The medium and the state of a unit whose process was killed after it had answered this command with GOOD."""
    medium, state = FaultyMedium(3 * MIB, replaces_key=True), MemoryState()
    medium.data[:] = b"\1" * (3 * MIB)
    medium.gate = asyncio.Event()
    response = await sent(settled(make_unit(medium=medium, state=state, **settings)), cdb, data)
    assert response.status is Status.GOOD
    await asyncio.sleep(0)
    left = FaultyMedium(3 * MIB, replaces_key=True)
    left.data[:] = medium.data
    return left, MemoryState.of(state.sections)


def ended(work: Coroutine[Any, Any, None]) -> None:
    with pytest.raises(StopIteration):
        work.send(None)


@pytest.mark.parametrize(("cdb", "data"), [OVERWRITE, BLOCK_ERASE, CRYPTOGRAPHIC_ERASE])
async def test_a_sanitize_begins_again_after_the_process_was_killed_and_the_unit_is_not_ready_meanwhile(
    cdb: bytes, data: bytes
) -> None:
    medium, state = await killed(cdb, data)
    medium.gate = asyncio.Event()
    unit = make_unit(medium=medium, state=state)
    initiator = settled(unit)
    await unit.resume()
    assert (await told(initiator)).code == SANITIZING
    assert (await told(initiator, Read10.build(transfer_length=1))).code == SANITIZING
    assert not unit.fast_path(initiator.nexus).read
    medium.gate.set()
    await unit.background.settled()
    assert (await sent(initiator, bytes(6))).status is Status.GOOD
    assert initiator.data == bytes.fromhex("a55a" if data else "0000") * (3 * MIB // 2)
    again = make_unit(medium=medium, state=MemoryState.of(state.sections))
    medium.calls.clear()
    await again.resume()
    assert (medium.calls, again.failure) == ([], None)


async def test_one_that_an_unmapping_gave_up_begins_again_too() -> None:
    medium, state = FaultyMedium(3 * MIB), MemoryState()
    medium.gate = asyncio.Event()
    unit = make_unit(medium=medium, state=state)
    initiator = settled(unit)
    initiator.data[:] = b"\1" * (3 * MIB)
    await sent(initiator, *OVERWRITE)
    await asyncio.sleep(0)
    settling = asyncio.create_task(unit.settle())
    await asyncio.sleep(0)
    medium.gate.set()
    await settling
    unit = make_unit(medium=medium, state=MemoryState.of(state.sections))
    await unit.resume()
    await unit.background.settled()
    assert medium.data == bytes.fromhex("a55a") * (3 * MIB // 2)


async def test_a_format_that_was_broken_off_has_failed_until_another_one_succeeds() -> None:
    medium, state = await killed(*FORMAT)
    unit = make_unit(medium=medium, state=state)
    initiator = settled(unit)
    await unit.resume()
    assert medium.calls == []
    assert (await told(initiator, Read10.build(transfer_length=1))).code == CORRUPTED
    assert (await sent(initiator, FormatUnit.build())).status is Status.GOOD
    assert make_unit(medium=medium, state=MemoryState.of(state.sections)).failure is None


@pytest.mark.parametrize("ause", [0, 1])
def test_a_sanitize_that_failed_has_failed_after_a_restart_too(ause: int) -> None:
    medium, state = FaultyMedium(), MemoryState()
    medium.errors["write_zeroes"] = errno.EIO
    Initiator(make_unit(medium=medium, state=state)).check(SanitizeBlockErase.build(ause=ause))
    medium.errors.clear()
    state = MemoryState.of(state.sections)
    unit = make_unit(medium=medium, state=state)
    ended(unit.resume())
    initiator = Initiator(unit)
    assert initiator.check(Write10.build(transfer_length=1), bytes(512)).code == SANITIZE_FAILED
    initiator.good(Inquiry.build())
    if ause:
        initiator.good(SanitizeExitFailureMode.build())
    else:
        assert initiator.check(SanitizeExitFailureMode.build()).code == INVALID_FIELD_IN_CDB
        initiator.good(SanitizeBlockErase.build())
    initiator.good("00")
    assert make_unit(medium=medium, state=MemoryState.of(state.sections)).failure is None


class FullState(MemoryState):
    def section(self, name: str) -> MemorySection:
        return FullSection(self.sections, name) if name == "operation" else super().section(name)


class FullSection(MemorySection):
    """Fails from the save of this number on."""

    first = 0

    async def save(self, data: bytes) -> None:
        self.first -= 1
        if self.first < 0:
            raise OSError(errno.ENOSPC, "full")
        await super().save(data)


@pytest.mark.parametrize(("cdb", "data"), [OVERWRITE, BLOCK_ERASE, FORMAT])
async def test_what_cannot_be_kept_does_not_begin(cdb: bytes, data: bytes) -> None:
    medium = FaultyMedium()
    initiator = settled(make_unit(medium=medium, state=FullState()))
    assert (await told_of(initiator, cdb, data)).code == (7, 0x27, 7)
    assert (await sent(initiator, bytes(6))).status is Status.GOOD
    assert medium.calls == []


async def told_of(initiator: Initiator, cdb: bytes, data: bytes) -> ParsedSense:
    return parse_sense((await sent(initiator, cdb, data)).sense)


def test_one_whose_end_cannot_be_kept_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or it would begin again one day, over what was written since."""
    monkeypatch.setattr(FullSection, "first", 1)
    initiator = Initiator(make_unit(state=FullState()))
    assert initiator.check(SanitizeBlockErase.build()).code == SANITIZE_FAILED
    assert initiator.check(Write10.build(transfer_length=1), bytes(512)).code == SANITIZE_FAILED


async def test_one_that_no_longer_fits_the_unit_has_failed() -> None:
    medium, state = await killed(
        SanitizeOverwrite.build(immed=1, parameter_list_length=1028),
        bytes.fromhex("01 00 0400") + bytes(1024),
        logical_block_length=1024,
    )
    unit = make_unit(medium=medium, state=state)
    await unit.resume()
    assert (await told(settled(unit))).code == SANITIZE_FAILED


async def test_a_unit_without_a_state_sanitizes_all_the_same() -> None:
    initiator = settled(make_unit())
    assert (await sent(initiator, *BLOCK_ERASE)).status is Status.GOOD
    await initiator.unit.background.settled()
    assert (await sent(initiator, bytes(6))).status is Status.GOOD


# ---- beside EXTENDED COPY ------------------------------------------------------------------------------

_LENGTH = 3 * MIB // 512


def _cscd(naa: int) -> bytes:
    return bytes.fromhex("e4 00 0000 01 03 00 08") + naa.to_bytes(8) + bytes(13) + bytes.fromhex("000200")


def copies(source: Initiator, destination: LogicalUnit) -> tuple[bytes, bytes]:
    """A copy of the whole disk."""
    named = _cscd(source.unit.identity.naa) + _cscd(destination.identity.naa)
    segment = bytes.fromhex("02 00 0018 0000 0001 0000") + _LENGTH.to_bytes(2) + bytes(16)
    parameters = bytes.fromhex("00 18 0040 00000000 0000001c 00000000") + named + segment
    return ExtendedCopy.build(parameter_list_length=len(parameters)), parameters


def two_disks() -> tuple[Initiator, FaultyMedium, FaultyMedium]:
    """LUN 0, and LUN 1, whose writes wait."""
    one, other = FaultyMedium(3 * MIB), FaultyMedium(3 * MIB)
    initiator = settled(LogicalUnit(one, IDENTITY, state=MemoryState()))
    second = LogicalUnit(other, Identity("other"), state=MemoryState())
    initiator.target.add(1, second)
    for unit in (initiator.unit, second):
        unit.add_nexus(initiator.nexus)
        while unit.attentions.take(initiator.nexus):
            pass
    one.data[:] = b"\1" * (3 * MIB)
    return initiator, one, other


async def test_a_sanitize_ends_a_copy_into_its_unit_and_nothing_of_the_copy_stays() -> None:
    initiator, _, other = two_disks()
    other.gate = asyncio.Event()
    copying = asyncio.create_task(sent(initiator, *copies(initiator, initiator.target.luns[1])))
    await other.called.wait()
    assert other.calls == [("write", 0, MIB)]
    erasing = asyncio.create_task(initiator.target.execute(initiator.task(BLOCK_ERASE[0], lun=1)))
    for _ in range(5):
        await asyncio.sleep(0)
    assert other.calls == [("write", 0, MIB)]
    other.gate.set()
    response = await copying
    assert parse_sense(response.sense).key == COPY_ABORTED
    assert (await erasing).status is Status.GOOD
    await initiator.target.luns[1].background.settled()
    assert other.calls[1:] == [("write_zeroes", 0, 3 * MIB, True), ("flush",)]
    assert not any(other.data)


@pytest.mark.parametrize("lun", [0, 1])
async def test_a_copy_from_or_into_a_unit_that_is_sanitized_is_refused(lun: int) -> None:
    initiator, one, other = two_disks()
    busy = (one, other)[lun]
    busy.gate = asyncio.Event()
    await initiator.target.execute(initiator.task(BLOCK_ERASE[0], lun=lun))
    cdb, parameters = copies(initiator, initiator.target.luns[1])
    response = await initiator.target.execute(initiator.task(cdb, parameters, lun=1 - lun))
    assert parse_sense(response.sense).code == SANITIZING
    busy.gate.set()
    await initiator.target.luns[lun].background.settled()
    assert not any(busy.data)
    assert ("write", 0, MIB) not in (one, other)[1 - lun].calls


async def test_a_copy_out_of_a_unit_that_is_sanitized_meanwhile_ends() -> None:
    initiator, one, other = two_disks()
    other.gate = asyncio.Event()
    copying = asyncio.create_task(sent(initiator, *copies(initiator, initiator.target.luns[1])))
    await other.called.wait()
    one.gate = asyncio.Event()
    await sent(initiator, *BLOCK_ERASE)
    other.gate.set()
    assert parse_sense((await copying).sense).key == COPY_ABORTED
    one.gate.set()
    await initiator.unit.background.settled()
    assert not any(one.data)
    assert other.data == b"\1" * MIB + bytes(2 * MIB)
