"""VstoreDevice as PYSCSI's device and by itself, against a live endpoint: what an initiator sees of vstore."""

import struct
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from pyscsi.pyscsi.scsi import SCSI
from pyscsi.pyscsi.scsi_cdb_modesense6 import ModeSelect6

from formats.memory import Memory
from tests.client.live import LiveEndpoint
from vstore.client import DriverSettings, LunFormat, Response, ScsiDriver, VstoreDevice
from vstore.client.request import POISON
from vstore.client.status import TransportFailure
from vstore.client.transport import TransportSettings
from vstore.client.virtio_scsi import RESPONSE_BYTES, WELL_KNOWN_REPORT_LUNS

LENGTH = 1 << 20
BLOCKS = LENGTH // 512
TEST_UNIT_READY = bytes(6)


@pytest.fixture
def live(tmp_path: Path) -> Iterator[LiveEndpoint]:
    with LiveEndpoint(tmp_path / "live.sock") as live:
        live.map(Memory(LENGTH), serial="LIVE0")
        yield live


@pytest.fixture
def device(live: LiveEndpoint) -> Iterator[VstoreDevice]:
    """With its unit attention taken."""
    with VstoreDevice(live.path) as device:
        attend(device)
        yield device


@pytest.fixture
def disk(device: VstoreDevice) -> SCSI:
    return SCSI(device, 512)


def attend(device: VstoreDevice) -> None:
    while device.command(TEST_UNIT_READY).status:
        pass


def cdb10(opcode: int, lba: int, count: int, flags: int = 0) -> bytes:
    return struct.pack(">BBIBHB", opcode, flags, lba, 0, count, 0)


def test_pyscsi_finds_a_disk_by_inquiry_and_takes_the_block_commands(disk: SCSI, device: VstoreDevice) -> None:
    inquiry = disk.inquiry().result
    assert inquiry["peripheral_device_type"] == 0
    assert bytes(inquiry["t10_vendor_identification"]) == b"VSTORE  "
    assert device.devicetype == 0
    assert device.opcodes.READ_16.value == 0x88


def test_pyscsi_reads_the_serial_number_page(disk: SCSI) -> None:
    assert bytes(disk.inquiry(evpd=1, page_code=0x80).result["unit_serial_number"]).rstrip(b"\0 ") == b"LIVE0"


def test_pyscsi_reads_the_capacity_both_ways(disk: SCSI) -> None:
    ten, sixteen = disk.readcapacity10().result, disk.readcapacity16().result
    assert (ten["returned_lba"], ten["block_length"]) == (BLOCKS - 1, 512)
    assert (sixteen["returned_lba"], sixteen["block_length"]) == (BLOCKS - 1, 512)


@pytest.mark.parametrize("size", ["10", "12", "16"])
def test_pyscsi_writes_and_reads_the_same_bytes(disk: SCSI, live: LiveEndpoint, size: str) -> None:
    data = Random(size).randbytes(16 * 512)
    written = getattr(disk, f"write{size}")(100, 16, data)
    read = getattr(disk, f"read{size}")(100, 16)
    assert bytes(read.datain) == data
    assert (written.residual, read.residual) == (0, 0)
    assert live.disks[0, 0].volume.read(100 * 512, len(data)) == data


@pytest.mark.parametrize("size", ["10", "16"])
def test_pyscsi_writes_one_block_many_times(disk: SCSI, live: LiveEndpoint, size: str) -> None:
    block = Random(size).randbytes(512)
    getattr(disk, f"writesame{size}")(10, 20, block)
    assert live.disks[0, 0].volume.read(9 * 512, 22 * 512) == bytes(512) + block * 20 + bytes(512)


def test_pyscsi_writes_zeros_without_a_data_out_buffer(disk: SCSI, live: LiveEndpoint) -> None:
    disk.write10(10, 4, b"\xee" * 2048)
    disk.writesame16(10, 3, None, ndob=1)
    assert live.disks[0, 0].volume.read(10 * 512, 2048) == bytes(1536) + b"\xee" * 512


def test_pyscsi_switches_the_sense_format_by_mode_select(disk: SCSI, device: VstoreDevice) -> None:
    page = disk.modesense6(page_code=0x0A).result["mode_pages"][0]
    assert page["d_sense"] == 0
    # Not disk.modeselect6(): PYSCSI 2.1 executes it and then fails to decode the data-in that it does not have.
    device.execute(ModeSelect6(device.opcodes.MODE_SELECT_6, {"mode_pages": [{**page, "d_sense": 1}]}, pf=1))
    assert disk.modesense6(page_code=0x0A).result["mode_pages"][0]["d_sense"] == 1
    assert disk.modesense10(page_code=0x0A).result["mode_pages"][0]["d_sense"] == 1
    with pytest.raises(device.CheckCondition, match="LOGICAL BLOCK ADDRESS OUT OF RANGE") as caught:
        disk.read10(BLOCKS, 1)
    assert caught.value.sense[0] == 0x72


