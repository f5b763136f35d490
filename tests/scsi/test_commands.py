import pytest

from vstore.scsi import commands
from vstore.scsi.cdb import Cdb, Fast
from vstore.scsi.commands import BY_OPERATION_CODE, COMMANDS, fast_rows
from vstore.scsi.logical_unit import LogicalUnit

# Written down from SPC-4 clause 6 and SBC-3 clause 5, field by field: which bits vstore evaluates.
USAGE_DATA = {
    "TEST UNIT READY": "00 00 00 00 00 00",
    "REQUEST SENSE": "03 01 00 00 ff 00",
    "FORMAT UNIT": "04 3f 00 00 00 00",
    "READ (6)": "08 1f ff ff ff 00",
    "WRITE (6)": "0a 1f ff ff ff 00",
    "INQUIRY": "12 01 ff ff ff 00",
    "MODE SELECT (6)": "15 11 00 00 ff 00",
    "RESERVE (6)": "16 00 00 00 00 00",
    "RELEASE (6)": "17 00 00 00 00 00",
    "MODE SENSE (6)": "1a 08 ff ff ff 00",
    "RECEIVE DIAGNOSTIC RESULTS": "1c 01 ff ff ff 00",
    "SEND DIAGNOSTIC": "1d e4 00 00 00 00",
    "START STOP UNIT": "1b 01 00 00 05 00",
    "PREVENT ALLOW MEDIUM REMOVAL": "1e 00 00 00 01 00",
    "READ CAPACITY (10)": "25 00 00 00 00 00 00 00 00 00",
    "READ (10)": "28 18 ff ff ff ff 00 ff ff 00",
    "WRITE (10)": "2a 18 ff ff ff ff 00 ff ff 00",
    "WRITE AND VERIFY (10)": "2e 16 ff ff ff ff 00 ff ff 00",
    "VERIFY (10)": "2f 16 ff ff ff ff 00 ff ff 00",
    "PRE-FETCH (10)": "34 02 ff ff ff ff 00 ff ff 00",
    "SYNCHRONIZE CACHE (10)": "35 02 ff ff ff ff 00 ff ff 00",
    "READ DEFECT DATA (10)": "37 00 1f 00 00 00 00 ff ff 00",
    "WRITE BUFFER": "3b 1f ff ff ff ff ff ff ff 00",
    "READ BUFFER (10)": "3c 1f ff ff ff ff ff ff ff 00",
    "WRITE SAME (10)": "41 18 ff ff ff ff 00 ff ff 00",
    "UNMAP": "42 01 00 00 00 00 00 ff ff 00",
    "SANITIZE (OVERWRITE)": "48 a1 00 00 00 00 00 ff ff 00",
    "SANITIZE (BLOCK ERASE)": "48 a2 00 00 00 00 00 00 00 00",
    "SANITIZE (CRYPTOGRAPHIC ERASE)": "48 a3 00 00 00 00 00 00 00 00",
    "SANITIZE (EXIT FAILURE MODE)": "48 1f 00 00 00 00 00 00 00 00",
    "LOG SELECT": "4c 02 ff ff 00 00 00 ff ff 00",
    "LOG SENSE": "4d 00 ff ff 00 ff ff ff ff 00",
    "PERSISTENT RESERVE IN (READ KEYS)": "5e 00 00 00 00 00 00 ff ff 00",
    "PERSISTENT RESERVE IN (READ RESERVATION)": "5e 01 00 00 00 00 00 ff ff 00",
    "PERSISTENT RESERVE IN (REPORT CAPABILITIES)": "5e 02 00 00 00 00 00 ff ff 00",
    "PERSISTENT RESERVE IN (READ FULL STATUS)": "5e 03 00 00 00 00 00 ff ff 00",
    "PERSISTENT RESERVE OUT (REGISTER)": "5f 00 00 00 00 ff ff ff ff 00",
    "PERSISTENT RESERVE OUT (RESERVE)": "5f 01 ff 00 00 ff ff ff ff 00",
    "PERSISTENT RESERVE OUT (RELEASE)": "5f 02 ff 00 00 ff ff ff ff 00",
    "PERSISTENT RESERVE OUT (CLEAR)": "5f 03 00 00 00 ff ff ff ff 00",
    "PERSISTENT RESERVE OUT (PREEMPT)": "5f 04 ff 00 00 ff ff ff ff 00",
    "PERSISTENT RESERVE OUT (PREEMPT AND ABORT)": "5f 05 ff 00 00 ff ff ff ff 00",
    "PERSISTENT RESERVE OUT (REGISTER AND IGNORE EXISTING KEY)": "5f 06 00 00 00 ff ff ff ff 00",
    "PERSISTENT RESERVE OUT (REGISTER AND MOVE)": "5f 07 00 00 00 ff ff ff ff 00",
    "PERSISTENT RESERVE OUT (REPLACE LOST RESERVATION)": "5f 08 ff 00 00 ff ff ff ff 00",
    "MODE SELECT (10)": "55 11 00 00 00 00 00 ff ff 00",
    "RESERVE (10)": "56 00 00 00 00 00 00 00 00 00",
    "RELEASE (10)": "57 00 00 00 00 00 00 00 00 00",
    "MODE SENSE (10)": "5a 18 ff ff 00 00 00 ff ff 00",
    "EXTENDED COPY (LID1)": "83 00 00 00 00 00 00 00 00 00 ff ff ff ff 00 00",
    "RECEIVE COPY STATUS (LID1)": "84 00 ff 00 00 00 00 00 00 00 ff ff ff ff 00 00",
    "RECEIVE COPY OPERATING PARAMETERS": "84 03 00 00 00 00 00 00 00 00 ff ff ff ff 00 00",
    "RECEIVE COPY FAILURE DETAILS (LID1)": "84 04 ff 00 00 00 00 00 00 00 ff ff ff ff 00 00",
    "READ (16)": "88 18 ff ff ff ff ff ff ff ff ff ff ff ff 00 00",
    "COMPARE AND WRITE": "89 18 ff ff ff ff ff ff ff ff 00 00 00 ff 00 00",
    "WRITE (16)": "8a 18 ff ff ff ff ff ff ff ff ff ff ff ff 00 00",
    "ORWRITE (16)": "8b 18 ff ff ff ff ff ff ff ff ff ff ff ff 00 00",
    "WRITE AND VERIFY (16)": "8e 16 ff ff ff ff ff ff ff ff ff ff ff ff 00 00",
    "VERIFY (16)": "8f 16 ff ff ff ff ff ff ff ff ff ff ff ff 00 00",
    "PRE-FETCH (16)": "90 02 ff ff ff ff ff ff ff ff ff ff ff ff 00 00",
    "SYNCHRONIZE CACHE (16)": "91 02 ff ff ff ff ff ff ff ff ff ff ff ff 00 00",
    "WRITE ATOMIC (16)": "9c 18 ff ff ff ff ff ff ff ff ff ff ff ff 00 00",
    "WRITE SAME (16)": "93 19 ff ff ff ff ff ff ff ff ff ff ff ff 00 00",
    "READ CAPACITY (16)": "9e 10 00 00 00 00 00 00 00 00 ff ff ff ff 00 00",
    "GET LBA STATUS (16)": "9e 12 ff ff ff ff ff ff ff ff ff ff ff ff 00 00",
    "REPORT LUNS": "a0 00 ff 00 00 00 ff ff ff ff 00 00",
    "SECURITY PROTOCOL IN": "a2 ff ff ff 00 00 ff ff ff ff 00 00",
    "REPORT IDENTIFYING INFORMATION": "a3 05 00 00 00 00 ff ff ff ff fe 00",
    "REPORT TARGET PORT GROUPS": "a3 ea 00 00 00 00 ff ff ff ff 00 00",
    "REPORT SUPPORTED OPERATION CODES": "a3 0c 87 ff ff ff ff ff ff ff 00 00",
    "REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS": "a3 0d 80 00 00 00 ff ff ff ff 00 00",
    "REPORT TIMESTAMP": "a3 0f 00 00 00 00 ff ff ff ff 00 00",
    "SET IDENTIFYING INFORMATION": "a4 06 00 00 00 00 ff ff ff ff fe 00",
    "SET TIMESTAMP": "a4 0f 00 00 00 00 ff ff ff ff 00 00",
    "READ (12)": "a8 18 ff ff ff ff ff ff ff ff 00 00",
    "WRITE (12)": "aa 18 ff ff ff ff ff ff ff ff 00 00",
    "WRITE AND VERIFY (12)": "ae 16 ff ff ff ff ff ff ff ff 00 00",
    "VERIFY (12)": "af 16 ff ff ff ff ff ff ff ff 00 00",
    "READ DEFECT DATA (12)": "b7 1f 00 00 00 00 ff ff ff ff 00 00",
}

