"""A target process does what its verbs say: a guest sees it, and the image file holds it."""

import errno
import fcntl
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.target.conftest import MIB, Running, request, until
from vstore.client import VstoreDevice
from vstore.client.virtio_scsi import EventKind, ResetReason
from vstore.dataplane import Volume
from vstore.target.client import TargetClient
from vstore.target.errors import ErrorCode, TargetError
from vstore.target.packet import Descriptors
from vstore.target.process import TargetProcess
from vstore.target.spawn import spawn
from vstore.target.verbs import (
    Configure,
    Empty,
    FrontendConnected,
    FrontendDisconnected,
    ImageSource,
    LunCapacityChanged,
    MapLun,
    Mapped,
)

GOOD, CHECK_CONDITION = 0x00, 0x02
TEST_UNIT_READY = bytes(6)
READ_ALL = bytes([0x28, 0, 0, 0, 0, 0, 0, 0, 128, 0])  # READ (10) of 64 KiB


def settle(device: VstoreDevice) -> None:
    """Takes the unit attentions that a new nexus starts with."""
    while device.command(TEST_UNIT_READY).status == CHECK_CONDITION:
        pass


def write_10(device: VstoreDevice, lba: int, data: bytes) -> None:
    blocks = len(data) // 512
    cdb = bytes([0x2A, 0, *lba.to_bytes(4, "big"), 0, *blocks.to_bytes(2, "big"), 0])
    assert device.command(cdb, data_out=data).status == GOOD


def read_10(device: VstoreDevice, lba: int, blocks: int = 1) -> bytes:
    cdb = bytes([0x28, 0, *lba.to_bytes(4, "big"), 0, *blocks.to_bytes(2, "big"), 0])
    result = device.command(cdb, data_in_length=512 * blocks)
    assert result.status == GOOD
    return result.data_in


def capacity(device: VstoreDevice) -> int:
    """READ CAPACITY (16), in bytes."""
    data = device.command(bytes([0x9E, 0x10, *bytes(11), 32, 0, 0]), data_in_length=32).data_in
    return (int.from_bytes(data[:8], "big") + 1) * int.from_bytes(data[8:12], "big")


def refusal(call: Callable[..., object], *arguments: object) -> TargetError:
    with pytest.raises(TargetError) as caught:
        call(*arguments)
    return caught.value


def test_guest_writes_through_to_the_file(target: Running, disk: Path) -> None:
    target.map_file(disk)
    target.configure()
    with target.device() as device:
        settle(device)
        write_10(device, 3, b"\x5a" * 1024)
        assert read_10(device, 4) == b"\x5a" * 512
    assert disk.read_bytes()[3 * 512 : 5 * 512] == b"\x5a" * 1024


def test_lun_mapped_after_configure_is_there_as_well(target: Running, disk: Path) -> None:
    target.configure()
    target.map_file(disk, lun=7)
    with target.device(lun=7) as device:
        settle(device)
        assert capacity(device) == 8 * MIB


def test_mapping_answers_what_the_image_is(target: Running) -> None:
    source = ImageSource(format="memory", length=MIB)
    mapped = target.client.map_lun(MapLun(lun=0, image=source, serial="M"))
    assert mapped == Mapped(length=MIB, read_only=False, thin=True)


def test_read_only_lun_refuses_writes_and_leaves_the_file(target: Running, disk: Path) -> None:
    target.map_file(disk, read_only=True)
    target.configure()
    with target.device() as device:
        settle(device)
        result = device.command(bytes([0x2A, 0, 0, 0, 0, 0, 0, 0, 1, 0]), data_out=b"x" * 512)
    assert (result.status, result.sense[2] & 0xF) == (CHECK_CONDITION, 0x7)  # DATA PROTECT
    assert not any(disk.read_bytes())


def test_status_tells_configuration_luns_and_counters(target: Running, disk: Path) -> None:
    assert target.client.status().state == "new"
    target.configure(request_queues=2)
    target.map_file(disk)
    with target.device() as device:
        settle(device)
        read_10(device, 0, 8)
        target.event()
        status = target.client.status()
    assert status.state == "connected"
    assert status.pid == target.process.pid
    assert status.configuration == Configure(name="vm0", socket=target.socket, request_queues=2)
    assert [vring.vring for vring in status.vrings] == [0, 1, 2, 3]
    assert status.vrings[2].started
    assert not status.vrings[2].broken
    assert status.vrings[2].completed >= 2
    assert status.vrings[2].bytes_read >= 8 * 512
    assert [lun.settings for lun in status.luns] == [request(0, str(disk))]
    assert (status.luns[0].length, status.luns[0].read_only, status.luns[0].thin) == (8 * MIB, False, True)