def test_pyscsi_lists_all_logical_units_of_the_target(disk: SCSI, live: LiveEndpoint) -> None:
    live.map(Memory(LENGTH), lun=3, serial="LIVE3")
    report = disk.reportluns()
    # Not report.result: PYSCSI 2.1 takes LUN LIST LENGTH four bytes too short.
    assert bytes(report.datain[:24]).hex() == "00000010" + "00000000" + "0000000000000000" + "0003000000000000"


def test_a_refused_command_raises_check_condition_with_its_sense_data(disk: SCSI, device: VstoreDevice) -> None:
    with pytest.raises(device.CheckCondition, match="LOGICAL BLOCK ADDRESS OUT OF RANGE") as caught:
        disk.read10(BLOCKS, 1)
    assert (caught.value.data["sense_key"], caught.value.asc, caught.value.ascq) == (5, 0x21, 0)


def test_execute_takes_both_call_forms_and_hands_out_raw_sense_data(disk: SCSI, device: VstoreDevice) -> None:
    command = disk.read10(0, 1)
    command.datain[:] = b"\xff" * 512
    assert device.execute(command).residual == 0
    assert bytes(command.datain) == bytes(512)
    command.cdb[2:6] = BLOCKS.to_bytes(4)
    with pytest.raises(device.CheckCondition):
        device.execute(command, en_raw_sense=True)
    assert command.raw_sense_data == command.sense
    assert command.sense[12] == 0x21


def test_a_new_nexus_is_told_of_the_power_on_once(live: LiveEndpoint) -> None:
    for _ in range(2):
        with VstoreDevice(live.path) as device:
            told = device.command(TEST_UNIT_READY)
            assert (told.status, told.sense[2] & 0xF, told.sense[12]) == (2, 6, 0x29)
            assert device.command(TEST_UNIT_READY).status == 0


def test_inquiry_does_not_wait_for_the_unit_attention(live: LiveEndpoint) -> None:
    with VstoreDevice(live.path) as device:
        assert device.command(bytes.fromhex("120000002400"), data_in_length=36).status == 0
        assert device.command(TEST_UNIT_READY).status == 2


@pytest.mark.parametrize("lun_format", LunFormat)
@pytest.mark.parametrize(("target", "lun"), [(0, 0), (0, 7), (5, 0), (255, 200)])
def test_both_lun_formats_reach_the_same_unit(live: LiveEndpoint, target: int, lun: int, lun_format: LunFormat) -> None:
    if (target, lun) != (0, 0):
        live.map(Memory(LENGTH), target, lun, serial=f"UNIT{target}.{lun}")
    expected = "LIVE0" if (target, lun) == (0, 0) else f"UNIT{target}.{lun}"
    with VstoreDevice(live.path, target, lun, lun_format=lun_format) as device:
        page = device.command(bytes.fromhex("12018000ff00"), data_in_length=255)
        assert page.data_in[4:].decode().rstrip() == expected


def test_a_lun_beyond_255_is_reached_flat(live: LiveEndpoint) -> None:
    live.map(Memory(LENGTH), 1, 16383, serial="FAR")
    with VstoreDevice(live.path, 1, 16383) as device:
        attend(device)
        assert device.command(cdb10(0x28, 0, 1), data_in_length=512).data_in == bytes(512)


def test_the_well_known_logical_unit_reports_luns(live: LiveEndpoint, device: VstoreDevice) -> None:
    live.map(Memory(LENGTH), lun=2, serial="LIVE2")
    device.address = WELL_KNOWN_REPORT_LUNS
    report = device.command(bytes.fromhex("a0000000000000000100 0000"), data_in_length=256)
    assert report.status == 0
    assert int.from_bytes(report.data_in[:4]) >= 16


def test_units_are_apart_and_share_one_connection(live: LiveEndpoint) -> None:
    live.map(Memory(LENGTH), lun=1, serial="LIVE1")
    with ScsiDriver(live.path) as driver:
        devices = [VstoreDevice(driver, lun=lun) for lun in (0, 1)]
        for number, device in enumerate(devices):
            attend(device)
            SCSI(device, 512).write10(0, 1, bytes([number + 1]) * 512)
        for number, device in enumerate(devices):
            assert bytes(SCSI(device, 512).read10(0, 1).datain) == bytes([number + 1]) * 512
            device.close()
        assert driver.in_flight == 0


