"""The endpoint over the real data plane, driven by the project's own initiator: what only both together can show."""

import contextlib
import os
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from formats.memory import Memory
from formats.registry import create_image, open_image
from tests.client.live import LiveEndpoint
from vstore.client import BackendGone, DriverSettings, Response, ScsiDriver, TaskManagementFunction
from vstore.client.driver import FIRST_REQUEST_QUEUE
from vstore.client.frontend import Request
from vstore.client.memory import MIB, GuestMemory
from vstore.client.request import CommandResult, Pending
from vstore.client.transport import TransportSettings
from vstore.client.virtio_scsi import encode_lun
from vstore.scsi.logical_unit import LogicalUnit
from vstore.vhost_user.virtio_scsi import MEMORY_SLOTS

LUN = encode_lun(0, 0)
LENGTH = 4 * MIB
PAGE = 4096
BLOCKS = 8
TOLD = 2  # commands until a unit has told of its power on and is ready


def read10(lba: int, count: int = BLOCKS) -> bytes:
    return struct.pack(">BBIBHB", 0x28, 0, lba, 0, count, 0)


def write10(lba: int, count: int = BLOCKS) -> bytes:
    return struct.pack(">BBIBHB", 0x2A, 0, lba, 0, count, 0)


@pytest.fixture
def live(tmp_path: Path) -> Iterator[LiveEndpoint]:
    with LiveEndpoint(tmp_path / "s", request_queues=2) as live:
        live.map(Memory(LENGTH))
        yield live


@contextlib.contextmanager
def connected(live: LiveEndpoint, **transport: object) -> Iterator[ScsiDriver]:
    settings = DriverSettings(request_queues=2, transport=TransportSettings(**transport))  # type: ignore[arg-type]
    with ScsiDriver(live.path, settings) as driver:
        while driver.wait(driver.submit(LUN, bytes(6)), 10).status:
            pass
        yield driver


