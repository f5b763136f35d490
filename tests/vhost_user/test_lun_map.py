"""Units coming and going, and the gates of their fast path."""

import asyncio
import struct
from collections.abc import AsyncIterator

import pytest

from tests.vhost_user.conftest import Rig, rig
from tests.vhost_user.driver import TEST_UNIT_READY, address, answer, ask, clear_attention, command, read10, until
from tests.vhost_user.slow_medium import SlowMedium
from vstore.dataplane import GATE_FLUSH, GATE_READ, GATE_WRITE, LunCounters, LunSettings, Volume
from vstore.scsi.commands import SanitizeOverwrite, Verify16
from vstore.scsi.identity import Identity
from vstore.scsi.logical_unit import LogicalUnit
from vstore.scsi.medium import MemoryMedium
from vstore.scsi.task import ITNexus
from vstore.vhost_user.layout import Code

OPEN = GATE_READ | GATE_WRITE | GATE_FLUSH


@pytest.fixture
async def device_rig() -> AsyncIterator[Rig]:
    async with rig(volume=True) as made:
        yield made


def disk(length: int = 1 << 20, **options: object) -> LogicalUnit:
    return LogicalUnit(MemoryMedium(length), Identity("DISK"), **options)  # type: ignore[arg-type]


def gate(device_rig: Rig, lun: int = 0) -> int:
    return device_rig.device.luns[0, lun].gate


async def test_a_gate_is_shut_while_nobody_is_connected(device_rig: Rig) -> None:
    assert gate(device_rig) == 0
    device_rig.endpoint.connected()
    await clear_attention(device_rig)
    assert gate(device_rig) == OPEN
    device_rig.endpoint.disconnected()
    assert gate(device_rig) == 0


async def test_a_gate_opens_when_the_power_on_has_been_told(device_rig: Rig) -> None:
    device_rig.endpoint.connected()
    assert gate(device_rig) == 0
    assert answer(await ask(device_rig, TEST_UNIT_READY)).status == 2
    assert gate(device_rig) == OPEN


async def test_a_unit_attention_shuts_the_gate_until_it_has_been_told(device_rig: Rig) -> None:
    device_rig.endpoint.connected()
    await clear_attention(device_rig)
    device_rig.medium.data.extend(bytes(1 << 20))
    device_rig.endpoint.capacity_changed(0, 0)
    assert gate(device_rig) == 0
    assert answer(await ask(device_rig, read10(0, 1), room=512)).additional == (6, 0x2A, 0x09)
    assert gate(device_rig) == OPEN
    assert device_rig.device.luns[0, 0].blocks == 4096


async def test_a_read_only_unit_has_half_a_gate(device_rig: Rig) -> None:
    device_rig.endpoint.connected()
    device_rig.endpoint.map_lun(0, 1, disk(read_only=True), object())  # type: ignore[arg-type]
    await clear_attention(device_rig, address(lun=1))
    assert gate(device_rig, 1) == GATE_READ | GATE_FLUSH


async def test_settings_are_those_of_the_unit(device_rig: Rig) -> None:
    device_rig.endpoint.map_lun(0, 1, disk(8192, logical_block_length=4096, write_cache=False), object())  # type: ignore[arg-type]
    settings = device_rig.device.luns[0, 1]
    assert (settings.block_shift, settings.blocks, settings.write_through) == (12, 2, True)


