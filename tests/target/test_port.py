"""The target port: a guest comes, goes, breaks its ring, and is told of what changes under it."""

import asyncio
import subprocess
import threading
from pathlib import Path

import pytest

from tests.target.conftest import MIB, Running, request
from tests.target.guest import (
    CHECK_CONDITION,
    GOOD,
    READ_ALL,
    TEST_UNIT_READY,
    capacity,
    read_10,
    refusal,
    settle,
    write_10,
)
from vstore.client import BackendFault, DriverSettings, VstoreDevice
from vstore.client.ring import Segment
from vstore.client.virtio_scsi import EventKind, ResetReason
from vstore.target.errors import ErrorCode
from vstore.target.packet import Descriptors
from vstore.target.process import TargetProcess
from vstore.target.verbs import (
    Configure,
    FrontendConnected,
    FrontendDisconnected,
    ImageSource,
    LunAddress,
    LunCapacityChanged,
    ResizeLun,
    RingBroken,
    StatusRequest,
)
from vstore.vhost_user.lun_map import LunMap

NOWHERE = 1 << 40  # no guest memory is there


def test_events_tell_of_the_frontend(target: Running) -> None:
    target.configure()
    with target.device():
        assert isinstance(target.event(), FrontendConnected)
    assert isinstance(target.event(), FrontendDisconnected)
    assert target.client.status().state == "listening"


