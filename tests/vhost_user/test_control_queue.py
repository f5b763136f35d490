"""Task management functions: what they end, in which order, and what the unit hears; notifications."""

import asyncio
import struct
from collections.abc import AsyncIterator

import pytest

from tests.vhost_user.conftest import Rig, rig
from tests.vhost_user.driver import (
    TEST_UNIT_READY,
    address,
    answer,
    answered,
    ask,
    clear_attention,
    command,
    manage,
    management,
    read10,
    until,
    write10,
)
from tests.vhost_user.fake_device import FakeRequest
from tests.vhost_user.slow_medium import SlowMedium
from vstore.scsi.identity import Identity
from vstore.scsi.logical_unit import LogicalUnit

ABORT_TASK, ABORT_TASK_SET, CLEAR_ACA, CLEAR_TASK_SET = 0, 1, 2, 3
I_T_NEXUS_RESET, LOGICAL_UNIT_RESET, QUERY_TASK, QUERY_TASK_SET = 4, 5, 6, 7
COMPLETE, ABORTED, BAD_TARGET, RESET, SUCCEEDED, REJECTED, INCORRECT_LUN = 0, 2, 3, 4, 10, 11, 12
ENDING = {
    ABORT_TASK: ABORTED,
    ABORT_TASK_SET: ABORTED,
    CLEAR_TASK_SET: ABORTED,
    I_T_NEXUS_RESET: RESET,
    LOGICAL_UNIT_RESET: RESET,
}
LUN1 = address(lun=1)


@pytest.fixture
async def device_rig() -> AsyncIterator[Rig]:
    async with rig(volume=True) as made:
        made.endpoint.connected()
        yield made
        made.endpoint.disconnected()


@pytest.fixture
async def slow(device_rig: Rig) -> AsyncIterator[SlowMedium]:
    """LUN 1: its medium waits."""
    medium = SlowMedium(1 << 20)
    unit = LogicalUnit(medium, Identity("SLOW"))
    device_rig.endpoint.map_lun(0, 1, unit, object())  # type: ignore[arg-type]
    await clear_attention(device_rig, LUN1)
    await clear_attention(device_rig)
    yield medium
    medium.gate.set()
    await until(lambda: medium.begun == medium.ended)


def waiting_read(device_rig: Rig, tag: int, lun: bytes = LUN1) -> FakeRequest:
    return device_rig.device.fetch(2, command(read10(0, 1), lun=lun, tag=tag), b"", 512)


def order(device_rig: Rig, *requests: FakeRequest) -> list[int]:
    """Places on the used ring."""
    return [device_rig.device.answered.index(request) for request in requests]


@pytest.mark.parametrize(("function", "code"), ENDING.items())
async def test_commands_that_a_function_ends_are_on_the_used_ring_before_its_answer(
    device_rig: Rig, slow: SlowMedium, function: int, code: int
) -> None:
    request = waiting_read(device_rig, tag=7)
    await until(lambda: slow.begun)
    function_request = device_rig.device.fetch(0, management(function, lun=LUN1, tag=7), response=1)
    await answered(function_request)
    assert function_request.response == bytes([COMPLETE])
    assert answer(request).code == code
    assert order(device_rig, request, function_request) == sorted(order(device_rig, request, function_request))


async def test_abort_task_ends_the_command_with_that_tag_alone(device_rig: Rig, slow: SlowMedium) -> None:
    first, second = waiting_read(device_rig, tag=1), waiting_read(device_rig, tag=2)
    await until(lambda: slow.begun == 2)
    assert await manage(device_rig, ABORT_TASK, lun=LUN1, tag=2) == COMPLETE
    assert answer(second).code == ABORTED
    assert first.response is None
    slow.gate.set()
    assert answer(await answered(first)).code == 0


async def test_aborting_a_command_that_is_not_there_is_complete(device_rig: Rig, slow: SlowMedium) -> None:
    request = waiting_read(device_rig, tag=1)
    await until(lambda: slow.begun)
    assert await manage(device_rig, ABORT_TASK, lun=LUN1, tag=99) == COMPLETE
    assert request.response is None


@pytest.mark.parametrize("function", [ABORT_TASK_SET, CLEAR_TASK_SET, LOGICAL_UNIT_RESET])
async def test_commands_of_another_unit_are_not_touched(device_rig: Rig, slow: SlowMedium, function: int) -> None:
    request = waiting_read(device_rig, tag=1)
    await until(lambda: slow.begun)
    assert await manage(device_rig, function) == COMPLETE
    assert request.response is None


