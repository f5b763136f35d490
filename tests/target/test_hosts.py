"""Several targets of one process, and an image that their machines share: one logical unit with several nexuses."""

import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.target.conftest import Running, request
from vstore.client import VstoreDevice
from vstore.target.client import TargetClient
from vstore.target.errors import ErrorCode, TargetError
from vstore.target.verbs import Configure

GOOD, CHECK, CONFLICT = 0x00, 0x02, 0x18
REGISTER, RESERVE, PREEMPT_AND_ABORT = 0, 1, 5
WE_RO, EA_RO = 5, 6
TUR = bytes(6)


def read_10(lba: int = 0) -> bytes:
    return bytes([0x28, 0]) + lba.to_bytes(4) + bytes([0, 0, 1, 0])


def write_10(lba: int = 0) -> bytes:
    return bytes([0x2A, 0]) + lba.to_bytes(4) + bytes([0, 0, 1, 0])


COMPARE_AND_WRITE = bytes([0x89, 0, *bytes(8), 0, 0, 0, 1, 0, 0])


@dataclass
class Hosted:
    """A second target in the process of the first."""

    client: TargetClient
    socket: str
    name: str

    def device(self) -> VstoreDevice:
        return VstoreDevice(self.socket, timeout=10)


@pytest.fixture
def second(target: Running, tmp_path: Path) -> Iterator[Hosted]:
    target.configure()
    control, socket = str(tmp_path / "second.sock"), str(tmp_path / "second.vhost")
    target.client.host(control)
    with TargetClient(control, timeout=15) as client:
        client.configure(Configure(name="vm1", port=2, socket=socket))
        yield Hosted(client, socket, "vm1")


@pytest.fixture
def pair(target: Running, second: Hosted, disk: Path) -> Iterator[tuple[VstoreDevice, VstoreDevice]]:
    """Two machines that share a disk, and have been told of the power on."""
    target.map_file(disk, shared=True)
    second.client.map_lun(request(0, str(disk), shared=True))
    with target.device() as one, second.device() as other:
        for device in (one, other):
            while device.command(TUR).status == CHECK:
                pass
        yield one, other


def out(device: VstoreDevice, action: int, key: int, action_key: int = 0, kind: int = 0) -> int:
    data = key.to_bytes(8) + action_key.to_bytes(8) + bytes(8)
    return device.command(bytes([0x5F, action, kind, 0, 0, 0, 0, 0, 24, 0]), data).status


def test_what_one_machine_writes_the_other_reads(pair: tuple[VstoreDevice, VstoreDevice], disk: Path) -> None:
    one, other = pair
    assert one.command(write_10(3), b"\x11" * 512).status == GOOD
    assert other.command(read_10(3), data_in_length=512).data_in == b"\x11" * 512
    assert other.command(write_10(3), b"\x22" * 512).status == GOOD
    assert one.command(read_10(3), data_in_length=512).data_in == b"\x22" * 512
    assert disk.read_bytes()[3 * 512 : 4 * 512] == b"\x22" * 512


def test_one_machine_fences_the_other(pair: tuple[VstoreDevice, VstoreDevice]) -> None:
    one, other = pair
    assert (out(one, REGISTER, 0, 1), out(other, REGISTER, 0, 2)) == (GOOD, GOOD)
    assert out(one, RESERVE, 1, kind=EA_RO) == GOOD
    assert other.command(write_10(), bytes(512)).status == GOOD
    assert out(one, PREEMPT_AND_ABORT, 1, 2, EA_RO) == GOOD
    told = other.command(TUR)
    assert (told.status, told.sense[2] & 0xF, told.sense[12:14]) == (CHECK, 6, b"\x2a\x05")
    for cdb, data, length in ((read_10(), b"", 512), (write_10(), bytes(512), 0)):
        assert other.command(cdb, data, length).status == CONFLICT
        assert one.command(cdb, data, length).status == GOOD
    assert other.command(TUR).status == GOOD


def test_the_data_plane_serves_reads_beside_a_write_exclusive_reservation(
    pair: tuple[VstoreDevice, VstoreDevice], second: Hosted
) -> None:
    one, other = pair
    assert (out(one, REGISTER, 0, 1), out(one, RESERVE, 1, kind=WE_RO)) == (GOOD, GOOD)
    before = sum(vring.slow for vring in second.client.status().vrings)
    for _ in range(20):
        assert other.command(read_10(), data_in_length=512).status == GOOD
    assert sum(vring.slow for vring in second.client.status().vrings) == before
    assert other.command(write_10(), bytes(512)).status == CONFLICT
    assert other.command(bytes([0x35, *bytes(9)])).status == CONFLICT


