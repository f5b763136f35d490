from pathlib import Path

import pytest

from tests.scsi.initiator import INVALID_FIELD_IN_CDB, INVALID_OPCODE, NOT_STARTED, POWER_ON, Initiator, make_unit
from tests.scsi.sg3 import decoded
from vstore.fuzz.sense_data import parse_sense
from vstore.scsi.commands import COMMANDS, ReportLuns, ReportSupportedOperationCodes, Unmap
from vstore.scsi.kept_state import MemoryState
from vstore.scsi.sense import AdditionalSense
from vstore.scsi.target import Target

CAPACITY_CHANGED = (6, 0x2A, 0x09)
LUNS_CHANGED = (6, 0x3F, 0x0E)


# ---- INQUIRY, TEST UNIT READY, REQUEST SENSE ------------------------------------------------------------


def test_standard_inquiry_data_is_as_printed() -> None:
    data = Initiator().good("12 00 00 00 ff 00")
    assert len(data) == 96
    assert data[:8].hex(" ") == "00 00 06 12 5b 18 00 02"  # SPC-4, HISUP, 91 more bytes, TPGS, 3PC, CMDQUE
    assert data[8:32] == b"VSTORE  DISK            "
    assert data[58:64].hex(" ") == "00 a0 04 60 04 c0"  # SAM-5, SPC-4, SBC-3


def test_sg_inq_reads_the_standard_inquiry_data(tmp_path: Path) -> None:
    told = decoded("sg_inq", Initiator().good("12 00 00 00 ff 00"), tmp_path)
    for words in ("version=0x06  [SPC-4]", "RMB=0", "HiSUP=1", "CmdQue=1", "Peripheral device type: disk"):
        assert words in told
    assert "Vendor identification: VSTORE" in told
    assert "Product identification: DISK" in told


def test_a_page_code_without_evpd_is_refused() -> None:
    assert Initiator().refused("12 00 80 00 ff 00") == (2, 7)


def test_an_unknown_vital_product_data_page_is_refused() -> None:
    assert Initiator().refused("12 01 b7 00 ff 00") == (2, 7)


def test_the_obsolete_cmddt_bit_is_refused() -> None:
    assert Initiator().refused("12 02 00 00 ff 00") == (1, 1)


@pytest.mark.parametrize("cdb", ["12 60 00 00 24 00", "00 60 00 00 00 00", "03 60 00 00 12 00"])
def test_a_scsi_2_lun_in_the_cdb_of_a_first_contact_is_ignored(cdb: str) -> None:
    Initiator().good(cdb)


def test_inquiry_and_report_luns_pass_a_unit_attention_and_leave_it() -> None:
    initiator = Initiator(settled=False)
    initiator.good("12 00 00 00 ff 00")
    initiator.good(ReportLuns.build(allocation_length=64))
    assert initiator.check("00 00 00 00 00 00").code == POWER_ON
    initiator.good("00 00 00 00 00 00")


@pytest.mark.parametrize("desc", [0, 1])
def test_request_sense_reports_a_unit_attention_as_data_and_clears_it(desc: int) -> None:
    initiator = Initiator(settled=False)
    sense = parse_sense(initiator.good(bytes([3, desc, 0, 0, 252, 0])))
    assert (sense.code, sense.descriptor) == (POWER_ON, bool(desc))
    initiator.good("00 00 00 00 00 00")
    assert parse_sense(initiator.good(bytes([3, desc, 0, 0, 252, 0]))).code == (0, 0, 0)


def test_request_sense_reports_a_stopped_unit() -> None:
    initiator = Initiator()
    initiator.good("1b 00 00 00 00 00")
    assert parse_sense(initiator.good("03 00 00 00 fc 00")).code == NOT_STARTED


def test_request_sense_is_cut_at_its_allocation_length() -> None:
    assert len(Initiator().good("03 00 00 00 08 00")) == 8


# ---- REPORT LUNS ---------------------------------------------------------------------------------------