def test_status_of_many_luns_comes_in_pages(target: Running) -> None:
    target.configure(request_queues=64)
    source = ImageSource(format="null", length=MIB, name="n" * 512)
    for lun in range(70):
        target.client.map_lun(request(lun, image=source))
    status = target.client.status()
    assert [lun.settings.lun for lun in status.luns] == list(range(70))
    assert len(status.vrings) == 66
    assert status.next_lun is None


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


def test_unmapped_lun_goes_from_the_guest_and_its_file_is_free(target: Running, disk: Path) -> None:
    target.map_file(disk)
    target.map_file(disk.with_name("other.raw").write_bytes(bytes(MIB)) and disk.with_name("other.raw"), lun=1)
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


def test_image_stays_locked_against_qemu_while_mapped(target: Running, disk: Path) -> None:
    target.map_file(disk)
    done = subprocess.run(
        ["qemu-io", "-f", "raw", "-c", "write 0 512", disk], check=False, capture_output=True, text=True
    )
    assert done.returncode != 0
    assert "lock" in done.stderr


def test_image_that_qemu_holds_is_refused_as_locked(target: Running, disk: Path) -> None:
    holder = subprocess.Popen(
        ["qemu-io", "-f", "raw", disk], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert holder.stdin
    assert holder.stdout
    with holder:
        holder.stdin.write(b"read 0 512\n")
        holder.stdin.flush()
        holder.stdout.readline()
        error = refusal(target.map_file, disk)
        holder.stdin.close()
        holder.wait(timeout=10)
    assert error.code is ErrorCode.IMAGE_LOCKED
    assert str(disk) in error.detail


def test_image_off_the_block_size_is_refused_with_both_numbers(target: Running, tmp_path: Path) -> None:
    odd = tmp_path / "odd.raw"
    odd.write_bytes(bytes(4096 + 512))
    with odd.open("r+b") as file, pytest.raises(TargetError) as caught:
        target.client.map_lun(request(0, "odd.raw", logical_block_length=4096), file.fileno())
    assert caught.value.code is ErrorCode.IMAGE_REFUSED
    assert caught.value.detail == (
        "odd.raw: 4608 bytes are not a multiple of the 4096-byte logical block; 4096 or 8192 bytes would be"
    )


IMPOSSIBLE: list[tuple[Callable[[TargetClient], object], ErrorCode, str]] = [
    (lambda c: c.unmap_lun(3), ErrorCode.NO_SUCH_LUN, "LUN 0:3 has no image; those that have one: 0:0"),
    (lambda c: c.resize_lun(3, MIB), ErrorCode.NO_SUCH_LUN, "LUN 0:3 has no image"),
    (lambda c: c.resize_lun(0, 1000), ErrorCode.IMAGE_REFUSED, "1000 bytes are not a multiple of the 512-byte"),
    (lambda c: c.map_lun(request(0)), ErrorCode.LUN_EXISTS, "LUN 0:0 has an image; unmap it first"),
    (lambda c: c.map_lun(request(1)), ErrorCode.IMAGE_REFUSED, "raw images lie in a file"),
    (lambda c: c.map_lun(request(1, image=ImageSource(format="qcow9"))), ErrorCode.IMAGE_REFUSED, "'qcow9' is not"),
    (lambda c: c.configure(Configure(name="x", socket="/")), ErrorCode.ALREADY_CONFIGURED, "name is 'vm0' since"),
]


def test_impossible_verbs_are_refused_by_name(target: Running, disk: Path) -> None:
    target.configure()
    target.map_file(disk)
    for verb, code, sentence in IMPOSSIBLE:
        error = refusal(verb, target.client)
        assert (error.code, sentence in error.detail) == (code, True), error.detail


def test_configure_again_with_the_same_settings_is_no_change(target: Running) -> None:
    target.configure()
    target.configure()


def test_configure_that_fails_can_be_tried_again(target: Running, tmp_path: Path) -> None:
    bad = Configure(name="vm0", socket=str(tmp_path / "none" / "s"))
    assert refusal(target.client.configure, bad).code is ErrorCode.HOST_ERROR
    target.configure()
    target.device().close()


def test_refused_images_leave_no_descriptor_behind(target: Running, disk: Path, tmp_path: Path) -> None:
    target.configure()
    target.map_file(disk)
    target.client.status()
    before = target.descriptors()
    short = tmp_path / "short.raw"
    short.write_bytes(b"x")
    odd = tmp_path / "odd.raw"
    odd.write_bytes(bytes(1000))
    for path in (short, odd):
        assert refusal(target.map_file, path, 1).code is ErrorCode.IMAGE_REFUSED
    assert refusal(target.map_file, disk, 0).code is ErrorCode.LUN_EXISTS
    with odd.open("r+b") as file:
        memory = request(1, image=ImageSource(format="memory", length=MIB))
        assert refusal(target.client.map_lun, memory, file.fileno()).code is ErrorCode.IMAGE_REFUSED
        write_only = os.open(odd, os.O_WRONLY)
        assert refusal(target.client.map_lun, request(1), write_only).code is ErrorCode.IMAGE_REFUSED
        os.close(write_only)
    assert target.descriptors() == before


def test_descriptors_come_and_go_with_luns_and_frontends(target: Running, disk: Path) -> None:
    target.configure()
    with target.device():
        pass
    until(lambda: target.client.status().state == "listening")
    before = target.descriptors()
    for _ in range(3):
        target.map_file(disk)
        with target.device() as device:
            settle(device)
            write_10(device, 0, b"x" * 512)
            device.command(bytes([0x35, *bytes(9)]))
        target.client.unmap_lun(0)
    until(lambda: target.client.status().state == "listening")
    until(lambda: target.descriptors() == before)


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT, "stop"])
def test_orderly_end_flushes_closes_and_removes_what_it_made(
    target: Running, disk: Path, ending: signal.Signals | str
) -> None:
    target.configure()
    target.map_file(disk)
    with target.device() as device:
        settle(device)
        write_10(device, 0, b"last" * 128)
        if isinstance(ending, signal.Signals):
            target.process.send_signal(ending)
        else:
            target.client.stop()
        assert target.wait() == 0
    assert disk.read_bytes()[:512] == b"last" * 128
    assert sorted(path.name for path in target.folder.iterdir()) == ["disk.raw", "target.log"]
    with disk.open("r+b") as file:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert refusal(target.client.status).code is ErrorCode.DISCONNECTED


