"""Commands that the fast path leaves: how each reaches the model, and what the driver is answered."""

import asyncio
import errno
import struct
from collections.abc import AsyncIterator

import pytest

from tests.vhost_user.conftest import Rig, rig
from tests.vhost_user.driver import (
    REQUEST_QUEUE,
    TEST_UNIT_READY,
    address,
    answer,
    answered,
    ask,
    clear_attention,
    command,
    read10,
    until,
    write10,
)
from tests.vhost_user.slow_medium import SlowMedium
from vstore.scsi.identity import Identity
from vstore.scsi.logical_unit import LogicalUnit
from vstore.scsi.task import Task

OK, OVERRUN, ABORTED, BAD_TARGET, RESET, FAILURE = 0, 1, 2, 3, 4, 9
GOOD, CHECK_CONDITION = 0, 2


@pytest.fixture
async def device_rig() -> AsyncIterator[Rig]:
    async with rig() as made:
        made.endpoint.connected()
        await clear_attention(made)
        made.device.answered.clear()
        yield made
        made.endpoint.disconnected()


@pytest.fixture
async def slow(device_rig: Rig) -> AsyncIterator[SlowMedium]:
    """A second unit, LUN 1, whose medium waits."""
    medium = SlowMedium(1 << 20)
    device_rig.endpoint.map_lun(0, 1, LogicalUnit(medium, Identity("SLOW")), None)
    await clear_attention(device_rig, address(lun=1))
    await clear_attention(device_rig)
    yield medium
    medium.gate.set()
    await until(lambda: medium.begun == medium.ended)


async def test_the_first_command_of_a_new_virtual_machine_hears_of_the_power_on() -> None:
    async with rig() as made:
        made.endpoint.connected()
        told = answer(await ask(made, TEST_UNIT_READY))
        assert (told.code, told.status, told.additional) == (OK, CHECK_CONDITION, (6, 0x29, 1))
        assert answer(await ask(made, TEST_UNIT_READY)).status == GOOD


async def test_data_in_reaches_the_drivers_buffer(device_rig: Rig) -> None:
    device_rig.medium.data[1024:2048] = bytes(range(256)) * 4
    request = await ask(device_rig, read10(2, 2), room=1024)
    assert bytes(request.data_in) == bytes(range(256)) * 4
    assert (request.written, answer(request).residual, answer(request).status) == (1024, 0, GOOD)


async def test_data_out_reaches_the_medium(device_rig: Rig) -> None:
    request = await ask(device_rig, write10(4, 1), data_out=b"x" * 512)
    assert device_rig.medium.data[2048:2560] == b"x" * 512
    assert (request.written, answer(request).residual, answer(request).status) == (0, 0, GOOD)


async def test_the_residual_is_what_was_not_transferred(device_rig: Rig) -> None:
    inquiry = struct.pack(">BBBHB", 0x12, 0, 0, 36, 0)
    request = await ask(device_rig, inquiry, room=255)
    assert (request.written, answer(request).residual) == (36, 255 - 36)
    request = await ask(device_rig, write10(0, 1), data_out=bytes(1536))
    assert answer(request).residual == 1024
    request = await ask(device_rig, read10(1 << 20, 1), room=512)
    assert (answer(request).status, answer(request).residual) == (CHECK_CONDITION, 512)


@pytest.mark.parametrize(("cdb", "data_out", "room"), [(read10(0, 2), 0, 512), (write10(0, 2), 512, 0)])
async def test_a_buffer_shorter_than_the_cdb_says_is_an_overrun(
    device_rig: Rig, cdb: bytes, data_out: int, room: int
) -> None:
    request = await ask(device_rig, cdb, data_out=bytes(data_out), room=room)
    assert (answer(request).code, answer(request).residual, request.written) == (OVERRUN, max(data_out, room), 0)


async def test_data_in_both_directions_is_a_failure(device_rig: Rig) -> None:
    request = await ask(device_rig, read10(0, 1), data_out=bytes(512), room=512)
    assert answer(request).code == FAILURE


@pytest.mark.parametrize("attribute", [4, 7, 255])
async def test_a_task_attribute_that_does_not_exist_is_a_failure(device_rig: Rig, attribute: int) -> None:
    request = device_rig.device.fetch(REQUEST_QUEUE, command(TEST_UNIT_READY, attribute=attribute))
    assert answer(await answered(request)).code == FAILURE


@pytest.mark.parametrize(
    "lun", [bytes(8), address(target=9), b"\x01\x00\x80\x00\0\0\0\0", b"\x01\x00\x40\x00\0\0\0\x01", b"\xff" * 8]
)
async def test_an_address_that_names_no_target_is_a_bad_target(device_rig: Rig, lun: bytes) -> None:
    assert answer(await ask(device_rig, TEST_UNIT_READY, lun=lun)).code == BAD_TARGET


@pytest.mark.parametrize("lun", [b"\x01\0\0\0\0\0\0\0", b"\x01\0\x40\0\0\0\0\0"], ids=["peripheral", "flat space"])
async def test_both_ways_to_address_a_unit_are_understood(device_rig: Rig, lun: bytes) -> None:
    assert answer(await ask(device_rig, TEST_UNIT_READY, lun=lun)).status == GOOD


async def test_a_lun_without_a_unit_is_not_supported(device_rig: Rig) -> None:
    told = answer(await ask(device_rig, TEST_UNIT_READY, lun=address(lun=7)))
    assert (told.code, told.status, told.additional) == (OK, CHECK_CONDITION, (5, 0x25, 0))