async def test_a_nexus_reset_ends_commands_of_every_unit_of_the_target_and_tells_each(
    device_rig: Rig, slow: SlowMedium
) -> None:
    request = waiting_read(device_rig, tag=1)
    await until(lambda: slow.begun)
    assert await manage(device_rig, I_T_NEXUS_RESET, lun=address()) == COMPLETE
    assert answer(request).code == RESET
    for lun in (address(), LUN1):
        assert answer(await ask(device_rig, TEST_UNIT_READY, lun=lun)).additional == (6, 0x29, 0x07)


async def test_a_unit_reset_is_told_by_that_unit_alone(device_rig: Rig, slow: SlowMedium) -> None:
    del slow
    assert await manage(device_rig, LOGICAL_UNIT_RESET, lun=LUN1) == COMPLETE
    assert answer(await ask(device_rig, TEST_UNIT_READY)).status == 0
    assert answer(await ask(device_rig, TEST_UNIT_READY, lun=LUN1)).additional == (6, 0x29, 0x03)


async def test_a_function_waits_until_an_aborted_access_has_really_ended(device_rig: Rig, slow: SlowMedium) -> None:
    """Else a write that was reported as aborted could still reach the medium."""
    slow.stubborn = asyncio.Event()
    request = device_rig.device.fetch(2, command(write10(0, 1), lun=LUN1), bytes(512))
    await until(lambda: slow.begun)
    function_request = device_rig.device.fetch(0, management(ABORT_TASK_SET, lun=LUN1), response=1)
    await asyncio.sleep(0.02)
    assert request.response is None
    assert function_request.response is None
    slow.stubborn.set()
    await answered(function_request)
    assert answer(request).code == ABORTED


@pytest.mark.parametrize("function", [ABORT_TASK, ABORT_TASK_SET, LOGICAL_UNIT_RESET])
async def test_a_function_waits_for_the_fast_path_with_its_gate_shut(
    device_rig: Rig, slow: SlowMedium, function: int
) -> None:
    del slow
    device = device_rig.device
    assert device.luns[0, 1].gate
    device.busy[0, 1] = [7]
    request = device.fetch(0, management(function, lun=LUN1, tag=7), response=1)
    await until(lambda: not device.luns[0, 1].gate)
    assert device.luns[0, 0].gate, "the other unit goes on"
    await asyncio.sleep(0.02)
    assert request.response is None
    device.busy[0, 1] = []
    await answered(request)
    await clear_attention(device_rig, LUN1)
    assert device.luns[0, 1].gate, "and it opens again"


async def test_abort_task_does_not_wait_for_other_fast_commands(device_rig: Rig, slow: SlowMedium) -> None:
    del slow
    device_rig.device.busy[0, 1] = [8]
    assert await manage(device_rig, ABORT_TASK, lun=LUN1, tag=7) == COMPLETE
    device_rig.device.busy.clear()


async def test_what_was_made_available_before_a_function_is_ended_by_it(device_rig: Rig, slow: SlowMedium) -> None:
    """The driver filled the request queue first, but the loop has not looked there yet."""
    unseen = device_rig.device.make_available(2, command(read10(0, 1), lun=LUN1), b"", 512)
    function_request = device_rig.device.fetch(0, management(ABORT_TASK_SET, lun=LUN1), response=1)
    await answered(function_request)
    assert answer(unseen).code == ABORTED
    assert slow.begun == slow.ended


