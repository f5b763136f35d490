from pathlib import Path

import pytest

from tests.scsi.initiator import Initiator, make_unit
from tests.scsi.sg3 import decoded
from vstore.scsi.medium import MemoryMedium
from vstore.scsi.vpd import VPD_PAGES


def page(initiator: Initiator, code: int) -> bytes:
    data = initiator.good(bytes([0x12, 1, code, 0, 0xFF, 0]))
    assert data[:2] == bytes([0, code])
    assert int.from_bytes(data[2:4]) == len(data) - 4
    return data


def test_the_supported_pages_are_sorted_and_all_answer() -> None:
    initiator = Initiator()
    codes = page(initiator, 0x00)[4:]
    assert codes.hex(" ") == "00 80 83 86 87 88 b0 b1 b2"
    for code in codes:
        page(initiator, code)


@pytest.mark.parametrize("code", VPD_PAGES)
def test_every_page_is_cut_at_the_allocation_length(code: int) -> None:
    initiator = Initiator()
    whole = page(initiator, code)
    for length in range(len(whole) + 2):
        assert initiator.good(bytes([0x12, 1, code, 0, length, 0])) == whole[:length]


def test_the_serial_number_is_told() -> None:
    assert page(Initiator(), 0x80)[4:] == b"8a5f"


def test_device_identification_has_a_locally_assigned_naa_and_a_t10_designator() -> None:
    data = page(Initiator(), 0x83)
    assert data[4:16].hex(" ") == "01 03 00 08 37 06 05 04 03 02 01 00"
    assert data[16:20].hex(" ") == "02 01 00 0c"
    assert data[20:32] == b"VSTORE  8a5f"
    assert data[32:].hex(" ") == "01 14 00 04 00 00 00 01 01 15 00 04 00 00 00 01"  # relative port, port group


def test_sg_vpd_reads_the_device_identification(tmp_path: Path) -> None:
    told = decoded("sg_vpd", page(Initiator(), 0x83), tmp_path)
    assert "0x3706050403020100" in told
    assert "vendor specific: 8a5f" in told


def test_extended_inquiry_data_claims_what_is_there() -> None:
    assert page(Initiator(), 0x86)[4:].hex(" ") == "00 07 01 01" + " 00" * 56  # HEADSUP, ORDSUP, SIMPSUP, V_SUP, LUICLR


def test_mode_pages_are_shared_and_the_one_port_has_its_number(tmp_path: Path) -> None:
    initiator = Initiator()
    assert page(initiator, 0x87)[4:].hex(" ") == "3f ff 00 00"
    assert page(initiator, 0x88)[4:].hex(" ") == "00 00 00 01 00 00 00 00 00 00 00 00"
    assert "Policy: shared" in decoded("sg_vpd", page(initiator, 0x87), tmp_path)
    assert "Relative port=1" in decoded("sg_vpd", page(initiator, 0x88), tmp_path)


def test_block_limits_of_a_thin_unit(tmp_path: Path) -> None:
    told = decoded("sg_vpd", page(Initiator(), 0xB0), tmp_path)
    for words in (
        "Write same non-zero (WSNZ): 1",
        "Maximum compare and write length: 255 blocks",
        "Optimal transfer length granularity: 8 blocks",
        "Maximum transfer length: 65536 blocks",
        "Maximum unmap LBA count: -1 [unbounded]",
        "Maximum unmap block descriptor count: 256",
        "Optimal unmap granularity: 8 blocks",
        "Unmap granularity alignment valid: true",
        "Unmap granularity alignment: 0",
        "Maximum write same length: 0x200000 blocks",
        "Maximum atomic transfer length: 0",
    ):
        assert words in told


def test_block_limits_of_a_thick_unit_with_4096_byte_blocks() -> None:
    data = page(Initiator(make_unit(thin=False, logical_block_length=4096)), 0xB0)
    assert len(data) == 64
    assert data[4:12].hex(" ") == "01 ff 00 01 00 00 20 00"  # one block is a physical block; 8192 blocks at most
    assert not any(data[12:36])
    assert int.from_bytes(data[36:44]) == 1 << 18


def test_block_device_characteristics(tmp_path: Path) -> None:
    told = decoded("sg_vpd", page(Initiator(), 0xB1), tmp_path)
    assert "Non-rotating medium" in told
    assert "FUAB=1" in told
    assert "VBULS=1" in told
    for rate in (0, 1, 0x401, 7200, 0xFFFE):
        assert page(Initiator(make_unit(rotation_rate=rate)), 0xB1)[4:6] == rate.to_bytes(2)


@pytest.mark.parametrize(("thin", "body"), [(True, "0b e4 02 00"), (False, "00 00 00 00")])
def test_logical_block_provisioning_is_true_to_the_unit(thin: bool, body: str) -> None:
    assert page(Initiator(make_unit(thin=thin)), 0xB2)[4:].hex(" ") == body


def test_sg_vpd_reads_logical_block_provisioning(tmp_path: Path) -> None:
    told = decoded("sg_vpd", page(Initiator(), 0xB2), tmp_path)
    for words in ("(LBPU): 1", "(LBPWS): 1", "(LBPWS10): 1", "(LBPRZ): 1", "Anchored LBAs supported (ANC_SUP): 0"):
        assert words in told
    assert "Provisioning type: 2" in told


def test_a_unit_is_thin_where_its_medium_deallocates() -> None:
    thick = make_unit(medium=MemoryMedium(1 << 20, deallocates=False))
    assert page(Initiator(thick), 0xB2)[6] == 0


def test_a_read_only_unit_tells_of_no_way_to_deallocate() -> None:
    """UNMAP and WRITE SAME are refused there, so no bit and no limit may promise them."""
    unit = Initiator(make_unit(thin=True, read_only=True))
    assert not any(page(unit, 0xB2)[4:])
    limits = page(unit, 0xB0)
    assert not any(limits[20:28])  # MAXIMUM UNMAP LBA COUNT, MAXIMUM UNMAP BLOCK DESCRIPTOR COUNT
    assert not limits[32] >> 7  # UGAVALID
    assert unit.good("9e 10 0000000000000000 00000020 00 00")[14] >> 7 == 0  # LBPME
    assert unit.good("a3 0c 01 42 0000 00000100 00 00")[1] & 7 == 1  # UNMAP is no command of this unit
