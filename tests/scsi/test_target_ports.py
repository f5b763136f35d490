from pathlib import Path

import pytest

from tests.scsi.cluster import FULL_STATUS, IGNORE, cluster
from tests.scsi.initiator import Initiator
from tests.scsi.sg3 import decoded
from vstore.scsi.commands import Inquiry, ReportTargetPortGroups
from vstore.scsi.target import WELL_KNOWN_REPORT_LUNS, Target
from vstore.scsi.task import ITNexus
from vstore.scsi.vpd import VPD_PAGES

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


def relative_port(initiator: Initiator, lun: int = 0) -> int:
    """Of the one designator of this kind in VPD page 83h."""
    data = initiator.good(Inquiry.build(evpd=1, page_code=0x83, allocation_length=255), lun=lun)
    found, at = [], 4
    while at < len(data):
        if data[at + 1] == 0x14:  # association: target port; relative target port identifier
            assert data[at : at + 6].hex(" ") == "01 14 00 04 00 00"
            found.append(int.from_bytes(data[at + 6 : at + 8]))
        at += 4 + data[at + 3]
    assert len(found) == 1
    return found[0]


def test_each_nexus_is_told_the_port_that_it_came_through_and_all_of_them_all_the_ports() -> None:
    nodes = cluster("one", "two", "three")
    assert [relative_port(node) for node in nodes] == [1, 2, 3]
    for node in nodes:
        report = node.good(ReportTargetPortGroups.build(allocation_length=255))
        assert report[11] == 3
        assert [report[at : at + 4].hex() for at in range(12, 24, 4)] == ["00000001", "00000002", "00000003"]
        ports = node.good(Inquiry.build(evpd=1, page_code=0x88, allocation_length=255))[4:]
        assert [ports[at : at + 4].hex() for at in range(0, 36, 12)] == ["00000001", "00000002", "00000003"]


def test_more_ports_than_a_descriptor_counts_are_of_more_groups_and_each_stays_in_its_own() -> None:
    (node,) = cluster("one")
    node.unit.ports |= {2, 255, 256, 510, 511, 0xFFFF}
    report = node.good(ReportTargetPortGroups.build(allocation_length=255))
    groups, at = {}, 4
    while at < len(report):
        number, count = int.from_bytes(report[at + 2 : at + 4]), report[at + 7]
        assert (report[at], report[at + 1]) == (0x80, 1)
        places = range(at + 8, at + 8 + 4 * count, 4)
        groups[number] = [int.from_bytes(report[place + 2 : place + 4]) for place in places]
        at = places.stop
    assert groups == {1: [1, 2, 255], 2: [256, 510], 3: [511], 257: [0xFFFF]}
    assert int.from_bytes(report[:4]) == len(report) - 4


def test_a_unit_behind_ports_of_more_than_one_group_tells_each_nexus_its_own() -> None:
    (node,) = cluster("one")
    node.unit.ports |= set(range(1, 600))
    assert len(node.good(ReportTargetPortGroups.build(allocation_length=4096))) == 4 + 3 * 8 + 4 * 599
    page = VPD_PAGES[0x83].body(node.unit, 256)
    assert page[-16:].hex(" ") == "01 14 00 04 00 00 01 00 01 15 00 04 00 00 00 02"


def test_a_registration_names_the_port_that_inquiry_names() -> None:
    nodes = cluster("one", "two")
    for node in nodes:
        node.does(IGNORE, 0, 7)
    status = nodes[0].asks(FULL_STATUS)
    told, at = set(), 8
    while at < len(status):
        told.add(int.from_bytes(status[at + 18 : at + 20]))
        at += 24 + int.from_bytes(status[at + 20 : at + 24])
    assert told == {relative_port(node) for node in nodes}


def test_a_port_that_nobody_has_noted_is_told_all_the_same() -> None:
    initiator = Initiator()
    initiator.nexus = ITNexus("late", 0x1234)
    initiator.send("00 00 00 00 00 00")
    assert relative_port(initiator) == 0x1234
    assert initiator.good(Inquiry.build(evpd=1, page_code=0x88, allocation_length=255))[6:8].hex() == "1234"
    assert initiator.good(ReportTargetPortGroups.build(allocation_length=255))[14:16].hex() == "1234"


def test_the_well_known_unit_tells_the_port_too() -> None:
    initiator = Initiator(Target(2))
    initiator.nexus = ITNexus("vm1", 2)
    initiator.send("00 00 00 00 00 00", lun=WELL_KNOWN_REPORT_LUNS)
    assert relative_port(initiator, WELL_KNOWN_REPORT_LUNS) == 2
