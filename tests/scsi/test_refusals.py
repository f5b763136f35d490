"""Each refusal of refusals.py, provoked for each command that it stands for; and what a command answers stands there.

(command, refusal) --> what brings it about: a field, a parameter list, a unit in some state, a host that fails
"""

import errno
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from tests.scsi.cluster import MemoryRecord, parameters
from tests.scsi.disks import HugeMedium
from tests.scsi.examples import EXAMPLES, ROWS, at, blocks_out, cdb_of, ready_for, sent, with_field
from tests.scsi.faulty import FailingState, FaultyMedium
from tests.scsi.initiator import MIB, Initiator
from vstore.fuzz.sense_data import parse_sense
from vstore.scsi.cdb import Cdb
from vstore.scsi.commands import COMMANDS, FormatUnit, SanitizeBlockErase
from vstore.scsi.identity import Identity
from vstore.scsi.logical_unit import LogicalUnit
from vstore.scsi.medium import MemoryMedium
from vstore.scsi.mode_parameters import ModeParameters
from vstore.scsi.operation import FORMAT_FAILED, Operation, sanitize_failed
from vstore.scsi.pages import Caching, Control
from vstore.scsi.persistent_reservations import MOST_REGISTRATIONS
from vstore.scsi.refusals import KEEPING, Refusal, family, refusals_of, shared_refusals
from vstore.scsi.self_test import SelfTest
from vstore.scsi.sense import AdditionalSense as A
from vstore.scsi.task import Response, Status, TaskAttribute
from vstore.scsi.transport_id import NexusName

Provoke = Callable[[str], Response]
Settings = Mapping[str, Any]

# ---- a field of the CDB ---------------------------------------------------------------------------------

# Of each field a value that is refused; where commands differ, by family or name.
VALUES: dict[str, int | dict[str, int]] = {
    "page_code": {"INQUIRY": 0xB7, "RECEIVE DIAGNOSTIC RESULTS": 1, "": 0x3E},
    "subpage_code": 0x7E,
    "pcv": 0,
    "pf": 0,
    "sp": 1,
    "pcr": 1,
    "pc": 0,
    "parameter_pointer": 0xFFFF,
    "transfer_length": 0x2001,
    "verification_length": 0x2001,
    "bytchk": 0b10,
    "number_of_logical_blocks": 0,
    "unmap": 1,
    "atomic_boundary": 0xFFFF,
    "defect_list_format": 0b111,
    "self_test_code": 0b011,
    "mode": 0x1F,
    "buffer_id": 1,
    "buffer_offset": 0xFFFFFF,
    "parameter_list_length": {"WRITE BUFFER": 0xFFFFFF, "SET IDENTIFYING INFORMATION": 257, "SANITIZE": 4},
    "ause": 1,
    "scope": 1,
    "type": 2,
    "list_identifier": 9,
    "select_report": 3,
    "security_protocol": 1,
    "security_protocol_specific": 2,
    "identifying_information_type": 1,
    "parameter_data_format": 2,
    "reporting_options": 4,
    "requested_operation_code": 0x9E,
}
# In which unit it is refused; by default, one that would serve the example.
UNITS: dict[str, Settings] = {
    "sp": {"state": None},
    "unmap": {"thin": False},
    "transfer_length": {"logical_block_length": 4096},
    "verification_length": {"logical_block_length": 4096, "medium": lambda: HugeMedium(1 << 30)},
}
# Other fields that the refusal needs beside it.
ALSO: dict[tuple[str, str], dict[str, int]] = {
    ("INQUIRY", "page_code"): {"evpd": 1},
    ("MODE SENSE (6)", "subpage_code"): {"page_code": 0x08},
    ("MODE SENSE (10)", "subpage_code"): {"page_code": 0x08},
    ("LOG SELECT", "page_code"): {"parameter_list_length": 0},
    ("LOG SELECT", "subpage_code"): {"parameter_list_length": 0, "page_code": 0x02},
    ("READ BUFFER (10)", "buffer_id"): {"mode": 2},
    ("READ BUFFER (10)", "buffer_offset"): {"mode": 2},
    ("RECEIVE DIAGNOSTIC RESULTS", "page_code"): {"pcv": 1},
    ("REPORT SUPPORTED OPERATION CODES", "requested_operation_code"): {"reporting_options": 1},
    ("SEND DIAGNOSTIC", "self_test_code"): {"selftest": 0},
    ("SET IDENTIFYING INFORMATION", "parameter_list_length"): {"identifying_information_type": 2},
}


