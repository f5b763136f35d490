"""ScsiDriver against a live endpoint: many commands in flight, task management, events, and back-ends that vanish."""

import asyncio
import os
import select
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from formats.memory import Memory
from tests.client.fake_backend import fake_backend
from tests.client.live import LiveEndpoint
from vstore.client import (
    BackendGone,
    BackendTimeout,
    DriverSettings,
    Response,
    ScsiDriver,
    TaskManagementFunction,
    VstoreDevice,
)
from vstore.client.errors import RingFull
from vstore.client.transport import TransportSettings
from vstore.client.virtio_scsi import EventKind, ResetReason, encode_lun
from vstore.scsi.identity import Identity
from vstore.scsi.logical_unit import LogicalUnit
from vstore.scsi.medium import MemoryMedium

LENGTH = 1 << 20
LUN = encode_lun(0, 0)
STALLED = encode_lun(0, 1)
F = TaskManagementFunction


def read10(lba: int, count: int) -> bytes:
    return struct.pack(">BBIBHB", 0x28, 0, lba, 0, count, 0)


def write10(lba: int, count: int) -> bytes:
    return struct.pack(">BBIBHB", 0x2A, 0, lba, 0, count, 0)


@pytest.fixture
def live(tmp_path: Path) -> Iterator[LiveEndpoint]:
    with LiveEndpoint(tmp_path / "live.sock", request_queues=4, threads=2) as live:
        live.map(Memory(LENGTH))
        yield live


class StalledMedium(MemoryMedium):
    """Reads end only after `go_on`."""

    def __init__(self, live: LiveEndpoint) -> None:
        super().__init__(LENGTH)
        self._live = live
        self._going_on = live.call(asyncio.Event)

    async def read(self, offset: int, length: int) -> bytes:
        await self._going_on.wait()
        return await super().read(offset, length)

    def go_on(self) -> None:
        self._live.call(self._going_on.set)


@pytest.fixture
def stalled(live: LiveEndpoint) -> Iterator[tuple[ScsiDriver, StalledMedium]]:
    """A unit whose reads wait, at STALLED, and a driver that has taken its unit attention."""
    medium = StalledMedium(live)
    unit = LogicalUnit(medium, Identity("STALLED"))
    live.call(lambda: live.endpoint.map_lun(0, 1, unit, None))
    with ScsiDriver(live.path) as driver:
        while driver.wait(driver.submit(STALLED, bytes(6)), 10).status:
            pass
        yield driver, medium
        medium.go_on()


@pytest.fixture
def driver(live: LiveEndpoint) -> Iterator[ScsiDriver]:
    with ScsiDriver(live.path, DriverSettings(request_queues=4)) as driver:
        while driver.wait(driver.submit(LUN, bytes(6)), 10).status:
            pass
        yield driver


def test_many_commands_in_flight_on_all_queues_each_get_their_own_data(driver: ScsiDriver, live: LiveEndpoint) -> None:
    contents = Random(1).randbytes(LENGTH)
    live.disks[0, 0].volume.write(0, contents)
    rng = Random(2)
    for _ in range(20):
        lbas = [rng.randrange(2040) for _ in range(200)]
        pending = [
            driver.submit(LUN, read10(lba, 8), data_in_length=4096, queue=index % 4, publish=False)
            for index, lba in enumerate(lbas)
        ]
        for queue in range(4):
            driver.kick(queue)
        for lba, command in zip(lbas, pending, strict=True):
            assert driver.wait(command, 10).data_in == contents[lba * 512 :][:4096]
    assert driver.in_flight == 0


def test_a_full_ring_says_so_and_loses_nothing(driver: ScsiDriver) -> None:
    pending = [driver.submit(LUN, bytes(6), publish=False) for _ in range(128)]
    with pytest.raises(RingFull):
        driver.submit(LUN, bytes(6))
    driver.kick()
    assert [driver.wait(command, 10).status for command in pending] == [0] * 128


def test_an_event_loop_may_wait_for_the_driver(driver: ScsiDriver) -> None:
    pending = driver.submit(LUN, read10(0, 1), data_in_length=512)
    assert select.select([driver.transport.fileno()], [], [], 10)[0]
    while not pending.done:
        driver.poll(1)
    assert pending.result.status == 0


@pytest.mark.parametrize(
    ("function", "response"),
    [
        (F.ABORT_TASK, Response.OK),
        (F.ABORT_TASK_SET, Response.OK),
        (F.CLEAR_TASK_SET, Response.OK),
        (F.LOGICAL_UNIT_RESET, Response.OK),
        (F.I_T_NEXUS_RESET, Response.OK),
        (F.QUERY_TASK, Response.OK),
        (F.QUERY_TASK_SET, Response.OK),
        (F.CLEAR_ACA, Response.FUNCTION_REJECTED),
    ],
)
def test_every_task_management_function_is_answered_on_an_idle_unit(
    driver: ScsiDriver, function: F, response: Response
) -> None:
    assert driver.wait(driver.manage(function, LUN, 1), 10) == response