# SAM-5 5.2: the group code, bits 7 to 5 of the operation code, says how long a CDB is.
LENGTHS = {0: 6, 1: 10, 2: 10, 4: 16, 5: 12}


def test_every_command_is_listed_once_in_the_order_of_operation_codes() -> None:
    codes = [(row.opcode, row.service_action or 0) for row in COMMANDS]
    assert codes == sorted(set(codes))
    assert {row.name for row in COMMANDS} == set(USAGE_DATA)


@pytest.mark.parametrize("row", COMMANDS, ids=lambda row: row.name)
def test_usage_data_is_as_the_standards_print_the_cdb(row: type[Cdb]) -> None:
    assert row.usage_data() == bytes.fromhex(USAGE_DATA[row.name])


@pytest.mark.parametrize("row", COMMANDS, ids=lambda row: row.name)
def test_the_length_is_that_of_the_operation_code(row: type[Cdb]) -> None:
    assert row.length == LENGTHS[row.opcode >> 5]


@pytest.mark.parametrize("row", COMMANDS, ids=lambda row: row.name)
def test_every_command_has_a_handler_and_is_found_by_its_code(row: type[Cdb]) -> None:
    assert row in LogicalUnit.handlers
    assert BY_OPERATION_CODE[row.opcode][row.service_action] is row