def made(settings: Settings) -> dict[str, Any]:
    """Anew for each test."""
    return {key: value() if callable(value) else value for key, value in settings.items()}


def value_of(name: str, field: str) -> int:
    value = VALUES[field]
    return value if isinstance(value, int) else value.get(family(ROWS[name]), value.get("", 0))


def by_field(name: str, field: str) -> Response:
    row, cdb = ROWS[name], int.from_bytes(cdb_of(name))
    for other, value in {**ALSO.get((name, field), {}), field: value_of(name, field)}.items():
        cdb = cdb & ~row.fields[other].mask | row.fields[other].encode(value)
    initiator = ready_for(name, **made(UNITS.get(field, {})))
    if field == "ause":
        initiator.unit.failure = sanitize_failed(may_exit=False)
    return sent(initiator, name, cdb.to_bytes(row.length))


def by_service_action(name: str) -> Response:
    """The command is there, but not in this unit or in this state."""
    if name == "SANITIZE (BLOCK ERASE)":
        return sent(ready_for(name, thin=False), name)
    if name == "SANITIZE (CRYPTOGRAPHIC ERASE)":
        return sent(ready_for(name, replaces_key=False), name)
    if name == "SET IDENTIFYING INFORMATION":
        return sent(ready_for(name, state=None), name)
    initiator = ready_for(name, prepared=False, state=MemoryRecord())
    if name == "PERSISTENT RESERVE OUT (REGISTER AND MOVE)":
        initiator.good("5f 06 00 00 00 00000018 00", parameters(0, 1))
    initiator.unit.failure = sanitize_failed(may_exit=False) if family(ROWS[name]) == "SANITIZE" else None
    return sent(initiator, name)


# ---- a parameter list -----------------------------------------------------------------------------------

TOO_SHORT = {"UNMAP": 7, "MODE SELECT": 3, "LOG SELECT": 3, "EXTENDED COPY": 15, "SET TIMESTAMP": 11}
_PR = parameters(1, 1)
WRONG = {
    "FORMAT UNIT": bytes([1, 0, 0, 0]),  # protection information
    "SANITIZE": bytes.fromhex("00 00 0004 aabbccdd"),  # no passes
    "UNMAP": bytes.fromhex("1016 1010 00000000") + bytes(16 * 257),
    "MODE SELECT": b"\1\1\1\1" + bytes(24),  # a medium type
    "LOG SELECT": bytes.fromhex("3e 00 0000"),
    "EXTENDED COPY": bytes([0, 0b01 << 3]) + bytes(14),
    "SET IDENTIFYING INFORMATION": b"text without its null",
    "PERSISTENT RESERVE OUT": _PR[:20] + b"\x80" + _PR[21:],
}


def listed(name: str, data: bytes, initiator: Initiator | None = None) -> Response:
    cdb = bytes.fromhex("04 10 00 00 00 00") if name == "FORMAT UNIT" else b""
    return sent(initiator or ready_for(name), name, cdb or with_field(name, "parameter_list_length", len(data)), data)


def too_short(name: str) -> Response:
    length = TOO_SHORT.get(family(ROWS[name]), 23)
    return listed(name, EXAMPLES[name].data_out[:length])


def wrong(name: str) -> Response:
    data = WRONG[family(ROWS[name])]
    if name == "PERSISTENT RESERVE OUT (REGISTER AND MOVE)":
        data = _PR[:16] + b"\x80" + _PR[17:]
    return listed(name, data)


def short_data_out(name: str) -> Response:
    if name == "FORMAT UNIT":
        return sent(ready_for(name), name, bytes.fromhex("04 10 00 00 00 00"), bytes(3))
    return sent(ready_for(name), name, data_out=EXAMPLES[name].data_out[:-1])


