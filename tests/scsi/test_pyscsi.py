"""PYSCSI as the initiator: CDBs that another hand built, parameter data that another hand decodes."""

from typing import Any

import pytest
from pyscsi.pyscsi import scsi_enum_command
from pyscsi.pyscsi.scsi import SCSI
from pyscsi.pyscsi.scsi_cdb_inquiry import Inquiry
from pyscsi.pyscsi.scsi_sense import SCSICheckCondition

from tests.scsi.initiator import MIB, Initiator, make_unit
from vstore.scsi.task import Status
from vstore.scsi.vpd import VPD_PAGES


class ModelDevice:
    """A device as PYSCSI wants one, in front of the model. `cdbs`: what was sent."""

    CheckCondition = SCSICheckCondition
    opcodes = scsi_enum_command.spc
    devicetype = None

    def __init__(self, initiator: Initiator) -> None:
        self.initiator = initiator
        self.cdbs: list[bytes] = []

    def execute(self, cmd: Any, en_raw_sense: bool = False) -> None:  # noqa: ARG002
        self.cdbs.append(bytes(cmd.cdb))
        response = self.initiator.send(bytes(cmd.cdb), bytes(cmd.dataout or b""), len(cmd.datain))
        if response.status is Status.CHECK_CONDITION:
            raise self.CheckCondition(bytearray(response.sense))
        assert response.status is Status.GOOD
        cmd.datain[: len(response.data_in)] = response.data_in

    def close(self) -> None:
        pass


def scsi(initiator: Initiator | None = None) -> SCSI:
    return SCSI(ModelDevice(initiator or Initiator()), 512)


def test_standard_inquiry_data() -> None:
    told = scsi().inquiry().result
    assert told["peripheral_qualifier"] == told["peripheral_device_type"] == 0
    assert (told["version"], told["response_data_format"], told["hisup"], told["cmdque"]) == (6, 2, 1, 1)
    assert told["additional_length"] == 91
    assert (told["normaca"], told["protect"], told["tpgs"], told["rmb"]) == (0, 0, 1, 0)
    assert bytes(told["t10_vendor_identification"]) == b"VSTORE  "
    assert bytes(told["product_identification"]) == b"DISK".ljust(16)


def test_supported_pages_and_serial_number() -> None:
    disk = scsi()
    assert disk.inquiry(evpd=1, page_code=0x00).result["vpd_pages"] == sorted(VPD_PAGES)
    assert disk.inquiry(evpd=1, page_code=0x80).result["unit_serial_number"] == b"8a5f"


def test_device_identification() -> None:
    designators = scsi().inquiry(evpd=1, page_code=0x83, alloclen=255).result["designator_descriptors"]
    naa, t10, port, group = designators
    assert (naa["designator_type"], naa["association"], naa["code_set"]) == (Inquiry.DESIGNATOR.NAA, 0, 1)
    assert naa["designator"]["naa"] == 3
    assert (t10["designator_type"], t10["code_set"]) == (Inquiry.DESIGNATOR.T10_VENDOR_ID, 2)
    assert bytes(t10["designator"]["t10_vendor_id"]) == b"VSTORE  "
    assert (port["association"], port["designator"]["relative_port"]) == (1, 1)
    assert (group["association"], group["designator"]["target_portal_group"]) == (1, 1)


def test_block_limits_and_provisioning() -> None:
    disk = scsi()
    limits = disk.inquiry(evpd=1, page_code=0xB0).result
    assert limits["wsnz"] == 1
    assert limits["max_xfer_len"] == 65536
    assert (limits["max_unmap_lba_count"], limits["max_unmap_bd_count"]) == (0xFFFFFFFF, 256)
    assert (limits["opt_xfer_len_gran"], limits["opt_unmap_gran"], limits["ugavalid"]) == (8, 8, 1)
    provisioning = disk.inquiry(evpd=1, page_code=0xB2).result
    assert [provisioning[name] for name in ("lbpu", "lpbws", "lbpws10", "provisioning_type")] == [1, 1, 1, 2]
    assert disk.inquiry(evpd=1, page_code=0xB1).result["medium_rotation_rate"] == 1


def test_capacity() -> None:
    disk = scsi(Initiator(make_unit(logical_block_length=4096)))
    assert disk.readcapacity10().result == {"returned_lba": 255, "block_length": 4096}
    told = disk.readcapacity16().result
    assert (told["returned_lba"], told["block_length"], told["lbppbe"]) == (255, 4096, 0)
    assert (told["lbpme"], told["lbprz"], told["prot_en"], told["lowest_aligned_lba"]) == (1, 1, 0, 0)


def test_report_luns() -> None:
    assert scsi().reportluns().result["luns"] == [{"lun0": 0}]


@pytest.mark.parametrize("method", ["modesense6", "modesense10"])
def test_the_control_page(method: str) -> None:
    disk = scsi()
    told = getattr(disk, method)(page_code=0x0A, dbd=1, alloclen=255).result
    page = told["mode_pages"][0]
    assert (page["page_code"], page["ps"], page["spf"]) == (0x0A, 0, 0)
    assert (page["d_sense"], page["gltsd"], page["queue_algorithm_modifier"]) == (0, 1, 1)
    assert (page["tst"], page["qerr"], page["tas"], page["swp"]) == (0, 0, 0, 0)


@pytest.mark.parametrize("write", ["write10", "write12", "write16"])
@pytest.mark.parametrize("read", ["read10", "read12", "read16"])
def test_what_is_written_is_read_again(write: str, read: str) -> None:
    disk = scsi()
    data = bytearray(range(256)) * 4
    getattr(disk, write)(5, 2, data, fua=1, dpo=1, group=3)
    assert getattr(disk, read)(5, 2).datain == data
    assert getattr(disk, read)(4, 1, fua=1).datain == bytes(512)


@pytest.mark.parametrize("method", ["writesame10", "writesame16"])
def test_write_same(method: str) -> None:
    initiator = Initiator()
    disk = scsi(initiator)
    getattr(disk, method)(2, 6, bytearray(b"\x5a" * 512))
    assert initiator.data == bytes(1024) + b"\x5a" * 3072 + bytes(MIB - 4096)
    getattr(disk, method)(2, 6, bytearray(512), unmap=1)
    assert not any(initiator.data)


def test_ndob() -> None:
    initiator = Initiator()
    initiator.data[:512] = b"\1" * 512
    disk = scsi(initiator)
    disk.writesame16(0, 1, bytearray(), ndob=1)
    assert disk.device.cdbs[-1].hex() == "9301" + "00" * 8 + "00000001" + "0000"
    assert not any(initiator.data)


def test_a_refusal_is_read_as_such() -> None:
    with pytest.raises(SCSICheckCondition) as caught:
        scsi().read10(MIB // 512, 1)
    told = str(caught.value)
    assert "Illegal Request" in told
    assert "logical block address out of range" in told.lower()


def test_a_page_that_is_not_there_is_refused() -> None:
    with pytest.raises(SCSICheckCondition, match="Invalid Field In CDB"):
        scsi().modesense6(page_code=0x1D)


def test_unit_ready() -> None:
    scsi().testunitready()


def test_the_status_of_blocks() -> None:
    disk = scsi()
    disk.writesame16(8, 8, bytearray(512), unmap=1)
    told = disk.getlbastatus(4).result["lbas"]
    assert [(row["lba"], row["num_blocks"], row["p_status"]) for row in told] == [(4, 4, 0), (8, 8, 1), (16, 2032, 0)]