async def test_a_unit_that_has_not_heard_yet_that_its_medium_shrank_has_no_fast_path(
    device_rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    device_rig.endpoint.connected()
    lun_set = device_rig.device.lun_set

    def shorter(target: int, lun: int, volume: Volume, settings: LunSettings) -> None:
        if settings.blocks > 1024:
            raise OSError(22, "beyond the volume's end")
        lun_set(target, lun, volume, settings)

    monkeypatch.setattr(device_rig.device, "lun_set", shorter)
    await clear_attention(device_rig)
    assert gate(device_rig) == 0
    del device_rig.medium.data[1 << 19 :]
    device_rig.endpoint.capacity_changed(0, 0)
    await clear_attention(device_rig)
    assert gate(device_rig) == OPEN


async def test_a_unit_counts_what_the_data_plane_served_also_when_it_has_left(device_rig: Rig) -> None:
    unit = disk(8192)
    device_rig.endpoint.map_lun(0, 1, unit, object())  # type: ignore[arg-type]
    device_rig.device.counts[0, 1] = LunCounters(3, 2, 1536, 1024)
    assert unit.statistics.total().reads == 3
    await device_rig.endpoint.unmap_lun(0, 1)
    device_rig.device.counts[0, 1] = LunCounters(9, 9, 9, 9)
    total = unit.statistics.total()
    assert (total.reads, total.writes, total.bytes_read, total.bytes_written) == (3, 2, 1536, 1024)


async def test_stopping_a_unit_shuts_its_gate(device_rig: Rig) -> None:
    device_rig.endpoint.connected()
    await clear_attention(device_rig)
    assert answer(await ask(device_rig, struct.pack("BBBBBB", 0x1B, 0, 0, 0, 0, 0))).status == 0
    assert gate(device_rig) == 0


async def test_a_virtual_machine_that_comes_finds_its_disk_started(device_rig: Rig) -> None:
    device_rig.endpoint.connected()
    await clear_attention(device_rig)
    device_rig.unit.stopped = True
    device_rig.endpoint.disconnected()
    device_rig.endpoint.connected()
    await clear_attention(device_rig)
    assert gate(device_rig) == OPEN


async def test_a_reset_is_a_bus_reset_to_a_unit_of_one_machine(device_rig: Rig) -> None:
    device_rig.endpoint.connected()
    await clear_attention(device_rig)
    device_rig.unit.stopped = True
    device_rig.endpoint.reset()
    assert answer(await ask(device_rig, TEST_UNIT_READY)).additional == (6, 0x29, 0x02)
    assert answer(await ask(device_rig, TEST_UNIT_READY)).status == 0


async def test_a_reset_is_a_lost_nexus_to_a_unit_of_several_machines(device_rig: Rig) -> None:
    other = ITNexus("other machine")
    device_rig.endpoint.connected()
    await clear_attention(device_rig)
    device_rig.unit.add_nexus(other)
    device_rig.unit.attentions.take(other)
    device_rig.endpoint.reset()
    assert answer(await ask(device_rig, TEST_UNIT_READY)).additional == (6, 0x29, 0x07)
    assert device_rig.unit.attentions.none_wait(other)


@pytest.mark.parametrize(("target", "lun"), [(-1, 0), (256, 0), (0, -1), (0, 16384)])
async def test_an_address_that_cannot_be_is_a_clear_error(device_rig: Rig, target: int, lun: int) -> None:
    with pytest.raises(ValueError, match=r"targets are 0\.\.255, LUNs 0\.\.16383"):
        device_rig.endpoint.map_lun(target, lun, disk(), None)


async def test_an_address_that_is_taken_is_a_clear_error(device_rig: Rig) -> None:
    with pytest.raises(ValueError, match="has a logical unit already"):
        device_rig.endpoint.map_lun(0, 0, disk(), None)


async def test_an_address_without_a_unit_is_a_clear_error(device_rig: Rig) -> None:
    with pytest.raises(LookupError, match="no logical unit at target 3, LUN 4"):
        await device_rig.endpoint.unmap_lun(3, 4)
    with pytest.raises(LookupError):
        device_rig.endpoint.capacity_changed(3, 4)


async def test_a_new_unit_is_told_through_its_neighbours(device_rig: Rig) -> None:
    device_rig.endpoint.connected()
    await clear_attention(device_rig)
    device_rig.endpoint.map_lun(0, 1, disk(), None)
    assert answer(await ask(device_rig, TEST_UNIT_READY)).additional == (6, 0x3F, 0x0E)
    assert answer(await ask(device_rig, TEST_UNIT_READY, lun=address(lun=1))).additional == (6, 0x29, 0x01)


async def test_removal_waits_for_the_fast_path_with_the_gate_shut(device_rig: Rig) -> None:
    device_rig.endpoint.connected()
    await clear_attention(device_rig)
    device_rig.device.busy[0, 0] = [1]
    removing = asyncio.create_task(device_rig.endpoint.unmap_lun(0, 0))
    await until(lambda: not gate(device_rig))
    assert answer(await ask(device_rig, TEST_UNIT_READY)).code == 3, "no target is left"
    assert not removing.done()
    with pytest.raises(ValueError, match="has a logical unit already"):
        device_rig.endpoint.map_lun(0, 0, disk(), None)
    with pytest.raises(LookupError):
        await device_rig.endpoint.unmap_lun(0, 0)
    device_rig.device.busy.clear()
    await asyncio.wait_for(removing, 10)
    assert not device_rig.device.luns
    device_rig.endpoint.map_lun(0, 0, disk(), None)


async def test_removal_waits_for_slow_commands_which_end_well(device_rig: Rig) -> None:
    medium = SlowMedium(1 << 20)
    device_rig.endpoint.connected()
    device_rig.endpoint.map_lun(0, 1, LogicalUnit(medium, Identity("SLOW")), None)
    await clear_attention(device_rig, address(lun=1))
    request = device_rig.device.fetch(2, command(read10(0, 1), lun=address(lun=1)), b"", 512)
    await until(lambda: medium.begun)
    removing = asyncio.create_task(device_rig.endpoint.unmap_lun(0, 1))
    await asyncio.sleep(0.01)
    assert not removing.done()
    medium.gate.set()
    await asyncio.wait_for(removing, 10)
    assert answer(request).status == 0


@pytest.mark.parametrize("verb", ["unmap_lun", "settled"])
async def test_nobody_has_to_wait_for_commands_that_do_not_end(
    device_rig: Rig, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    """A guest may verify terabytes, again and again: what asks for its unit, or for the whole process, goes first."""
    monkeypatch.setattr("vstore.vhost_user.request_queue.PATIENCE", 0.01)
    medium = SlowMedium(4 << 20)
    device_rig.endpoint.connected()
    device_rig.endpoint.map_lun(0, 1, LogicalUnit(medium, Identity("SLOW")), None)
    await clear_attention(device_rig, address(lun=1))
    verify = Verify16.build(verification_length=(4 << 20) // 512)
    requests = [device_rig.device.fetch(2, command(verify, lun=address(lun=1)), b"", 0) for _ in range(3)]
    await until(lambda: medium.begun == 3)
    await asyncio.wait_for(getattr(device_rig.endpoint, verb)(0, 1), 10)
    assert [answer(request).code for request in requests] == [Code.BUSY] * 3
    assert medium.ended == 3


async def test_removal_gives_up_a_sanitize_that_would_take_for_days(device_rig: Rig) -> None:
    medium = SlowMedium(4 << 20)
    device_rig.endpoint.connected()
    device_rig.endpoint.map_lun(0, 1, LogicalUnit(medium, Identity("SLOW")), None)
    await clear_attention(device_rig, address(lun=1))
    overwrite = SanitizeOverwrite.build(parameter_list_length=5)
    request = device_rig.device.fetch(2, command(overwrite, lun=address(lun=1)), bytes.fromhex("1f 00 0001 77"), 0)
    await until(lambda: medium.begun)
    removing = asyncio.create_task(device_rig.endpoint.unmap_lun(0, 1))
    await asyncio.sleep(0)
    medium.gate.set()
    await asyncio.wait_for(removing, 10)
    assert answer(request).additional == (3, 0x31, 0x03)
    assert medium.begun == 1


async def test_units_live_on_several_targets(device_rig: Rig) -> None:
    device_rig.endpoint.connected()
    device_rig.endpoint.map_lun(200, 5, disk(), None)
    device_rig.endpoint.map_lun(200, 16383, disk(), None)
    report_luns = struct.pack(">BxxxxxIxx", 0xA0, 256)
    request = await ask(device_rig, report_luns, room=256, lun=address(target=200))
    assert struct.unpack(">I", request.data_in[:4]) == (16,)