def out_of_range(name: str) -> Response:
    if name == "UNMAP":
        return listed(name, bytes.fromhex("0016 0010 00000000 00000000000007ff 00000002 00000000"))
    if name == "EXTENDED COPY (LID1)":
        return copied(48 + 20, (2048).to_bytes(8))
    return sent(ready_for(name), name, at(name, 2048, 1), blocks_out(name, 1))


def copied(offset: int, change: bytes, initiator: Initiator | None = None) -> Response:
    """EXTENDED COPY with these bytes of its list changed."""
    data = bytearray(EXAMPLES["EXTENDED COPY (LID1)"].data_out)
    data[offset : offset + len(change)] = change
    return listed("EXTENDED COPY (LID1)", bytes(data), initiator)


def of_another_block_length(_: str) -> Response:
    initiator = ready_for("EXTENDED COPY (LID1)")
    other = LogicalUnit(MemoryMedium(MIB), Identity("other"), logical_block_length=4096)
    initiator.target.add(1, other)
    initiator.check("00")
    data = EXAMPLES["EXTENDED COPY (LID1)"].data_out
    cscd = bytes.fromhex("e4 00 0000 01 03 00 08") + other.identity.naa.to_bytes(8) + bytes(13) + bytes([0, 16, 0])
    segment = bytearray(data[48:])
    segment[6:8] = b"\0\1"
    return listed("EXTENDED COPY (LID1)", data[:2] + b"\0\x40" + data[4:48] + cscd + bytes(segment), initiator)


def while_a_copy_goes_on(name: str) -> Response:
    initiator = ready_for(name)
    initiator.unit.copies.begin(initiator.nexus, 0)
    return copied(1, b"\0", initiator)


# ---- a unit in some state -------------------------------------------------------------------------------


def in_state(**state: Any) -> Provoke:
    def provoke(name: str) -> Response:
        initiator = ready_for(name)
        vars(initiator.unit).update(state)
        return sent(initiator, name)

    return provoke


def of_a_unit(*, prepared: bool = False, cdb: Mapping[str, str] | None = None, **settings: Any) -> Provoke:
    def provoke(name: str) -> Response:
        told = (cdb or {}).get(name)
        return sent(ready_for(name, prepared=prepared, **made(settings)), name, bytes.fromhex(told) if told else None)

    return provoke


def defect(name: str) -> Response:
    async def serve(*_: object) -> bytes:
        raise ZeroDivisionError("a defect")

    return in_state(serve=serve)(name)


def during_a_self_test(name: str) -> Response:
    initiator = ready_for(name)
    initiator.unit.self_tests.begin(SelfTest(1, 0, 1, background=True))
    return sent(initiator, name)


def without_room_for_a_registration(name: str) -> Response:
    initiator = ready_for(name)
    state = initiator.unit.persistent
    others = {NexusName(f"iqn.x:{number}", 1): 9 for number in range(MOST_REGISTRATIONS - len(state.keys))}
    initiator.unit.persistent = state._replace(keys={**state.keys, **others})
    return sent(initiator, name)


def by_an_attribute(name: str) -> Response:
    initiator = ready_for(name)
    return initiator.send(cdb_of(name), EXAMPLES[name].data_out, attribute=TaskAttribute.ACA)


def by_a_zero_bit(name: str) -> Response:
    row = ROWS[name]
    lowest = row.refused & -row.refused
    return sent(ready_for(name), name, (int.from_bytes(cdb_of(name)) | lowest).to_bytes(row.length))


# ---- a host that fails ----------------------------------------------------------------------------------


def failing(number: int, *operations: str) -> Provoke:
    """The medium does not do these, or nothing at all."""

    def provoke(name: str) -> Response:
        medium = FaultyMedium(MIB, replaces_key=EXAMPLES[name].replaces_key)
        initiator = ready_for(name, medium=medium)
        medium.errors = dict.fromkeys(operations or ("read", "write", "write_zeroes", "flush"), number)
        if "read" in medium.errors:
            medium.status = _no_status  # type: ignore[method-assign, assignment]
        return sent(initiator, name, bytes.fromhex(STOPS[name]) if name in STOPS else None)

    return provoke