def test_no_handler_serves_a_command_that_is_not_listed() -> None:
    assert set(LogicalUnit.handlers) == set(COMMANDS)


def test_a_command_has_service_actions_or_none() -> None:
    for actions in BY_OPERATION_CODE.values():
        assert len(actions) == 1 or None not in actions


def test_only_inquiry_report_luns_and_request_sense_pass_a_unit_attention() -> None:
    # SAM-5 5.14.1
    assert [row.name for row in COMMANDS if row.passes_attention] == ["REQUEST SENSE", "INQUIRY", "REPORT LUNS"]


def test_the_data_plane_is_told_of_the_media_commands() -> None:
    assert {(row.opcode, row.kind) for row in fast_rows()} == {
        (0x08, Fast.READ),
        (0x0A, Fast.WRITE),
        (0x28, Fast.READ),
        (0x2A, Fast.WRITE),
        (0x35, Fast.SYNCHRONIZE),
        (0x41, Fast.WRITE_SAME),
        (0x42, Fast.UNMAP),
        (0x88, Fast.READ),
        (0x8A, Fast.WRITE),
        (0x91, Fast.SYNCHRONIZE),
        (0x93, Fast.WRITE_SAME),
        (0xA8, Fast.READ),
        (0xAA, Fast.WRITE),
    }


def test_the_same_field_lies_at_the_same_place_in_commands_of_one_shape() -> None:
    for one, other in [
        (commands.Read10, commands.Write10),
        (commands.Read12, commands.Write12),
        (commands.Read16, commands.Write16),
        (commands.Read6, commands.Write6),
    ]:
        for name in ("lba", "transfer_length"):
            assert one.fields[name].position == other.fields[name].position
            assert one.fields[name].width == other.fields[name].width