@pytest.mark.parametrize("function", [F.ABORT_TASK_SET, F.CLEAR_TASK_SET, F.LOGICAL_UNIT_RESET, F.I_T_NEXUS_RESET])
@pytest.mark.parametrize("opcode", [0x28, 0x2F], ids=["fast path", "slow path"])
def test_commands_in_flight_are_on_the_used_ring_before_the_function_completes(
    driver: ScsiDriver, function: F, opcode: int
) -> None:
    for _ in range(5):
        room = 8192 if opcode == 0x28 else 0
        commands = [
            driver.submit(LUN, bytes([opcode]) + read10(index, 16)[1:], data_in_length=room, queue=index % 4)
            for index in range(100)
        ]
        management = driver.manage(function, LUN)
        assert driver.wait(management, 10) == Response.OK
        assert all(command.done for command in commands)
        ends = {command.result.response for command in commands}
        assert ends <= {Response.OK, Response.ABORTED, Response.RESET}


@pytest.mark.parametrize(
    ("function", "response", "fate"),
    [
        (F.ABORT_TASK, Response.OK, [None, Response.ABORTED, None]),
        (F.ABORT_TASK_SET, Response.OK, [Response.ABORTED] * 3),
        (F.CLEAR_TASK_SET, Response.OK, [Response.ABORTED] * 3),
        (F.LOGICAL_UNIT_RESET, Response.OK, [Response.RESET] * 3),
        (F.I_T_NEXUS_RESET, Response.OK, [Response.RESET] * 3),
        (F.QUERY_TASK, Response.FUNCTION_SUCCEEDED, [None] * 3),
        (F.QUERY_TASK_SET, Response.FUNCTION_SUCCEEDED, [None] * 3),
        (F.CLEAR_ACA, Response.FUNCTION_REJECTED, [None] * 3),
    ],
)
def test_what_becomes_of_commands_that_wait(
    stalled: tuple[ScsiDriver, StalledMedium], function: F, response: Response, fate: list[Response | None]
) -> None:
    driver, medium = stalled
    commands = [driver.submit(STALLED, read10(0, 1), data_in_length=512) for _ in fate]
    assert driver.wait(driver.manage(function, STALLED, commands[1].tag), 10) == response
    assert [command.result.response if command.done else None for command in commands] == fate
    medium.go_on()
    ends = [driver.wait(command, 10).response for command in commands]
    assert ends == [Response.OK if end is None else end for end in fate]


def test_a_reset_is_told_as_a_unit_attention_and_the_data_stays(driver: ScsiDriver) -> None:
    driver.wait(driver.submit(LUN, write10(3, 1), b"\x33" * 512), 10)
    driver.wait(driver.manage(F.LOGICAL_UNIT_RESET, LUN), 10)
    told = driver.wait(driver.submit(LUN, read10(3, 1), data_in_length=512), 10)
    assert (told.status, told.sense[2] & 0xF, told.sense[12]) == (2, 6, 0x29)
    assert driver.wait(driver.submit(LUN, read10(3, 1), data_in_length=512), 10).data_in == b"\x33" * 512


def test_task_management_for_nobody_names_what_is_missing(driver: ScsiDriver) -> None:
    assert driver.wait(driver.manage(F.LOGICAL_UNIT_RESET, encode_lun(7, 0)), 10) == Response.BAD_TARGET
    assert driver.wait(driver.manage(F.LOGICAL_UNIT_RESET, encode_lun(0, 7)), 10) == Response.INCORRECT_LUN


def test_a_mapped_unit_is_announced_and_told_to_the_others(driver: ScsiDriver, live: LiveEndpoint) -> None:
    live.map(Memory(LENGTH), lun=5, serial="NEW")
    event = driver.wait_event(10)
    assert (event.kind, event.reason, event.lun) == (EventKind.TRANSPORT_RESET, ResetReason.RESCAN, encode_lun(0, 5))
    told = driver.wait(driver.submit(LUN, bytes(6)), 10)
    assert (told.sense[2] & 0xF, told.sense[12:14]) == (6, b"\x3f\x0e")


def test_a_removed_unit_is_announced_and_gone(driver: ScsiDriver, live: LiveEndpoint) -> None:
    live.map(Memory(LENGTH), lun=5, serial="SHORT")
    driver.wait_event(10)
    live.unmap(lun=5)
    event = driver.wait_event(10)
    assert (event.kind, event.reason, event.lun) == (EventKind.TRANSPORT_RESET, ResetReason.REMOVED, encode_lun(0, 5))
    absent = driver.wait(driver.submit(encode_lun(0, 5), bytes(6)), 10)
    assert (absent.status, absent.sense[12]) == (2, 0x25)