def test_full_status_names_both_machines(pair: tuple[VstoreDevice, VstoreDevice]) -> None:
    one, other = pair
    assert (out(one, REGISTER, 0, 1), out(other, REGISTER, 0, 2)) == (GOOD, GOOD)
    data = other.command(bytes([0x5E, 3, 0, 0, 0, 0, 0, 16, 0, 0]), data_in_length=4096).data_in
    assert b"iqn.2024-08.internal.vstore:vm0\0" in data
    assert b"iqn.2024-08.internal.vstore:vm1\0" in data


def test_compare_and_write_is_one_step_for_both(pair: tuple[VstoreDevice, VstoreDevice]) -> None:
    one, other = pair
    zeros, ones, twos = bytes(512), b"\1" * 512, b"\2" * 512
    assert one.command(COMPARE_AND_WRITE, zeros + ones).status == GOOD
    late = other.command(COMPARE_AND_WRITE, zeros + twos)
    assert (late.status, late.sense[2] & 0xF, late.sense[12]) == (CHECK, 0xE, 0x1D)
    assert other.command(COMPARE_AND_WRITE, ones + twos).status == GOOD
    assert one.command(read_10(), data_in_length=512).data_in == twos


def test_a_machine_that_leaves_gives_up_what_it_had_by_reserve(
    target: Running, pair: tuple[VstoreDevice, VstoreDevice]
) -> None:
    one, other = pair
    assert one.command(bytes([0x16, *bytes(5)])).status == GOOD
    assert other.command(TUR).status == CONFLICT
    one.close()  # the reservation goes with its nexus, and the unit keeps its power
    with target.device() as again:
        assert other.command(TUR).status == GOOD
        while again.command(TUR).status == CHECK:
            pass


def test_a_shared_disk_outlives_each_target_that_has_it(
    target: Running, second: Hosted, pair: tuple[VstoreDevice, VstoreDevice], disk: Path
) -> None:
    _, other = pair
    assert second.client.status().hosted
    assert not target.client.status().hosted
    target.client.unmap_lun(0)
    assert other.command(bytes(6)).sense[12:14] == b"\x3f\x03"  # INQUIRY DATA HAS CHANGED: it has one port less
    assert other.command(write_10(), b"\7" * 512).status == GOOD
    target.client.map_lun(request(0, str(disk), shared=True))
    second.client.unmap_lun(0)
    target.client.unmap_lun(0)
    with pytest.raises(TargetError) as refused:
        target.client.map_lun(request(0, str(disk), shared=True))
    assert refused.value.code == ErrorCode.NOT_OPEN
    assert disk.read_bytes()[:512] == b"\7" * 512
    target.map_file(disk)


def test_new_lengths_are_told_to_all(target: Running, pair: tuple[VstoreDevice, VstoreDevice], disk: Path) -> None:
    target.client.resize_lun(0, 16 << 20)
    for device in pair:
        told = device.command(TUR)
        assert (told.status, told.sense[12:14]) == (CHECK, b"\x2a\x09")
        capacity = device.command(bytes([0x25, *bytes(9)]), data_in_length=8).data_in
        assert int.from_bytes(capacity[:4]) == (16 << 11) - 1
    assert disk.stat().st_size == 16 << 20


def test_one_target_has_a_shared_disk_once_and_with_the_same_settings(
    target: Running, second: Hosted, disk: Path
) -> None:
    target.map_file(disk, shared=True)
    for client, lun, settings in ((target.client, 1, {}), (second.client, 0, {"write_cache": False})):
        with pytest.raises(TargetError) as refused:
            client.map_lun(request(lun, str(disk), shared=True, **settings))  # type: ignore[arg-type]
        assert refused.value.code in (ErrorCode.LUN_EXISTS, ErrorCode.NOT_OPEN)


def test_the_process_ends_when_all_its_targets_have_ended(target: Running, second: Hosted) -> None:
    target.client.stop()
    assert second.client.status().state == "listening"
    second.client.stop()
    assert target.wait() == 0
    assert not os.path.exists(second.socket)


def test_a_signal_ends_all_targets(target: Running, second: Hosted) -> None:
    target.process.terminate()
    assert target.wait() == 0
    assert not os.path.exists(second.socket)


def test_descriptors_do_not_pile_up(target: Running, second: Hosted, disk: Path) -> None:
    def turn() -> list[str]:
        with ExitStack() as undo:
            target.map_file(disk, shared=True)
            undo.callback(target.client.unmap_lun, 0)
            second.client.map_lun(request(0, str(disk), shared=True))
            undo.callback(second.client.unmap_lun, 0)
        return target.descriptors()

    before = turn()
    for _ in range(5):
        after = turn()
    assert after == before