def unwritten(number: int) -> Provoke:
    """Neither to the medium nor beside it."""

    def provoke(name: str) -> Response:
        if family(ROWS[name]) not in KEEPING:
            return failing(number, "write", "write_zeroes", "flush")(name)
        if family(ROWS[name]) == "PERSISTENT RESERVE OUT":
            return unkept(name, number)
        initiator = ready_for(name, state=FailingState(number))
        if name == "SANITIZE (EXIT FAILURE MODE)":
            initiator.unit.failure = sanitize_failed(may_exit=True)
        return sent(initiator, name)

    return provoke


STOPS = {"START STOP UNIT": "1b 00 00 00 00 00"}  # to start is always served


async def _no_status(*_: object) -> list[tuple[int, bool]]:
    raise OSError(errno.EIO, "the host fails")


def unkept(name: str, number: int) -> Response:
    """What is reserved was to be kept, and cannot be."""
    initiator = ready_for(name, state=MemoryRecord(lost=EXAMPLES[name].lost))
    record = initiator.unit.record
    assert isinstance(record, MemoryRecord)
    initiator.unit.persistent = initiator.unit.persistent._replace(kept=True)
    record.failing = OSError(number, "the host fails")
    return sent(initiator, name)


def of_other_data(name: str) -> Response:
    """The medium holds zeros; of what was just written, too."""
    initiator = ready_for(name)

    async def read(_: int, length: int) -> bytes:
        return bytes(length)

    initiator.unit.medium.read = read  # type: ignore[method-assign, assignment]
    return sent(initiator, name, data_out=b"\xff" * len(EXAMPLES[name].data_out))


_SANITIZING, _FORMATTING = A.LOGICAL_UNIT_NOT_READY_SANITIZE_IN_PROGRESS, A.LOGICAL_UNIT_NOT_READY_FORMAT_IN_PROGRESS
_FAILED = sanitize_failed(may_exit=False)
_RELEASE = {"PERSISTENT RESERVE OUT (RELEASE)": "5f 02 03 00 00 00000018 00"}  # of another type
_SAVED = {"MODE SENSE (6)": "1a 00 ff 00 ff 00", "MODE SENSE (10)": "5a 00 ff 00 00 00 00 00ff 00"}

PROVOKED_BY: dict[A, Provoke] = {
    A.INVALID_MESSAGE_ERROR: by_an_attribute,
    A.INTERNAL_TARGET_FAILURE: defect,
    _FORMATTING: in_state(operation=Operation(_FORMATTING, 1, FORMAT_FAILED, FormatUnit())),
    _SANITIZING: in_state(operation=Operation(_SANITIZING, 1, _FAILED, SanitizeBlockErase())),
    A.FORMAT_COMMAND_FAILED: failing(errno.EIO),
    A.MEDIUM_FORMAT_CORRUPTED: in_state(failure=FORMAT_FAILED),
    A.LOGICAL_UNIT_NOT_READY_INITIALIZING_COMMAND_REQUIRED: in_state(stopped=True),
    A.WRITE_PROTECTED: of_a_unit(read_only=True),
    A.LOGICAL_UNIT_SOFTWARE_WRITE_PROTECTED: in_state(modes=ModeParameters(Caching(), Control.of(swp=1))),
    A.PERSISTENT_RESERVATION_INFORMATION_LOST: of_a_unit(state=lambda: MemoryRecord(lost=True), cdb=STOPS),
    A.INVALID_COMMAND_OPERATION_CODE: of_a_unit(thin=False, state=None),
    A.LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE: out_of_range,
    A.INVALID_FIELD_IN_COMMAND_INFORMATION_UNIT: short_data_out,
    A.PARAMETER_LIST_LENGTH_ERROR: too_short,
    A.INVALID_FIELD_IN_PARAMETER_LIST: wrong,
    A.UNRECOVERED_READ_ERROR: failing(errno.EIO, "read"),
    A.WRITE_ERROR: unwritten(errno.EIO),
    A.SPACE_ALLOCATION_FAILED_WRITE_PROTECT: unwritten(errno.ENOSPC),
    A.MISCOMPARE_DURING_VERIFY_OPERATION: of_other_data,
    A.SAVING_PARAMETERS_NOT_SUPPORTED: of_a_unit(state=None, cdb=_SAVED),
    A.COMMAND_SEQUENCE_ERROR: of_a_unit(cdb={"READ BUFFER (10)": "3c 0a 00 000000 001000 00"}),
    A.LOGICAL_UNIT_NOT_READY_SELF_TEST_IN_PROGRESS: during_a_self_test,
    A.LOGICAL_UNIT_FAILED_SELF_TEST: failing(errno.EIO, "read"),
    A.INVALID_RELEASE_OF_PERSISTENT_RESERVATION: of_a_unit(prepared=True, cdb=_RELEASE),
    A.INSUFFICIENT_REGISTRATION_RESOURCES: without_room_for_a_registration,
    A.OPERATION_IN_PROGRESS: while_a_copy_goes_on,
    A.TOO_MANY_TARGET_DESCRIPTORS: lambda _: copied(2, b"\xff\xff"),
    A.UNSUPPORTED_TARGET_DESCRIPTOR_TYPE_CODE: lambda _: copied(16, b"\xe5"),
    A.TOO_MANY_SEGMENT_DESCRIPTORS: lambda _: copied(8, b"\0\0\xff\xff"),
    A.UNSUPPORTED_SEGMENT_DESCRIPTOR_TYPE_CODE: lambda _: copied(48, b"\3"),
    A.INLINE_DATA_LENGTH_EXCEEDED: lambda _: copied(15, b"\1"),
    A.COPY_TARGET_DEVICE_NOT_REACHABLE: lambda _: copied(24, b"\x31"),
    A.UNEXPECTED_INEXACT_SEGMENT: of_another_block_length,
    A.THIRD_PARTY_DEVICE_FAILURE: failing(errno.EIO),
}


