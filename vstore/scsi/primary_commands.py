"""The CDBs of SPC-4, and those of SPC-2 that are still sent, in the order of operation codes: see commands.py."""

from vstore.scsi.cdb import Access, Beside, Cdb
from vstore.scsi.field import IGNORED, ZERO, bit, bits, u8, u16, u24, u32

# In byte 1, bits 7 to 5 held the logical unit number in SCSI-2. An initiator that does not yet know the version of a
# logical unit still puts it there, so the commands of a first contact must not mind.


class TestUnitReady(Cdb, name="TEST UNIT READY", opcode=0x00, length=6, beside=Beside.SERVED):
    __test__ = False  # its name begins as pytest's classes do
    obsolete = bits(1, 7, 5, IGNORED)


class RequestSense(Cdb, name="REQUEST SENSE", opcode=0x03, length=6, passes_attention=True):
    obsolete = bits(1, 7, 5, IGNORED)
    desc = bit(1, 0)
    allocation_length = u8(4)


class Inquiry(Cdb, name="INQUIRY", opcode=0x12, length=6, passes_attention=True):
    obsolete = bits(1, 7, 5, IGNORED)
    cmddt = bit(1, 1, ZERO)
    evpd = bit(1, 0)
    page_code = u8(2)
    allocation_length = u16(3)


class ModeSelect6(Cdb, name="MODE SELECT (6)", opcode=0x15, length=6):
    pf = bit(1, 4)
    rtd = bit(1, 1, ZERO)
    sp = bit(1, 0)
    parameter_list_length = u8(4)


class Reserve6(Cdb, name="RESERVE (6)", opcode=0x16, length=6, beside=Beside.SERVED):
    third_party = bit(1, 4, ZERO)
    extent = bit(1, 0, ZERO)


class Release6(Cdb, name="RELEASE (6)", opcode=0x17, length=6, passes_reservation=True, beside=Beside.SERVED):
    third_party = bit(1, 4, ZERO)
    extent = bit(1, 0, ZERO)


class ModeSense6(Cdb, name="MODE SENSE (6)", opcode=0x1A, length=6, beside=Beside.SERVED_AS_READ):
    dbd = bit(1, 3)
    pc = bits(2, 7, 6)
    page_code = bits(2, 5, 0)
    subpage_code = u8(3)
    allocation_length = u8(4)


class ReceiveDiagnosticResults(
    Cdb, name="RECEIVE DIAGNOSTIC RESULTS", opcode=0x1C, length=6, beside=Beside.SERVED_AS_READ
):
    pcv = bit(1, 0)
    page_code = u8(2)
    allocation_length = u16(3)


class SendDiagnostic(Cdb, name="SEND DIAGNOSTIC", opcode=0x1D, length=6, access=Access.READ, beside=Beside.CONFLICT):
    self_test_code = bits(1, 7, 5)
    pf = bit(1, 4, IGNORED)
    selftest = bit(1, 2)
    devoffl = bit(1, 1, IGNORED)  # permissions that no self-test here makes use of
    unitoffl = bit(1, 0, IGNORED)
    parameter_list_length = u16(3, ZERO)


class WriteBuffer(Cdb, name="WRITE BUFFER", opcode=0x3B, length=10):
    mode_specific = bits(1, 7, 5, ZERO)
    mode = bits(1, 4, 0)
    buffer_id = u8(2)
    buffer_offset = u24(3)
    parameter_list_length = u24(6)


class ReadBuffer10(Cdb, name="READ BUFFER (10)", opcode=0x3C, length=10, beside=Beside.SERVED_AS_READ):
    mode_specific = bits(1, 7, 5, ZERO)
    mode = bits(1, 4, 0)
    buffer_id = u8(2)
    buffer_offset = u24(3)
    allocation_length = u24(6)


class LogSelect(Cdb, name="LOG SELECT", opcode=0x4C, length=10):
    pcr = bit(1, 1)
    sp = bit(1, 0, ZERO)
    pc = bits(2, 7, 6)
    page_code = bits(2, 5, 0)
    subpage_code = u8(3)
    parameter_list_length = u16(7)


class LogSense(Cdb, name="LOG SENSE", opcode=0x4D, length=10, passes_reservation=True, beside=Beside.SERVED):
    ppc = bit(1, 1, ZERO)  # obsolete
    sp = bit(1, 0, ZERO)
    pc = bits(2, 7, 6)
    page_code = bits(2, 5, 0)
    subpage_code = u8(3)
    parameter_pointer = u16(5)
    allocation_length = u16(7)


class ModeSelect10(Cdb, name="MODE SELECT (10)", opcode=0x55, length=10):
    pf = bit(1, 4)
    rtd = bit(1, 1, ZERO)
    sp = bit(1, 0)
    parameter_list_length = u16(7)