def fill(driver: ScsiDriver, count: int = 64) -> list[Pending[CommandResult]]:
    """Reads and writes on both queues, more than the device can have ended when the next message comes."""
    commands = []
    for number in range(count):
        lba = number * BLOCKS
        if number % 2:
            commands.append(driver.submit(LUN, read10(lba), b"", BLOCKS * 512, queue=number % 4 // 2))
        else:
            commands.append(driver.submit(LUN, write10(lba), bytes([number]) * BLOCKS * 512, queue=number % 4 // 2))
    return commands


def ended_well(driver: ScsiDriver, commands: list[Pending[CommandResult]]) -> None:
    for command in commands:
        result = driver.wait(command, 10)
        assert (result.response, result.status, result.residual) == (Response.OK, 0, 0)


def test_reads_and_writes_take_the_fast_path_once_the_power_on_was_told(live: LiveEndpoint) -> None:
    with connected(live) as driver:
        slow = sum(counters.slow for counters in live.call(live.endpoint.counters))
        ended_well(driver, fill(driver))
        assert sum(counters.slow for counters in live.call(live.endpoint.counters)) == slow


@pytest.mark.parametrize(
    "function",
    [
        TaskManagementFunction.ABORT_TASK_SET,
        TaskManagementFunction.CLEAR_TASK_SET,
        TaskManagementFunction.LOGICAL_UNIT_RESET,
        TaskManagementFunction.I_T_NEXUS_RESET,
    ],
)
def test_every_command_is_back_when_a_function_that_ends_them_is(
    live: LiveEndpoint, function: TaskManagementFunction
) -> None:
    with connected(live) as driver:
        for _ in range(20):
            commands = fill(driver)
            assert driver.wait(driver.manage(function, LUN), 10) == Response.OK
            driver.poll(0)
            assert all(command.done for command in commands)
            assert {command.result.response for command in commands} <= {
                Response.OK,
                Response.ABORTED,
                Response.RESET,
            }
            while driver.wait(driver.submit(LUN, bytes(6)), 10).status:
                pass
        ended_well(driver, fill(driver))


def test_front_ends_that_vanish_under_load_leave_the_next_one_a_working_disk(live: LiveEndpoint) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        with contextlib.suppress(BackendGone), connected(live) as driver:
            fill(driver)
            driver.transport.frontend.close()
    with connected(live) as driver:
        ended_well(driver, fill(driver))
    live.run(live._server.ended())
    assert len(os.listdir("/proc/self/fd")) == before


def test_rings_stop_in_order_under_load_and_the_bases_tell_what_was_fetched(live: LiveEndpoint) -> None:
    with connected(live) as driver:
        commands = fill(driver)
        bases = driver.transport.stop()
        driver.poll(0)
        assert sum(bases[FIRST_REQUEST_QUEUE:]) == sum(command.done for command in commands) + TOLD
        assert not any(counters.in_flight for counters in live.call(live.endpoint.counters))


def test_a_reset_under_load_leaves_nothing_in_flight(live: LiveEndpoint) -> None:
    with connected(live) as driver:
        fill(driver)
        driver.transport.frontend.tell(Request.RESET_DEVICE)
        assert not any(counters.in_flight for counters in live.call(live.endpoint.counters))
        assert not any(counters.started for counters in live.call(live.endpoint.counters))


def test_memory_comes_and_goes_under_load(live: LiveEndpoint) -> None:
    with connected(live) as driver, GuestMemory([MIB]) as plugged:
        region = plugged.regions[0]
        hot = type(region)(1 << 40, region.size, 1 << 45, region.descriptor, 0, region.mapping)
        for _ in range(10):
            commands = fill(driver)
            driver.transport.frontend.add_memory(hot)
            commands += fill(driver, 32)
            driver.transport.frontend.remove_memory(hot)
            ended_well(driver, commands)


@pytest.mark.parametrize("sizes", [(64 * MIB,), (MIB, MIB, 32 * MIB)])
def test_data_is_right_in_several_regions_by_either_way_to_tell_them(
    live: LiveEndpoint, sizes: tuple[int, ...]
) -> None:
    for protocol_features in (0xA00B, 0x200B):
        with connected(live, region_sizes=sizes, region_gap=0, protocol_features=protocol_features) as driver:
            data = os.urandom(BLOCKS * 512)
            driver.wait(driver.submit(LUN, write10(16), data), 10)
            assert driver.wait(driver.submit(LUN, read10(16), b"", len(data)), 10).data_in == data


def test_the_dirty_log_has_the_pages_that_a_read_wrote_and_no_others(live: LiveEndpoint) -> None:
    with connected(live) as driver:
        frontend, memory = driver.transport.frontend, driver.transport.memory
        pages = (memory.regions[-1].guest_address + memory.regions[-1].size) // PAGE
        log = os.memfd_create("log")
        os.truncate(log, -(-pages // 8 // PAGE) * PAGE)
        base = struct.pack("<QQ", os.fstat(log).st_size, 0)
        frontend._send(Request.SET_LOG_BASE, base, [log])
        frontend._receive(Request.SET_LOG_BASE)
        frontend.set_features(frontend.features | 1 << 26)
        assert not any(os.pread(log, 1 << 20, 0))
        command = driver.submit(LUN, read10(0, 64), b"", 64 * 512)
        buffer = command.request.buffer
        driver.wait(command, 10)
        written = {
            byte * 8 + bit for byte, word in enumerate(os.pread(log, 1 << 20, 0)) for bit in range(8) if word >> bit & 1
        }
        os.close(log)
        first, last = (buffer.address + 51) // PAGE, (buffer.end - 1) // PAGE
        assert written == set(range(first, last + 1)), "the used ring is logged only where its address asked for it"


def test_a_slow_command_on_one_queue_and_task_management_do_not_stop_the_other_unit(live: LiveEndpoint) -> None:
    live.map(Memory(LENGTH), lun=1)
    other = encode_lun(0, 1)
    with connected(live) as driver:
        while driver.wait(driver.submit(other, bytes(6)), 10).status:
            pass
        commands = fill(driver)
        assert driver.wait(driver.manage(TaskManagementFunction.LOGICAL_UNIT_RESET, other), 10) == Response.OK
        for command in commands:
            result = driver.wait(command, 10)
            assert result.status == 0 or result.sense[12] == 0x3F, "at most the other unit's coming is told"


def test_the_number_of_memory_slots_is_that_of_the_data_plane() -> None:
    header = (Path(__file__).parents[2] / "vstore" / "dataplane" / "dataplane.h").read_text()
    assert f"VS_MAX_REGIONS = {MEMORY_SLOTS}," in header


def test_nothing_is_lost_where_steps_of_the_slow_path_meet_writes_of_the_fast_path(tmp_path: Path) -> None:
    """ORWRITE of no bits reads a block and writes it back: a write that came in between would be undone."""
    path = tmp_path / "disk"
    create_image("raw", path, LENGTH)
    with LiveEndpoint(tmp_path / "s", request_queues=2) as live:
        live.map(open_image("raw", path))
        with connected(live) as driver:
            for number in range(40):
                steps = [driver.submit(LUN, or_write16(0, 2048), bytes(MIB), queue=0) for _ in range(2)]
                writes = [
                    driver.submit(LUN, write10(lba), bytes([number + lba & 0xFF]) * PAGE, queue=1)
                    for lba in range(0, 256, BLOCKS)
                ]
                ended_well(driver, [*steps, *writes])
                found = driver.wait(driver.submit(LUN, read10(0, 256), b"", 256 * 512), 10).data_in
                assert found == b"".join(bytes([number + lba & 0xFF]) * PAGE for lba in range(0, 256, BLOCKS))


def test_two_machines_that_count_by_compare_and_write_lose_no_count(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    create_image("raw", path, LENGTH)
    one, two = LiveEndpoint(tmp_path / "one", request_queues=2), LiveEndpoint(tmp_path / "two", request_queues=2)
    with one, two:
        unit = one.map(open_image("raw", path))
        disk = one.disks[0, 0]
        two.call(lambda: two.endpoint.map_lun(0, 0, LogicalUnit(disk, unit.identity), disk.volume))
        with connected(one) as first, connected(two) as second:
            counted = threading.Thread(target=count_up, args=(second, 60))
            counted.start()
            count_up(first, 60)
            counted.join()
            assert int.from_bytes(first.wait(first.submit(LUN, read10(0, 1), b"", 512), 10).data_in) == 120
        two.run(two.endpoint.unmap_lun(0, 0))


def or_write16(lba: int, count: int) -> bytes:
    return struct.pack(">BBQIBB", 0x8B, 0, lba, count, 0, 0)


def count_up(driver: ScsiDriver, times: int) -> None:
    """Adds one to the number in block 0, `times` times, however often another is quicker."""
    old = 0
    while times:
        step = struct.pack(">BBQ3xBBB", 0x89, 0, 0, 1, 0, 0)
        result = driver.wait(driver.submit(LUN, step, old.to_bytes(512) + (old + 1).to_bytes(512)), 10)
        if result.status == 0:
            times -= 1
        else:
            assert result.sense[2] & 0xF == 0xE, result.sense  # MISCOMPARE
        old = int.from_bytes(driver.wait(driver.submit(LUN, read10(0, 1), b"", 512), 10).data_in)


def test_a_sanitized_disk_is_empty_whatever_was_under_way_and_is_fast_again(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    create_image("qcow2", path, 4 * LENGTH)
    with LiveEndpoint(tmp_path / "s", request_queues=2) as live:
        live.map(open_image("qcow2", path))
        with connected(live) as driver:
            ended_well(driver, fill(driver))
            writes = fill(driver)
            sanitize = driver.submit(LUN, bytes([0x48, 0x82, *bytes(8)]), queue=1)
            writes += fill(driver, 16)
            assert driver.wait(sanitize, 10).status == 0
            for write in writes:
                result = driver.wait(write, 10)
                assert result.status == 0 or result.sense[2] & 0xF == 2  # NOT READY: it came too late
            while driver.wait(driver.submit(LUN, bytes(6)), 10).status:
                pass
            found = driver.wait(driver.submit(LUN, read10(0, 1024), b"", 1024 * 512), 10).data_in
            # what was written when it had ended is whole
            assert all(
                not any(found[at : at + PAGE]) or len(set(found[at : at + PAGE])) == 1
                for at in range(0, len(found), PAGE)
            )
            assert driver.wait(driver.submit(LUN, bytes([0x48, 0x02, *bytes(8)])), 10).status == 0
            found = driver.wait(driver.submit(LUN, read10(0, 1024), b"", 1024 * 512), 10).data_in
            assert not any(found)
            slow = sum(counters.slow for counters in live.call(live.endpoint.counters))
            ended_well(driver, fill(driver))
            assert sum(counters.slow for counters in live.call(live.endpoint.counters)) == slow