def target_with(*luns: int) -> Target:
    target = Target()
    for lun in luns:
        target.add(lun, make_unit())
    return target


def luns_of(data: bytes) -> list[str]:
    assert int.from_bytes(data[:4]) == len(data) - 8
    assert data[4:8] == bytes(4)
    return [data[at : at + 8].hex() for at in range(8, len(data), 8)]


LUN_0, LUN_255 = "0000000000000000", "00ff000000000000"
LUN_256, LUN_16383 = "4100000000000000", "7fff000000000000"
WELL_KNOWN = "c101000000000000"


@pytest.mark.parametrize(
    ("select", "luns"),
    [
        (0, [LUN_0, LUN_255, LUN_256, LUN_16383]),
        (1, [WELL_KNOWN]),
        (2, [LUN_0, LUN_255, LUN_256, LUN_16383, WELL_KNOWN]),
    ],
)
def test_report_luns_lists_what_select_report_asks_for(select: int, luns: list[str]) -> None:
    initiator = Initiator(target_with(16383, 256, 0, 255))
    assert luns_of(initiator.good(ReportLuns.build(select_report=select, allocation_length=256))) == luns


@pytest.mark.parametrize("select", [3, 0x10, 0x11, 0x12, 0xFF])
def test_other_selections_are_refused(select: int) -> None:
    assert Initiator().refused(ReportLuns.build(select_report=select, allocation_length=256)) == (2, 7)


def test_a_cut_list_still_says_its_whole_length() -> None:
    data = Initiator(target_with(0, 1)).good(ReportLuns.build(allocation_length=16))
    assert (int.from_bytes(data[:4]), len(data)) == (16, 16)


def test_all_luns_that_there_can_be_are_listed() -> None:
    target = Target()
    unit = make_unit()
    for lun in range(0, 16384, 64):
        target._luns[lun] = unit  # as add() does, less the thousands of unit attentions
    data = Initiator(target).good(ReportLuns.build(allocation_length=1 << 20))
    assert len(luns_of(data)) == 256


def test_report_luns_ends_reported_luns_data_has_changed_on_every_unit_for_this_nexus_alone() -> None:
    target = target_with(0, 1)
    one, other = Initiator(target), Initiator(target)
    for initiator in (one, other):
        assert initiator.check("00", lun=1).code == POWER_ON
    target.add(2, make_unit())
    one.good(ReportLuns.build(allocation_length=256))
    one.good("00", lun=0)
    one.good("00", lun=1)
    assert other.check("00", lun=0).code == LUNS_CHANGED
    assert other.check("00", lun=1).code == LUNS_CHANGED


def test_a_unit_without_a_target_reports_itself() -> None:
    initiator = Initiator()
    unit = initiator.unit
    unit.report_luns_changed()
    task = initiator.task(ReportLuns.build(allocation_length=64))
    task.inventory = None
    work = unit.execute(task)
    with pytest.raises(StopIteration) as end:
        work.send(None)
    assert luns_of(end.value.value.data_in) == [LUN_0]
    initiator.good("00")


# ---- REPORT SUPPORTED OPERATION CODES -------------------------------------------------------------------


def codes(initiator: Initiator, option: int, opcode: int = 0, action: int = 0, rctd: int = 0) -> bytes:
    return initiator.good(
        ReportSupportedOperationCodes.build(
            reporting_options=option,
            requested_operation_code=opcode,
            requested_service_action=action,
            rctd=rctd,
            allocation_length=4096,
        )
    )