def test_a_lun_that_is_not_there_is_an_illegal_request_and_a_target_is_a_bad_target(live: LiveEndpoint) -> None:
    with ScsiDriver(live.path) as driver:
        absent = VstoreDevice(driver, lun=9).command(TEST_UNIT_READY)
        assert (absent.response, absent.status, absent.sense[2] & 0xF, absent.sense[12]) == (Response.OK, 2, 5, 0x25)
        assert VstoreDevice(driver, target=9).command(TEST_UNIT_READY).response == Response.BAD_TARGET
        with pytest.raises(TransportFailure, match="BAD_TARGET"):
            SCSI(VstoreDevice(driver, target=9), 512)


@pytest.mark.parametrize(
    ("count", "room", "residual"), [(2, 1024, 0), (2, 2048, 1024), (0, 512, 512)], ids=["exact", "long", "nothing"]
)
def test_a_data_in_buffer_longer_than_the_transfer_leaves_a_residual_and_the_rest_untouched(
    device: VstoreDevice, count: int, room: int, residual: int
) -> None:
    result = device.command(cdb10(0x28, 0, count), data_in_length=room)
    assert (result.status, result.residual, result.data_in) == (0, residual, bytes(room - residual))
    assert result.used_length == RESPONSE_BYTES + room - residual
    assert result.untouched == bytes([POISON]) * residual


def test_inquiry_data_longer_than_the_allocation_length_is_cut_without_overrun(device: VstoreDevice) -> None:
    result = device.command(bytes.fromhex("120000000500"), data_in_length=64)
    assert (result.response, result.status, len(result.data_in), result.residual) == (Response.OK, 0, 5, 59)


def test_data_out_that_is_too_long_leaves_a_residual(device: VstoreDevice, live: LiveEndpoint) -> None:
    result = device.command(cdb10(0x2A, 0, 1), b"\x11" * 1024)
    assert (result.status, result.residual) == (0, 512)
    assert live.disks[0, 0].volume.read(0, 1024) == b"\x11" * 512 + bytes(512)


def test_commands_that_pyscsi_cannot_build_go_as_raw_cdbs(device: VstoreDevice, live: LiveEndpoint) -> None:
    device.command(cdb10(0x2A, 8, 16), b"\x22" * 8192)
    assert device.command(cdb10(0x35, 0, 0)).status == 0  # SYNCHRONIZE CACHE
    assert device.command(cdb10(0x2F, 8, 16, flags=2), b"\x22" * 8192).status == 0  # VERIFY, BYTCHK 01b
    parameters = struct.pack(">HHIQII", 22, 16, 0, 8, 8, 0)
    assert device.command(struct.pack(">BBIBHB", 0x42, 0, 0, 0, len(parameters), 0), parameters).status == 0
    assert live.disks[0, 0].volume.read(8 * 512, 8192) == bytes(4096) + b"\x22" * 4096
    assert device.command(cdb10(0x2F, 8, 16, flags=2), b"\x22" * 8192).sense[2] & 0xF == 0xE  # MISCOMPARE


def test_data_both_ways_and_a_cdb_beyond_32_bytes_are_refused_here(device: VstoreDevice) -> None:
    with pytest.raises(ValueError, match="data-out or data-in, not both"):
        device.command(TEST_UNIT_READY, b"1", 1)
    with pytest.raises(ValueError, match="at most 32 bytes here, not 33"):
        device.command(bytes(33))


@pytest.mark.parametrize(
    "transport",
    [
        TransportSettings(indirect=False, event_index=False),
        TransportSettings(indirect=False),
        TransportSettings(event_index=False),
        TransportSettings(region_sizes=[1 << 20] * 9, region_gap=0, mmap_offset=4096),
        TransportSettings(queue_size=512, first_index=65500),
    ],
    ids=["plain rings", "event index", "indirect", "nine regions", "late index"],
)
@pytest.mark.parametrize("segment_bytes", [1 << 20, 4096, 509])
def test_data_is_the_same_through_every_kind_of_ring(
    live: LiveEndpoint, transport: TransportSettings, segment_bytes: int
) -> None:
    data = Random(segment_bytes).randbytes(48 * 512)
    settings = DriverSettings(segment_bytes=segment_bytes, transport=transport)
    with VstoreDevice(live.path, settings=settings) as device:
        attend(device)
        for lba in range(0, BLOCKS - 48, 97):
            assert device.command(cdb10(0x2A, lba, 48), data).status == 0
            assert device.command(cdb10(0x28, lba, 48), data_in_length=len(data)).data_in == data