async def test_a_fast_command_that_failed_meanwhile_is_ended_too(
    device_rig: Rig, slow: SlowMedium, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = device_rig.device
    device.busy[0, 1] = [7]
    function_request = device.fetch(0, management(LOGICAL_UNIT_RESET, lun=LUN1), response=1)
    await until(lambda: not device.luns[0, 1].gate)
    failed = device.make_available(2, command(read10(0, 1), lun=LUN1, tag=7), b"", 512)
    in_flight = device.lun_in_flight

    def fail(target: int, lun: int, tag: int | None = None) -> int:
        if device.busy[0, 1]:
            device.busy[0, 1] = []
            device.fetch_all()
        return in_flight(target, lun, tag)

    monkeypatch.setattr(device, "lun_in_flight", fail)
    await answered(function_request)
    assert answer(failed).code == RESET
    assert slow.begun == slow.ended


@pytest.mark.parametrize(("function", "tag"), [(QUERY_TASK, 7), (QUERY_TASK_SET, 0)])
async def test_a_query_finds_a_slow_command_and_leaves_it_alone(
    device_rig: Rig, slow: SlowMedium, function: int, tag: int
) -> None:
    assert await manage(device_rig, function, lun=LUN1, tag=tag) == COMPLETE
    request = waiting_read(device_rig, tag=7)
    await until(lambda: slow.begun)
    assert await manage(device_rig, function, lun=LUN1, tag=tag) == SUCCEEDED
    assert request.response is None
    assert await manage(device_rig, QUERY_TASK, lun=LUN1, tag=8) == COMPLETE


async def test_a_query_finds_a_fast_command(device_rig: Rig, slow: SlowMedium) -> None:
    del slow
    device_rig.device.busy[0, 1] = [7]
    assert await manage(device_rig, QUERY_TASK, lun=LUN1, tag=7) == SUCCEEDED
    assert await manage(device_rig, QUERY_TASK, lun=LUN1, tag=8) == COMPLETE
    assert await manage(device_rig, QUERY_TASK_SET, lun=LUN1) == SUCCEEDED
    device_rig.device.busy.clear()


@pytest.mark.parametrize("function", [CLEAR_ACA, 8, 0xFFFFFFFF])
async def test_a_function_that_is_not_supported_is_rejected(device_rig: Rig, function: int) -> None:
    assert await manage(device_rig, function) == REJECTED


@pytest.mark.parametrize("function", [*ENDING, QUERY_TASK, QUERY_TASK_SET])
async def test_a_function_for_nobody_says_who_is_missing(device_rig: Rig, function: int) -> None:
    assert await manage(device_rig, function, lun=address(target=5)) == BAD_TARGET
    assert await manage(device_rig, function, lun=bytes(8)) == BAD_TARGET
    missing = COMPLETE if function == I_T_NEXUS_RESET else INCORRECT_LUN
    assert await manage(device_rig, function, lun=address(lun=9)) == missing


async def test_the_report_luns_unit_can_be_reset_too(device_rig: Rig) -> None:
    assert await manage(device_rig, LOGICAL_UNIT_RESET, lun=bytes.fromhex("c101000000000000")) == COMPLETE


@pytest.mark.parametrize("kind", [1, 2], ids=["query", "subscribe"])
async def test_asynchronous_notifications_are_answered_with_none(device_rig: Rig, kind: int) -> None:
    for lun, code in [(address(), 0), (address(target=3), BAD_TARGET), (address(lun=4), INCORRECT_LUN)]:
        request = device_rig.device.fetch(0, struct.pack("<I8sI", kind, lun, 0xFFFF), response=5)
        assert (await answered(request)).response == struct.pack("<IB", 0, code)


@pytest.mark.parametrize(
    ("header", "response"),
    [
        (struct.pack("<I", 3), 64),
        (struct.pack("<I", 0xFFFFFFFF) + bytes(20), 64),
        (b"", 1),
        (management(ABORT_TASK)[:-1], 1),
        (management(ABORT_TASK), 0),
        (struct.pack("<I8sI", 1, address(), 0)[:-1], 5),
        (struct.pack("<I8sI", 1, address(), 0), 4),
    ],
)
async def test_a_malformed_control_request_breaks_the_control_queue_alone(
    device_rig: Rig, header: bytes, response: int
) -> None:
    await answered(device_rig.device.fetch(0, header, response=response))
    assert device_rig.device.rings[0].broken
    await clear_attention(device_rig)
    assert not any(ring.broken for ring in device_rig.device.rings[1:])


async def test_two_functions_at_once_both_end(device_rig: Rig, slow: SlowMedium) -> None:
    request = waiting_read(device_rig, tag=1)
    await until(lambda: slow.begun)
    functions = [
        device_rig.device.fetch(0, management(function, lun=LUN1, tag=1), response=1)
        for function in (ABORT_TASK, LOGICAL_UNIT_RESET)
    ]
    for function in functions:
        assert (await answered(function)).response == bytes([COMPLETE])
    assert answer(request).code in (ABORTED, RESET)
    await clear_attention(device_rig, LUN1)
    assert device_rig.device.luns[0, 1].gate