def test_removing_a_unit_with_commands_in_flight_completes_them_all(driver: ScsiDriver, live: LiveEndpoint) -> None:
    live.map(Memory(LENGTH), lun=5, serial="BUSY")
    other = encode_lun(0, 5)
    while driver.wait(driver.submit(other, bytes(6)), 10).status:
        pass
    commands = [driver.submit(other, read10(index, 8), data_in_length=4096, queue=index % 4) for index in range(200)]
    live.unmap(lun=5)
    for command in commands:
        result = driver.wait(command, 10)
        assert result.status == 0 or result.sense[12] == 0x25


def test_a_resized_unit_is_announced_and_has_its_new_capacity(driver: ScsiDriver, live: LiveEndpoint) -> None:
    live.resize(2 * LENGTH)
    event = driver.wait_event(10)
    assert (event.kind, event.reason) == (EventKind.PARAM_CHANGE, 0x2A | 0x09 << 8)
    told = driver.wait(driver.submit(LUN, bytes(6)), 10)
    assert (told.sense[2] & 0xF, told.sense[12:14]) == (6, b"\x2a\x09")
    capacity = driver.wait(driver.submit(LUN, bytes.fromhex("25") + bytes(9), data_in_length=8), 10)
    assert int.from_bytes(capacity.data_in[:4]) == 2 * LENGTH // 512 - 1
    assert driver.wait(driver.submit(LUN, read10(LENGTH // 512, 1), data_in_length=512), 10).data_in == bytes(512)


def test_events_wait_until_the_driver_gives_a_buffer_for_each(live: LiveEndpoint) -> None:
    with ScsiDriver(live.path, DriverSettings(request_queues=4, event_buffers=1)) as driver:
        for lun in range(5, 10):
            live.map(Memory(LENGTH), lun=lun, serial=f"UNIT{lun}")
        events = [driver.wait_event(10) for _ in range(5)]
        assert [event.lun for event in events] == [encode_lun(0, lun) for lun in range(5, 10)]
        assert not any(event.missed for event in events)


def test_a_driver_that_gives_no_buffers_for_long_is_told_that_it_missed_events(live: LiveEndpoint) -> None:
    with ScsiDriver(live.path, DriverSettings(request_queues=4, event_buffers=1)) as driver:
        for lun in range(1, 201):
            live.map(Memory(LENGTH), lun=lun, serial=f"UNIT{lun}")
        missed: list[bool] = []
        while not any(missed):
            missed.append(driver.wait_event(10).missed)
        assert 1 < len(missed) < 200


def test_a_command_that_never_completes_times_out_by_name(tmp_path: Path) -> None:
    settings = DriverSettings(transport=TransportSettings(message_timeout=0.2))
    with fake_backend(tmp_path) as backend, ScsiDriver(backend.path, settings) as driver:
        pending = driver.submit(LUN, read10(0, 1), data_in_length=512)
        with pytest.raises(BackendTimeout, match=r"the command 28000000000000000100 did not complete within 0\.1 s"):
            driver.wait(pending, 0.1)
        assert driver.in_flight == 1
        with pytest.raises(BackendTimeout, match=r"no event came within 0\.1 s"):
            driver.wait_event(0.1)


def test_a_back_end_that_is_killed_is_gone_and_what_it_had_completed_is_not_lost(tmp_path: Path) -> None:
    script = f"""
import time
from pathlib import Path
from formats.memory import Memory
from tests.client.live import LiveEndpoint
live = LiveEndpoint(Path({str(tmp_path / "gone.sock")!r}))
live.map(Memory({LENGTH}))
print("ready", flush=True)
time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert process.stdout
    with process, process.stdout:
        assert process.stdout.readline() == b"ready\n"
        with VstoreDevice(tmp_path / "gone.sock") as device:
            while device.command(bytes(6)).status:
                pass
            done = device.driver.submit(LUN, read10(0, 1), data_in_length=512)
            assert select.select([device.driver.transport.fileno()], [], [], 10)[0]
            os.kill(process.pid, signal.SIGKILL)
            process.wait(10)
            assert device.driver.wait(done, 10).status == 0
            with pytest.raises(BackendGone, match=r"closed the connection|connection broke"):
                device.command(read10(0, 1), data_in_length=512)


def test_closing_leaks_no_descriptor_on_either_side(live: LiveEndpoint) -> None:
    counts = []
    for _ in range(3):
        with ScsiDriver(live.path, DriverSettings(request_queues=4)) as driver:
            driver.submit(LUN, read10(0, 1), data_in_length=512)
        live.await_no_session()
        counts.append(len(os.listdir("/proc/self/fd")))
    assert counts == counts[:1] * 3


def test_a_closed_driver_says_so(live: LiveEndpoint) -> None:
    driver = ScsiDriver(live.path)
    driver.close()
    driver.close()
    for use in (lambda: driver.submit(LUN, bytes(6)), lambda: driver.manage(F.QUERY_TASK, LUN), driver.poll):
        with pytest.raises(BackendGone, match="the connection is closed"):
            use()