def provoked(name: str, refusal: Refusal) -> Response:
    if refusal.code is A.SANITIZE_COMMAND_FAILED:
        return failing(errno.EIO)(name) if family(ROWS[name]) == "SANITIZE" else in_state(failure=_FAILED)(name)
    if refusal.code is not A.INVALID_FIELD_IN_CDB:
        return PROVOKED_BY[refusal.code](name)
    if refusal.field == "service_action":
        return by_service_action(name)
    return by_field(name, refusal.field) if refusal.field else by_a_zero_bit(name)


ALL = [(row.name, refusal) for row in COMMANDS for refusal in refusals_of(row)]


@pytest.mark.parametrize(("name", "refusal"), ALL, ids=lambda each: each if isinstance(each, str) else each.when)
def test_each_refusal_is_what_its_reason_brings_about(name: str, refusal: Refusal) -> None:
    response = provoked(name, refusal)
    assert response.status is Status.CHECK_CONDITION, response
    sense = parse_sense(response.sense)
    assert sense.code == (refusal.key, refusal.code.asc, refusal.code.ascq)
    if refusal.field == "service_action":
        assert (sense.in_cdb, sense.byte, sense.bit) == (True, 1, 4)
    elif refusal.field:
        assert (sense.in_cdb, sense.byte, sense.bit) == (True, *ROWS[name].fields[refusal.field].position)


def test_every_value_and_every_reason_of_these_tables_is_used() -> None:
    assert {refusal.field for _, refusal in ALL} - {"", "service_action"} == set(VALUES)
    apart = {A.INVALID_FIELD_IN_CDB, A.SANITIZE_COMMAND_FAILED}
    assert {refusal.code for _, refusal in ALL} - apart == set(PROVOKED_BY)
    assert {name for name, _ in ALSO} <= set(ROWS)


def test_all_commands_but_three_share_what_they_may_meet_at_any_time() -> None:
    told = {row.name: len(list(shared_refusals(row))) for row in COMMANDS}
    assert {told[name] for name in ("INQUIRY", "REPORT LUNS", "REQUEST SENSE")} == {3}
    assert {n for name, n in told.items() if family(ROWS[name]) == "SANITIZE"} == {5}
    assert sum(n == 6 for n in told.values()) == len(COMMANDS) - 3 - sum(n == 5 for n in told.values())


@pytest.mark.parametrize("row", COMMANDS, ids=lambda row: row.name)
def test_no_refusal_stands_twice_for_a_command(row: type[Cdb]) -> None:
    told = [(refusal.code, refusal.field) for refusal in refusals_of(row)]
    assert len(told) == len(set(told))
