from pathlib import Path

import pytest

from tests.scsi.initiator import Initiator
from tests.scsi.sg3 import decoded
from vstore.scsi.commands import Inquiry, ReportTargetPortGroups

GROUP = "80 01 00 01 00 00 00 01 00 00 00 01"  # PREF, active/optimized; AO_SUP; group 1; one port: 1


def test_the_command_is_laid_out_as_spc_4_prints_it() -> None:
    built = ReportTargetPortGroups.build(parameter_data_format=1, allocation_length=0x01020304)
    assert built.hex(" ") == "a3 2a 00 00 00 00 01 02 03 04 00 00"


@pytest.mark.parametrize(
    ("form", "head"), [(0, "00 00 00 0c"), (1, "00 00 00 10 10 00 00 00")], ids=["length", "extended"]
)
def test_one_group_has_the_port_and_is_always_optimized(form: int, head: str) -> None:
    whole = bytes.fromhex(f"{head} {GROUP}")
    for length in (0, 3, 4, 7, 8, len(whole), 255):
        cdb = ReportTargetPortGroups.build(parameter_data_format=form, allocation_length=length)
        assert Initiator().good(cdb) == whole[:length]


@pytest.mark.parametrize("form", range(2, 8))
def test_other_formats_are_refused(form: int) -> None:
    assert Initiator().refused(ReportTargetPortGroups.build(parameter_data_format=form)) == (1, 7)


def test_inquiry_says_the_same_of_the_port_as_the_report(tmp_path: Path) -> None:
    initiator = Initiator()
    data = initiator.good(Inquiry.build(evpd=1, page_code=0x83, allocation_length=255))
    told = decoded("sg_vpd", data, tmp_path)
    assert "Relative target port: 0x1" in told
    assert "Target port group: 0x1" in told
    standard = initiator.good(Inquiry.build(allocation_length=96))
    assert standard[5] >> 4 & 3 == 0b01  # TPGS: implicit
