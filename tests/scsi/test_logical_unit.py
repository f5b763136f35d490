import pytest

from tests.scsi.initiator import INVALID_OPCODE, LUN_NOT_SUPPORTED, POWER_ON, Initiator
from vstore.fuzz.sense_data import parse_sense
from vstore.scsi.commands import COMMANDS, Inquiry, ReportLuns, RequestSense, TestUnitReady
from vstore.scsi.target import WELL_KNOWN_REPORT_LUNS, Target

ABSENT = 7
WELL_KNOWN = WELL_KNOWN_REPORT_LUNS


# ---- no logical unit -----------------------------------------------------------------------------------


def test_inquiry_says_that_no_logical_unit_can_be_there() -> None:
    data = Initiator().good(Inquiry.build(allocation_length=255), lun=ABSENT)
    assert data[0] == 0x7F
    assert len(data) == 96


def test_request_sense_says_so_as_data() -> None:
    initiator = Initiator()
    for desc in (0, 1):
        sense = parse_sense(initiator.good(RequestSense.build(desc=desc, allocation_length=252), lun=ABSENT))
        assert (sense.code, sense.descriptor) == (LUN_NOT_SUPPORTED, bool(desc))


def test_report_luns_answers_for_the_target() -> None:
    data = Initiator().good(ReportLuns.build(allocation_length=64), lun=ABSENT)
    assert data == bytes([0, 0, 0, 8]) + bytes(12)


def test_an_empty_target_reports_no_luns() -> None:
    data = Initiator(Target(), settled=False).good(ReportLuns.build(allocation_length=64))
    assert data == bytes(8)


@pytest.mark.parametrize("row", [row for row in COMMANDS if row not in (Inquiry, RequestSense, ReportLuns)])
def test_every_other_command_is_refused_as_not_supported_here(row: type[TestUnitReady]) -> None:
    assert Initiator().check(row.build(), lun=ABSENT).code == LUN_NOT_SUPPORTED


@pytest.mark.parametrize("cdb", ["ff", "a3 1f", "28 ff"])
def test_so_is_what_is_no_command_at_all(cdb: str) -> None:
    assert Initiator().check(cdb, lun=ABSENT).code == LUN_NOT_SUPPORTED


@pytest.mark.parametrize(("cdb", "pointer"), [("12 01 00 00 ff 00", (1, 0)), ("12 00 80 00 ff 00", (2, 7))])
def test_there_is_no_vital_product_data_there(cdb: str, pointer: tuple[int, int]) -> None:
    sense = Initiator().check(cdb, lun=ABSENT)
    assert (sense.byte, sense.bit) == pointer


# ---- the REPORT LUNS well known logical unit -----------------------------------------------------------


def test_the_well_known_unit_has_its_own_device_type_and_unit_attentions() -> None:
    initiator = Initiator()
    assert initiator.good("12 00 00 00 ff 00", lun=WELL_KNOWN)[0] == 0x1E
    assert initiator.check("00", lun=WELL_KNOWN).code == POWER_ON
    initiator.good("00", lun=WELL_KNOWN)


def test_the_well_known_unit_has_the_two_pages_that_every_unit_must_have() -> None:
    initiator = Initiator()
    assert initiator.good("12 01 00 00 ff 00", lun=WELL_KNOWN).hex(" ") == "1e 00 00 02 00 83"
    # SPC-4 7.8.6.2.2: no designator of a logical unit (association 00b); this one is of the target port
    assert initiator.good("12 01 83 00 ff 00", lun=WELL_KNOWN).hex(" ") == "1e 83 00 08 01 14 00 04 00 00 00 01"


@pytest.mark.parametrize("cdb", ["12 01 80 00 ff 00", "12 01 b0 00 ff 00", "12 00 83 00 ff 00"])
def test_it_has_no_other_page(cdb: str) -> None:
    sense = Initiator().check(cdb, lun=WELL_KNOWN)
    assert (sense.byte, sense.bit) == (2, 7)


def test_the_well_known_unit_tells_of_changed_luns() -> None:
    initiator = Initiator()
    initiator.check("00", lun=WELL_KNOWN)
    initiator.target.remove(0)
    sense = parse_sense(initiator.good("03 00 00 00 fc 00", lun=WELL_KNOWN))
    assert sense.code == (6, 0x3F, 0x0E)
    assert parse_sense(initiator.good("03 01 00 00 fc 00", lun=WELL_KNOWN)).code == (0, 0, 0)


def test_the_well_known_unit_reports_luns_and_its_own_commands() -> None:
    initiator = Initiator()
    assert len(initiator.good(ReportLuns.build(select_report=2, allocation_length=64), lun=WELL_KNOWN)) == 24
    initiator.check("00", lun=WELL_KNOWN)
    listed = initiator.good("a3 0c 00 00 0000 00001000 00 00", lun=WELL_KNOWN)
    assert [listed[at] for at in range(4, len(listed), 8)] == [0x00, 0x03, 0x12, 0xA0, 0xA3, 0xA3]


def test_the_well_known_unit_has_no_medium() -> None:
    initiator = Initiator()
    initiator.check("00", lun=WELL_KNOWN)
    for cdb in ("28", "1a 00 3f", "9e 10"):
        assert initiator.check(cdb, lun=WELL_KNOWN).code == INVALID_OPCODE