@pytest.mark.parametrize(("rctd", "size"), [(0, 8), (1, 20)])
def test_all_commands_are_listed_with_their_lengths(rctd: int, size: int) -> None:
    data = codes(Initiator(make_unit(state=MemoryState(), replaces_key=True)), 0, rctd=rctd)
    assert int.from_bytes(data[:4]) == len(data) - 4 == size * len(COMMANDS)
    for row, at in zip(COMMANDS, range(4, len(data), size), strict=True):
        descriptor = data[at : at + size]
        assert descriptor[0] == row.opcode
        assert int.from_bytes(descriptor[2:4]) == (row.service_action or 0)
        assert descriptor[5] == (row.service_action is not None) | rctd << 1
        assert int.from_bytes(descriptor[6:8]) == row.length
        assert descriptor[8:].hex() == ("000a" + "00" * 10 if rctd else "")


@pytest.mark.parametrize(("option", "opcode", "action"), [(1, 0x28, 0), (1, 0x28, 7), (3, 0x28, 0), (2, 0x9E, 0x10)])
def test_one_command_is_told_with_its_usage_data(option: int, opcode: int, action: int) -> None:
    data = codes(Initiator(), option, opcode, action)
    row = next(row for row in COMMANDS if row.opcode == opcode)
    assert data[:4] == bytes([0, 3, 0, row.length])
    assert data[4:] == row.usage_data()


def test_one_command_with_timeouts_says_so_and_appends_them() -> None:
    data = codes(Initiator(), 3, 0xA3, 0x0C, rctd=1)
    assert data[:4].hex() == "0083000c"
    assert data[16:].hex() == "000a" + "00" * 10


@pytest.mark.parametrize(
    ("option", "opcode", "action"),
    [(1, 0xFF, 0), (2, 0xFF, 0), (2, 0x9E, 0x11), (3, 0x9E, 0x11), (3, 0x28, 1), (3, 0xFF, 0)],
)
def test_a_command_that_is_not_there_is_told_as_not_supported(option: int, opcode: int, action: int) -> None:
    assert codes(Initiator(), option, opcode, action, rctd=1).hex() == "00010000"


@pytest.mark.parametrize(("option", "opcode", "pointer"), [(1, 0x9E, (3, 7)), (2, 0x28, (3, 7)), (4, 0, (2, 2))])
def test_an_option_that_does_not_fit_the_command_is_refused(option: int, opcode: int, pointer: tuple[int, int]) -> None:
    cdb = ReportSupportedOperationCodes.build(
        reporting_options=option, requested_operation_code=opcode, allocation_length=64
    )
    assert Initiator().refused(cdb) == pointer


def test_unmap_and_block_erase_are_commands_of_thin_units_only() -> None:
    thin, thick = Initiator(make_unit(thin=True)), Initiator(make_unit(thin=False))
    assert codes(thin, 1, Unmap.opcode)[1] == 3
    assert codes(thick, 1, Unmap.opcode)[1] == 1
    assert len(codes(thin, 0)) - len(codes(thick, 0)) == 2 * 8
    assert thick.check(Unmap.build()).code == INVALID_OPCODE


# ---- REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS ---------------------------------------------------------


def test_every_task_management_function_but_clear_aca_is_reported() -> None:
    initiator = Initiator()
    # ATS, ATSS, CTSS, LURS, QTS; QTSS, ITNRS
    assert initiator.good("a3 0d 00 00 0000 00000010 00 00").hex(" ") == "dc 03 00 00"
    assert initiator.good("a3 0d 80 00 0000 00000010 00 00").hex() == "dc03000c" + "00" * 12


def test_other_unit_attentions_wait_behind_the_power_on() -> None:
    initiator = Initiator(settled=False)
    initiator.check("00")
    initiator.unit.establish(AdditionalSense.CAPACITY_DATA_HAS_CHANGED)
    initiator.unit.report_luns_changed()
    assert initiator.check("00").code == CAPACITY_CHANGED
    assert initiator.check("00").code == LUNS_CHANGED
    initiator.good("00")


def test_a_refused_request_sense_leaves_the_unit_attention() -> None:
    initiator = Initiator(settled=False)
    assert initiator.check("03 02 00 00 12 00").code == INVALID_FIELD_IN_CDB
    assert initiator.check("00").code == POWER_ON