async def test_report_luns_answers_at_the_well_known_unit(device_rig: Rig) -> None:
    report_luns = struct.pack(">BxxxxxIxx", 0xA0, 256)
    request = await ask(device_rig, report_luns, room=256, lun=bytes.fromhex("c101000000000000"))
    assert bytes(request.data_in[:16]) == bytes.fromhex("00000008000000000000000000000000")


@pytest.mark.parametrize(("header", "response"), [(50, 108), (0, 108), (51, 107), (51, 0)])
async def test_a_request_too_short_for_its_structures_breaks_the_ring(
    device_rig: Rig, header: int, response: int
) -> None:
    request = device_rig.device.fetch(3, command(TEST_UNIT_READY)[:header], response=response)
    await answered(request)
    assert device_rig.device.rings[3].broken
    assert request not in device_rig.device.answered
    assert not device_rig.device.rings[3].in_flight, "it would never stop"


@pytest.mark.parametrize(("cdb", "data_out", "room"), [(read10(0, 1), 0, 512), (write10(0, 1), 512, 0)])
async def test_guest_memory_that_went_away_breaks_its_ring_alone(
    device_rig: Rig, cdb: bytes, data_out: int, room: int
) -> None:
    device_rig.device.memory_gone = True
    await answered(device_rig.device.fetch(2, command(cdb), bytes(data_out), room))
    assert [ring.broken for ring in device_rig.device.rings] == [False, False, True, False, False, False]
    device_rig.device.memory_gone = False
    request = device_rig.device.fetch(3, command(TEST_UNIT_READY))
    assert answer(await answered(request)).status == GOOD


async def test_a_batch_is_completed_in_one_call(device_rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    complete = device_rig.device.complete
    monkeypatch.setattr(device_rig.device, "complete", lambda batch: (calls.append(len(batch)), complete(batch)))
    requests = [device_rig.device.make_available(2, command(TEST_UNIT_READY)) for _ in range(10)]
    device_rig.device.fetch_all()
    for request in requests:
        await answered(request)
    assert calls == [10]


async def test_a_command_that_waits_holds_up_no_other(device_rig: Rig, slow: SlowMedium) -> None:
    waiting = device_rig.device.fetch(2, command(read10(0, 1), lun=address(lun=1)), b"", 512)
    await until(lambda: slow.begun)
    assert answer(await ask(device_rig, TEST_UNIT_READY)).status == GOOD
    assert waiting.response is None
    slow.data[:512] = b"y" * 512
    slow.gate.set()
    await answered(waiting)
    assert bytes(waiting.data_in) == b"y" * 512


async def test_a_command_may_wait_more_than_once(device_rig: Rig, slow: SlowMedium) -> None:
    """VERIFY with BYTCHK reads, compares, and reads on: every await but the first runs in an asyncio task."""
    slow.data[:] = b"z" * len(slow.data)
    verify = struct.pack(">BBIBHB", 0x2F, 0x02, 0, 0, 1024, 0)
    request = device_rig.device.fetch(2, command(verify, lun=address(lun=1)), b"z" * 524288)
    await until(lambda: slow.begun)
    slow.gate.set()
    assert answer(await answered(request)).status == GOOD


async def test_an_error_of_the_medium_that_comes_late_is_still_told(device_rig: Rig, slow: SlowMedium) -> None:
    async def fail(offset: int, length: int) -> bytes:
        await slow.gate.wait()
        raise OSError(errno.EIO, f"{length} bytes at {offset}")

    slow.read = fail  # type: ignore[method-assign]
    request = device_rig.device.fetch(2, command(read10(0, 1), lun=address(lun=1)), b"", 512)
    await asyncio.sleep(0)
    slow.gate.set()
    assert answer(await answered(request)).additional == (3, 0x11, 0)


async def test_a_defect_in_the_model_fails_one_command(
    device_rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def defect(_: Task) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(device_rig.endpoint.targets[0], "execute", defect)
    assert answer(await ask(device_rig, TEST_UNIT_READY)).code == FAILURE
    monkeypatch.undo()
    assert answer(await ask(device_rig, TEST_UNIT_READY)).status == GOOD
    assert "ZeroDivisionError" in caplog.text


async def test_abort_ends_what_waits_and_refuses_what_still_comes(device_rig: Rig, slow: SlowMedium) -> None:
    waiting = device_rig.device.fetch(2, command(read10(0, 1), lun=address(lun=1)), b"", 512)
    await until(lambda: slow.begun)
    unseen = device_rig.device.fetch(2, command(write10(0, 1)), b"q" * 512)
    await device_rig.endpoint.abort()
    assert [answer(request).code for request in (waiting, unseen)] == [RESET, RESET]
    assert not any(device_rig.medium.data), "the second was never executed"
    device_rig.endpoint.reset()
    await clear_attention(device_rig)


async def test_a_command_aborted_in_the_turn_in_which_it_began_ends_in_order(device_rig: Rig, slow: SlowMedium) -> None:
    """Its asyncio task has not run yet, and its coroutine already waits."""
    request = device_rig.device.fetch(2, command(read10(0, 1), lun=address(lun=1)), b"", 512)
    device_rig.endpoint._take_all()
    await device_rig.endpoint.abort()
    assert answer(request).code == RESET
    assert slow.begun == slow.ended == 1
    device_rig.endpoint.reset()
