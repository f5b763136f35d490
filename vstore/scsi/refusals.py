"""What a command can be refused with, and when: a row for each reason, and the commands that it is a reason for.

The handlers raise these; nothing here is asked while a command runs. The reference is generated from this table, and
tests hold the device to it from both sides: whatever it answers must stand here, and for each row and command of it the
answer is provoked. RESERVATION CONFLICT and TASK SET FULL carry no sense data, and are not told here.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from vstore.scsi.cdb import Access, Beside, Cdb
from vstore.scsi.commands import COMMANDS
from vstore.scsi.field import EVALUATED
from vstore.scsi.sense import AdditionalSense as A
from vstore.scsi.sense import SenseKey as K

_Rows = Callable[[type[Cdb]], bool]


class Refusal(NamedTuple):
    """`field`: of the CDB, that sense data point at; empty: none, or more than one."""

    key: K
    code: A
    when: str
    field: str = ""


def family(row: type[Cdb]) -> str:
    """The name without its length or service action: READ, PERSISTENT RESERVE OUT."""
    return row.name.partition(" (")[0]


# ---- which commands -------------------------------------------------------------------------------------


def _every(_: type[Cdb]) -> bool:
    return True


def _waits(row: type[Cdb]) -> bool:
    """All but INQUIRY, REPORT LUNS and REQUEST SENSE."""
    return not row.passes_attention


def _of(*names: str) -> _Rows:
    """Of these names or families."""
    return lambda row: row.name in names or family(row) in names


def _evaluates(field: str, *but: str) -> _Rows:
    return lambda row: field in row.fields and row.fields[field].use is EVALUATED and not _of(*but)(row)


def _accesses(*kinds: Access) -> _Rows:
    return lambda row: row.access in kinds


def _either(*rows: _Rows) -> _Rows:
    return lambda row: any(each(row) for each in rows)


def _but(rows: _Rows, *names: str) -> _Rows:
    return lambda row: rows(row) and not _of(*names)(row)


# Commands that keep something beside the image.
KEEPING = ("MODE SELECT", "SET IDENTIFYING INFORMATION", "PERSISTENT RESERVE OUT", "FORMAT UNIT", "SANITIZE")
_KEEPS = _of(*KEEPING)
_WRITES = _either(_accesses(Access.WRITE, Access.FLUSH), _of("START STOP UNIT"), _KEEPS)
# Which no read-only unit has.
_ONLY_WRITABLE = ("UNMAP", "SANITIZE (BLOCK ERASE)", "SANITIZE (CRYPTOGRAPHIC ERASE)")
_TAKES_DATA = _either(
    _evaluates("parameter_list_length"),
    _but(_accesses(Access.WRITE), "UNMAP"),
    _of("VERIFY", "FORMAT UNIT"),
)
_RESERVES = _either(_of("RESERVE", "RELEASE"), lambda row: row.beside is not Beside.SERVED)
_LOSES = _but(
    _either(_RESERVES, _of("PERSISTENT RESERVE IN", "PERSISTENT RESERVE OUT")),
    "PERSISTENT RESERVE IN (REPORT CAPABILITIES)",
    "PERSISTENT RESERVE OUT (REPLACE LOST RESERVATION)",
)
_LISTS = _of("FORMAT UNIT", "SANITIZE (OVERWRITE)", "UNMAP", "MODE SELECT", "LOG SELECT", "EXTENDED COPY")
_TYPED = _of(
    *(f"PERSISTENT RESERVE OUT ({action})" for action in ("RESERVE", "RELEASE", "PREEMPT", "PREEMPT AND ABORT")),
    "PERSISTENT RESERVE OUT (REPLACE LOST RESERVATION)",
)

# ---- the rows -------------------------------------------------------------------------------------------

_I, _CDB = K.ILLEGAL_REQUEST, A.INVALID_FIELD_IN_CDB

# Of the CDB's fields, by name.
_FIELDS: tuple[tuple[str, str, _Rows], ...] = (
    ("page_code", "there is no such page", _but(_evaluates("page_code"), "LOG SELECT", "RECEIVE DIAGNOSTIC RESULTS")),
    ("page_code", "there is no such page, or there is a parameter list", _of("LOG SELECT")),
    ("page_code", "it is not 00h: there is no other page", _of("RECEIVE DIAGNOSTIC RESULTS")),
    ("subpage_code", "the page has no such subpage", _evaluates("subpage_code")),
    ("pcv", "it is zero: no results wait", _of("RECEIVE DIAGNOSTIC RESULTS")),
    ("pf", "it is zero, and there are pages", _of("MODE SELECT")),
    ("sp", "nothing can be saved", _of("MODE SELECT")),
    ("pcr", "it is one, and there is a parameter list", _of("LOG SELECT")),
    ("pc", "it is not 01b, and there is a parameter list", _of("LOG SELECT")),
    ("parameter_pointer", "no parameter has that code or a larger one", _of("LOG SENSE")),
    ("transfer_length", "it is more than the block limits page allows", _but(_evaluates("transfer_length"), "READ (6)",
     "WRITE (6)")),
    ("verification_length", "it is more than MAXIMUM TRANSFER LENGTH, with BYTCHK 01b", _of("VERIFY")),
    ("bytchk", "it is a reserved value, or 11b where data are written", _evaluates("bytchk")),
    ("number_of_logical_blocks", "it is zero, or more than MAXIMUM WRITE SAME LENGTH", _of("WRITE SAME")),
    ("unmap", "the unit is not thin", _of("WRITE SAME")),
    ("atomic_boundary", "it is more than one atomic write may have", _of("WRITE ATOMIC")),
    ("defect_list_format", "it is vendor specific or reserved", _of("READ DEFECT DATA")),
    ("self_test_code", "it is reserved, stands beside SELFTEST, or there is no test to abort", _of("SEND DIAGNOSTIC")),
    ("mode", "there is no such mode", _of("WRITE BUFFER", "READ BUFFER")),
    ("buffer_id", "it is not zero, and the mode is data", _of("WRITE BUFFER", "READ BUFFER")),
    ("buffer_offset", "it lies past the buffer", _of("WRITE BUFFER", "READ BUFFER")),
    ("parameter_list_length", "it reaches past the buffer", _of("WRITE BUFFER")),
    ("parameter_list_length", "it is more than that type may have", _of("SET IDENTIFYING INFORMATION")),
    ("parameter_list_length", "there is no pattern, or one longer than a block", _of("SANITIZE (OVERWRITE)")),
    ("ause", "a SANITIZE without it has failed", _of("SANITIZE (OVERWRITE)", "SANITIZE (BLOCK ERASE)",
     "SANITIZE (CRYPTOGRAPHIC ERASE)")),
    ("service_action", "a SANITIZE without AUSE has failed", _of("SANITIZE (EXIT FAILURE MODE)")),
    ("service_action", "the unit is not thin", _of("SANITIZE (BLOCK ERASE)")),
    ("service_action", "the image is not encrypted, has internal snapshots or a parent, or is read-only",
     _of("SANITIZE (CRYPTOGRAPHIC ERASE)")),
    ("service_action", "nothing can be kept beside the image", _of("SET IDENTIFYING INFORMATION")),
    ("service_action", "nothing is reserved", _of("PERSISTENT RESERVE OUT (REGISTER AND MOVE)")),
    ("service_action", "nothing is lost", _of("PERSISTENT RESERVE OUT (REPLACE LOST RESERVATION)")),
    ("scope", "it is not LU_SCOPE", _TYPED),
    ("type", "it is reserved or obsolete", _TYPED),
    ("list_identifier", "no copy is held under it", _of("RECEIVE COPY STATUS")),
    ("select_report", "it is vendor specific or reserved", _of("REPORT LUNS")),
    ("security_protocol", "it is not 00h: there is no other protocol", _of("SECURITY PROTOCOL IN")),
    ("security_protocol_specific", "there is no such information", _of("SECURITY PROTOCOL IN")),
    ("identifying_information_type", "there is no such type", _evaluates("identifying_information_type")),
    ("parameter_data_format", "it is reserved", _of("REPORT TARGET PORT GROUPS")),
    ("reporting_options", "it is reserved", _of("REPORT SUPPORTED OPERATION CODES")),
    ("requested_operation_code", "it has service actions and the option is for those that have none, or the reverse",
     _of("REPORT SUPPORTED OPERATION CODES")),
)  # fmt: skip

# Of (nearly) every command.
_SHARED: tuple[tuple[K, A, str, _Rows], ...] = (
    (_I, A.INVALID_MESSAGE_ERROR, "the task attribute is ACA", _every),
    (K.HARDWARE_ERROR, A.INTERNAL_TARGET_FAILURE, "vstore or its host fails, and no other row says how", _every),
    (K.NOT_READY, A.LOGICAL_UNIT_NOT_READY_FORMAT_IN_PROGRESS, "a FORMAT UNIT goes on", _waits),
    (K.NOT_READY, A.LOGICAL_UNIT_NOT_READY_SANITIZE_IN_PROGRESS, "a SANITIZE goes on", _waits),
    (K.MEDIUM_ERROR, A.SANITIZE_COMMAND_FAILED, "a SANITIZE has failed, and none has succeeded since",
     lambda row: _waits(row) and family(row) != "SANITIZE"),
)  # fmt: skip

_REASONS: tuple[tuple[K, A, str, _Rows], ...] = (
    (K.MEDIUM_ERROR, A.SANITIZE_COMMAND_FAILED, "it fails itself",
     _but(_of("SANITIZE"), "SANITIZE (EXIT FAILURE MODE)")),
    (K.MEDIUM_ERROR, A.FORMAT_COMMAND_FAILED, "it fails itself", _of("FORMAT UNIT")),
    (K.MEDIUM_ERROR, A.MEDIUM_FORMAT_CORRUPTED, "a FORMAT UNIT has failed, and none has succeeded since",
     _accesses(Access.READ, Access.WRITE)),
    (K.NOT_READY, A.LOGICAL_UNIT_NOT_READY_INITIALIZING_COMMAND_REQUIRED, "the unit is stopped",
     lambda row: row.access is not Access.NONE or family(row) in ("TEST UNIT READY", "EXTENDED COPY")),
    (K.DATA_PROTECT, A.WRITE_PROTECTED, "the unit, or the copy's destination, is read-only",
     _but(_either(_accesses(Access.WRITE, Access.ERASE), _of("EXTENDED COPY")), *_ONLY_WRITABLE)),
    (K.DATA_PROTECT, A.LOGICAL_UNIT_SOFTWARE_WRITE_PROTECTED, "SWP is one in the Control mode page",
     _either(_accesses(Access.WRITE, Access.ERASE), _of("EXTENDED COPY"))),
    (_I, A.INVALID_COMMAND_OPERATION_CODE, "the unit is not thin", _of("UNMAP")),
    (_I, A.INVALID_COMMAND_OPERATION_CODE, "nothing can be kept beside the image, or the image is encrypted",
     _of("WRITE ATOMIC")),
    (K.DATA_PROTECT, A.PERSISTENT_RESERVATION_INFORMATION_LOST, "what was reserved cannot be read any more", _LOSES),
    (_I, A.LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE, "a block past the last one is named",
     _either(_evaluates("lba"), _of("UNMAP", "EXTENDED COPY"))),
    (_I, A.INVALID_FIELD_IN_COMMAND_INFORMATION_UNIT, "data-out is shorter than the CDB says", _TAKES_DATA),
    (_I, A.PARAMETER_LIST_LENGTH_ERROR, "the parameter list ends inside one of its parts, or is too short",
     _of("UNMAP", "MODE SELECT", "LOG SELECT", "EXTENDED COPY", "SET TIMESTAMP", "PERSISTENT RESERVE OUT")),
    (_I, A.INVALID_FIELD_IN_PARAMETER_LIST, "a field of the parameter list has a value that it cannot have",
     _either(_LISTS, _of("SET IDENTIFYING INFORMATION", "PERSISTENT RESERVE OUT"))),
    (K.MEDIUM_ERROR, A.UNRECOVERED_READ_ERROR, "the host cannot read the image",
     _but(_either(_accesses(Access.READ), _of("COMPARE AND WRITE", "ORWRITE", "WRITE ATOMIC")), "SEND DIAGNOSTIC")),
    (K.MEDIUM_ERROR, A.WRITE_ERROR, "the host cannot write the image, or what is kept beside it", _WRITES),
    (K.DATA_PROTECT, A.SPACE_ALLOCATION_FAILED_WRITE_PROTECT, "the host has no room for it",
     _either(_WRITES, _of("EXTENDED COPY"))),
    (K.MISCOMPARE, A.MISCOMPARE_DURING_VERIFY_OPERATION, "the medium holds other data",
     _of("COMPARE AND WRITE", "VERIFY", "WRITE AND VERIFY")),
    (_I, A.SAVING_PARAMETERS_NOT_SUPPORTED, "saved values are asked for, and nothing can be saved", _of("MODE SENSE")),
    (_I, A.COMMAND_SEQUENCE_ERROR, "the echo buffer of this nexus was not written", _of("READ BUFFER")),
    (K.NOT_READY, A.LOGICAL_UNIT_NOT_READY_SELF_TEST_IN_PROGRESS, "another self-test goes on", _of("SEND DIAGNOSTIC")),
    (K.HARDWARE_ERROR, A.LOGICAL_UNIT_FAILED_SELF_TEST, "the self-test fails", _of("SEND DIAGNOSTIC")),
    (_I, A.INVALID_RELEASE_OF_PERSISTENT_RESERVATION, "the type is not that of the reservation",
     _of("PERSISTENT RESERVE OUT (RELEASE)")),
    (_I, A.INSUFFICIENT_REGISTRATION_RESOURCES, "more nexuses would be registered than there is room for",
     _of(*(f"PERSISTENT RESERVE OUT ({action})"
           for action in ("REGISTER", "REGISTER AND IGNORE EXISTING KEY", "REGISTER AND MOVE")))),
    (_I, A.OPERATION_IN_PROGRESS, "a copy of that list identifier goes on", _of("EXTENDED COPY")),
    (_I, A.TOO_MANY_TARGET_DESCRIPTORS, "there are more CSCD descriptors than it takes", _of("EXTENDED COPY")),
    (_I, A.UNSUPPORTED_TARGET_DESCRIPTOR_TYPE_CODE, "a CSCD descriptor is not of type E4h", _of("EXTENDED COPY")),
    (_I, A.TOO_MANY_SEGMENT_DESCRIPTORS, "there are more segment descriptors than it takes", _of("EXTENDED COPY")),
    (_I, A.UNSUPPORTED_SEGMENT_DESCRIPTOR_TYPE_CODE, "a segment descriptor is not of type 02h", _of("EXTENDED COPY")),
    (_I, A.INLINE_DATA_LENGTH_EXCEEDED, "there are inline data", _of("EXTENDED COPY")),
    (K.COPY_ABORTED, A.COPY_TARGET_DEVICE_NOT_REACHABLE, "the nexus sees no unit of that designator",
     _of("EXTENDED COPY")),
    (K.COPY_ABORTED, A.UNEXPECTED_INEXACT_SEGMENT, "a segment is not of whole blocks of both units",
     _of("EXTENDED COPY")),
    (K.COPY_ABORTED, A.THIRD_PARTY_DEVICE_FAILURE, "one of the units fails", _of("EXTENDED COPY")),
)  # fmt: skip

_ZERO_BITS = Refusal(_I, _CDB, "a bit that must be zero is one, or the CDB ends too soon")


def shared_refusals(row: type[Cdb]) -> Iterator[Refusal]:
    """Those that nearly all commands have."""
    yield _ZERO_BITS
    for key, code, when, rows in _SHARED:
        if rows(row):
            yield Refusal(key, code, when)


def own_refusals(row: type[Cdb]) -> Iterator[Refusal]:
    """The others; first those of fields of the CDB."""
    for field, when, rows in _FIELDS:
        if rows(row):
            yield Refusal(_I, _CDB, when, field)
    for key, code, when, rows in _REASONS:
        if rows(row):
            yield Refusal(key, code, when)


def refusals_of(row: type[Cdb]) -> Iterator[Refusal]:
    """Every reason for which this command may be refused, but unit attentions, which all report that do not pass
    them."""
    yield from shared_refusals(row)
    yield from own_refusals(row)


# Sense key, additional sense code and qualifier of each.
CODES: Mapping[type[Cdb], frozenset[tuple[int, int, int]]] = {
    row: frozenset((each.key, each.code.asc, each.code.ascq) for each in refusals_of(row)) for row in COMMANDS
}