def test_resize_reaches_guest_file_and_daemon(target: Running, disk: Path) -> None:
    target.map_file(disk)
    target.configure()
    with target.device() as device:
        settle(device)
        assert isinstance(target.event(), FrontendConnected)
        assert target.client.resize_lun(0, 12 * MIB).length == 12 * MIB
        assert target.event() == LunCapacityChanged(target=0, lun=0, length=12 * MIB)
        sense = device.command(TEST_UNIT_READY).sense
        assert (sense[12], sense[13]) == (0x2A, 0x09)  # CAPACITY DATA HAS CHANGED
        assert capacity(device) == 12 * MIB
        write_10(device, 12 * MIB // 512 - 1, b"z" * 512)
        target.client.resize_lun(0, 4 * MIB)
        settle(device)
        assert capacity(device) == 4 * MIB
    assert disk.stat().st_size == 4 * MIB


def test_file_that_is_cut_stays_cut_while_its_old_end_is_written(target: Running, disk: Path) -> None:
    """The guest learns of the cut late, and writes where the end was all the time."""
    target.map_file(disk)
    target.configure()
    lengths: set[int] = set()

    def cut_and_grow() -> None:
        for _ in range(20):
            target.client.resize_lun(0, 4 * MIB)
            lengths.add(disk.stat().st_size)
            target.client.resize_lun(0, 8 * MIB)

    last = bytes([0x2A, 0, *(8 * MIB // 512 - 8).to_bytes(4, "big"), 0, 0, 8, 0])
    sense = set()
    with target.device() as device:
        settle(device)
        resizing = threading.Thread(target=cut_and_grow)
        resizing.start()
        while resizing.is_alive():
            load = [device.driver.submit(device.address, last, b"x" * 4096) for _ in range(32)]
            results = [device.driver.wait(pending, 10) for pending in load]
            sense |= {tuple(result.sense[12:14]) for result in results if result.status != GOOD}
        resizing.join()
    assert lengths == {4 * MIB}
    assert sense <= {(0x2A, 0x09), (0x21, 0x00)}  # CAPACITY DATA HAS CHANGED, LBA OUT OF RANGE


def test_image_that_cannot_be_cut_is_whole_afterwards(target: Running, disk: Path) -> None:
    target.map_file(disk, read_only=True)
    target.configure()
    with target.device() as device:
        settle(device)
        assert refusal(target.client.resize_lun, 0, 4 * MIB).code is ErrorCode.IMAGE_REFUSED
        assert device.command(TEST_UNIT_READY).status == GOOD
        assert capacity(device) == 8 * MIB
        assert read_10(device, 8 * MIB // 512 - 1) == bytes(512)


async def test_cutting_waits_for_the_commands_that_came_before(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    drained = asyncio.Event()

    async def wait(*_: object) -> None:
        await drained.wait()

    monkeypatch.setattr(LunMap, "drained", wait)
    process = TargetProcess()
    await process.configure(Configure(name="vm0", socket=str(tmp_path / "s")), Descriptors())
    await process.map_lun(request(0, image=ImageSource(format="memory", length=2 * MIB)), Descriptors())
    cutting = asyncio.create_task(process.resize_lun(ResizeLun(lun=0, length=MIB), Descriptors()))
    await asyncio.sleep(0.05)
    assert (await process.status(StatusRequest(), Descriptors())).luns[0].length == 2 * MIB
    drained.set()
    assert (await cutting).length == MIB
    await process.end()


def test_unmapped_lun_goes_from_the_guest_and_its_file_is_free(target: Running, disk: Path) -> None:
    target.map_file(disk)
    other = disk.with_name("other.raw")
    other.write_bytes(bytes(MIB))
    target.map_file(other, lun=1)
    target.configure()
    with target.device() as device:
        settle(device)
        write_10(device, 0, b"k" * 512)
        target.client.unmap_lun(0)
        sense = device.command(TEST_UNIT_READY).sense
        assert (sense[2] & 0xF, sense[12]) == (0x5, 0x25)  # LOGICAL UNIT NOT SUPPORTED
    assert disk.read_bytes()[:512] == b"k" * 512
    subprocess.run(["qemu-io", "-f", "raw", "-c", "write 0 512", disk], check=True, stdout=subprocess.DEVNULL)
    assert [lun.settings.lun for lun in target.client.status().luns] == [1]


def test_driver_gets_events_of_hot_changes(target: Running, disk: Path) -> None:
    target.configure()
    with target.device() as device:
        target.map_file(disk, lun=2)
        event = device.driver.wait_event(5)
        assert (event.kind, event.lun[:4]) == (EventKind.TRANSPORT_RESET, bytes([1, 0, 0x40, 2]))
        assert event.reason == ResetReason.RESCAN
        target.client.resize_lun(2, 12 * MIB)
        event = device.driver.wait_event(5)
        assert (event.kind, event.reason) == (EventKind.PARAM_CHANGE, 0x2A | 0x09 << 8)
        target.client.unmap_lun(2)
        assert device.driver.wait_event(5).reason == ResetReason.REMOVED


def test_luns_change_under_load_without_an_error_elsewhere(target: Running, disk: Path) -> None:
    """One LUN is read all the time, while its neighbour comes, changes and goes."""
    other = disk.with_name("other.raw")
    other.write_bytes(bytes(MIB))
    target.map_file(disk)
    target.configure()
    with target.device() as device:
        settle(device)
        for _ in range(10):
            load = [device.driver.submit(device.address, READ_ALL, data_in_length=64 * 1024) for _ in range(16)]
            target.map_file(other, lun=1)
            target.client.resize_lun(1, 2 * MIB)
            target.client.unmap_lun(1)
            results = [device.driver.wait(pending, 10) for pending in load]
            assert {(result.status, len(result.data_in)) for result in results} <= {(GOOD, 65536), (CHECK_CONDITION, 0)}
            attentions = {tuple(result.sense[12:14]) for result in results if result.status != GOOD}
            assert attentions <= {(0x3F, 0x0E)}  # REPORTED LUNS DATA HAS CHANGED


def test_ring_that_its_driver_broke_is_told_to_both_sides_and_is_the_only_one(target: Running, disk: Path) -> None:
    target.configure(request_queues=2)
    target.map_file(disk)
    with VstoreDevice(target.socket, timeout=10, settings=DriverSettings(request_queues=2)) as device:
        settle(device)
        assert isinstance(target.event(), FrontendConnected)
        device.driver.transport.add(3, [Segment(NOWHERE, 51, device_writes=False)])
        device.driver.transport.publish(3)
        assert target.event() == RingBroken(vring=3)
        vrings = target.client.status().vrings
        assert [vring.vring for vring in vrings if vring.broken] == [3]
        assert all(vring.started for vring in vrings)
        with pytest.raises(BackendFault, match="vring 3 is broken"):
            device.driver.poll(5)


async def test_status_answers_while_a_lun_waits_for_its_commands(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    drained = asyncio.Event()

    async def wait(*_: object) -> None:
        await drained.wait()

    monkeypatch.setattr(LunMap, "drained", wait)
    process = TargetProcess()
    await process.configure(Configure(name="vm0", socket=str(tmp_path / "s")), Descriptors())
    await process.map_lun(request(0, image=ImageSource(format="null", length=MIB)), Descriptors())
    leaving = asyncio.create_task(process.unmap_lun(LunAddress(lun=0), Descriptors()))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    status = await process.status(StatusRequest(), Descriptors())
    assert [lun.settings.lun for lun in status.luns] == [0]
    drained.set()
    await leaving
    assert not (await process.status(StatusRequest(), Descriptors())).luns
    await process.end()