class Reserve10(Cdb, name="RESERVE (10)", opcode=0x56, length=10, beside=Beside.SERVED):
    third_party = bit(1, 4, ZERO)
    long_id = bit(1, 1, ZERO)
    extent = bit(1, 0, ZERO)


class Release10(Cdb, name="RELEASE (10)", opcode=0x57, length=10, passes_reservation=True, beside=Beside.SERVED):
    third_party = bit(1, 4, ZERO)
    long_id = bit(1, 1, ZERO)
    extent = bit(1, 0, ZERO)


class ModeSense10(Cdb, name="MODE SENSE (10)", opcode=0x5A, length=10, beside=Beside.SERVED_AS_READ):
    llbaa = bit(1, 4)
    dbd = bit(1, 3)
    pc = bits(2, 7, 6)
    page_code = bits(2, 5, 0)
    subpage_code = u8(3)
    allocation_length = u16(7)


class ExtendedCopy(Cdb, name="EXTENDED COPY (LID1)", opcode=0x83, service_action=0x00, length=16):
    parameter_list_length = u32(10)


class ReceiveCopyStatus(
    Cdb, name="RECEIVE COPY STATUS (LID1)", opcode=0x84, service_action=0x00, length=16, beside=Beside.SERVED_AS_READ
):
    list_identifier = u8(2)
    allocation_length = u32(10)


class ReceiveCopyOperatingParameters(
    Cdb,
    name="RECEIVE COPY OPERATING PARAMETERS",
    opcode=0x84,
    service_action=0x03,
    length=16,
    beside=Beside.SERVED_AS_READ,
):
    list_identifier = u8(2, IGNORED)
    allocation_length = u32(10)


class ReceiveCopyFailureDetails(
    Cdb,
    name="RECEIVE COPY FAILURE DETAILS (LID1)",
    opcode=0x84,
    service_action=0x04,
    length=16,
    beside=Beside.SERVED_AS_READ,
):
    list_identifier = u8(2)
    allocation_length = u32(10)


class ReportLuns(Cdb, name="REPORT LUNS", opcode=0xA0, length=12, passes_attention=True):
    select_report = u8(2)
    allocation_length = u32(6)


class SecurityProtocolIn(Cdb, name="SECURITY PROTOCOL IN", opcode=0xA2, length=12, beside=Beside.SERVED_AS_READ):
    security_protocol = u8(1)
    security_protocol_specific = u16(2)
    inc_512 = bit(4, 7, ZERO)
    allocation_length = u32(6)


class ReportIdentifyingInformation(
    Cdb,
    name="REPORT IDENTIFYING INFORMATION",
    opcode=0xA3,
    service_action=0x05,
    length=12,
    passes_reservation=True,
    beside=Beside.SERVED,
):
    allocation_length = u32(6)
    identifying_information_type = bits(10, 7, 1)


class ReportTargetPortGroups(
    Cdb,
    name="REPORT TARGET PORT GROUPS",
    opcode=0xA3,
    service_action=0x0A,
    length=12,
    passes_reservation=True,
    beside=Beside.SERVED,
):
    parameter_data_format = bits(1, 7, 5)
    allocation_length = u32(6)


class ReportSupportedOperationCodes(
    Cdb,
    name="REPORT SUPPORTED OPERATION CODES",
    opcode=0xA3,
    service_action=0x0C,
    length=12,
    passes_reservation=True,
    beside=Beside.SERVED_AS_READ,
):
    rctd = bit(2, 7)
    reporting_options = bits(2, 2, 0)
    requested_operation_code = u8(3)
    requested_service_action = u16(4)
    allocation_length = u32(6)


class ReportSupportedTaskManagementFunctions(
    Cdb,
    name="REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS",
    opcode=0xA3,
    service_action=0x0D,
    length=12,
    passes_reservation=True,
    beside=Beside.SERVED_AS_READ,
):
    repd = bit(2, 7)
    allocation_length = u32(6)


class ReportTimestamp(
    Cdb,
    name="REPORT TIMESTAMP",
    opcode=0xA3,
    service_action=0x0F,
    length=12,
    passes_reservation=True,
    beside=Beside.SERVED,
):
    allocation_length = u32(6)


class SetIdentifyingInformation(Cdb, name="SET IDENTIFYING INFORMATION", opcode=0xA4, service_action=0x06, length=12):
    parameter_list_length = u32(6)
    identifying_information_type = bits(10, 7, 1)


class SetTimestamp(Cdb, name="SET TIMESTAMP", opcode=0xA4, service_action=0x0F, length=12):
    parameter_list_length = u32(6)