def test_process_outlives_a_killed_daemon_and_is_adopted(tmp_path: Path, disk: Path) -> None:
    """The daemon here is a Python process that spawns, maps, connects, and is killed with SIGKILL."""
    control, vhost = str(tmp_path / "control.sock"), str(tmp_path / "vhost.sock")
    daemon = subprocess.Popen(
        [".venv/bin/python", "-m", "tests.target.daemon", control, vhost, str(disk)], stdout=subprocess.PIPE
    )
    assert daemon.stdout
    with daemon:
        pid = int(daemon.stdout.readline())
        with VstoreDevice(vhost, timeout=10) as device:
            settle(device)
            daemon.kill()
            daemon.wait()
            write_10(device, 1, b"after" + bytes(507))
            with TargetClient(control) as client:
                status = client.status()
                assert (status.pid, status.state) == (pid, "connected")
                assert status.configuration == Configure(name="vm0", socket=vhost)
                assert [lun.settings.image.name for lun in status.luns] == [str(disk)]
                client.stop()
    assert disk.read_bytes()[512:517] == b"after"
    assert not Path(vhost).exists()


def test_second_process_on_the_same_control_socket_says_why_it_does_not_start(target: Running, tmp_path: Path) -> None:
    error = refusal(spawn, target.control, tmp_path / "second.log")
    assert error.code is ErrorCode.NOT_STARTED
    assert "in use" in error.detail
    assert target.client.status().pid == target.process.pid


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


async def test_failing_last_flush_is_told_and_everything_closed_all_the_same(
    disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed = []

    def fail(self: Volume) -> None:
        flushed.append(self)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    before = set(os.listdir("/proc/self/fd"))
    process = TargetProcess()
    await process.map_lun(request(0, "disk.raw"), Descriptors([os.open(disk, os.O_RDWR)]))
    await process.configure(Configure(name="vm0", socket=str(disk.with_suffix(".sock"))), Descriptors())
    monkeypatch.setattr(Volume, "flush", fail)
    with pytest.raises(
        TargetError, match=r"disk\.raw: the last flush failed, so writes since the one before may be lost"
    ):
        await process.stop(Empty(), Descriptors())
    assert len(flushed) == 1
    assert process.stopped.is_set()
    assert set(os.listdir("/proc/self/fd")) == before
    assert os.listdir(disk.parent) == [disk.name]
    with pytest.raises(TargetError, match="stopping"):
        await process.configure(Configure(name="vm0", socket="x"), Descriptors())
