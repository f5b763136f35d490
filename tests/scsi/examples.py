"""One CDB of each command that is served, in bytes, with what has to be there before: the ground that the tests of all
commands stand on. A row of the command table without an example here is a failure of test_every_command.py."""

from collections.abc import Callable
from typing import Any, NamedTuple

from tests.scsi.cluster import MemoryRecord, move_parameters, parameters, transport_id
from tests.scsi.initiator import IDENTITY, Initiator, make_unit
from vstore.scsi.commands import COMMANDS
from vstore.scsi.kept_state import MemoryState
from vstore.scsi.task import Response, Status

Prepare = Callable[[Initiator], None]


def _nothing(_: Initiator) -> None:
    return


class Example(NamedTuple):
    """`prepare`: what must have happened; `lost`: on a unit that has lost its reservations; `replaces_key`: on one
    whose medium is encrypted."""

    cdb: str
    data_out: bytes = b""
    prepare: Prepare = _nothing
    lost: bool = False
    replaces_key: bool = False


def _out(action: int, kind: int, length: int = 24) -> str:
    return f"5f {action:02x} {kind:02x} 00 00 {length:08x} 00"


def _registered(initiator: Initiator) -> None:
    initiator.good(_out(6, 0), parameters(0, 1))


def _reserved(initiator: Initiator) -> None:
    _registered(initiator)
    initiator.good(_out(1, 1), parameters(1))


def _nothing_copied(initiator: Initiator) -> None:
    """A copy of no segments, held under the list identifier 7."""
    initiator.good("83 00 00 00 00 00 00 00 00 00 00 00 00 10 00 00", bytes([7]) + bytes(15))


_MOVE = move_parameters(1, 2, 1, transport_id("other"))
_CSCD = bytes.fromhex("e4 00 0000 01 03 00 08") + IDENTITY.naa.to_bytes(8) + bytes(13) + bytes.fromhex("000200")
_SEGMENT = bytes.fromhex("02 00 0018 0000 0000 0000 0001 0000000000000001 0000000000000002")
_COPY = bytes.fromhex("00 18 0020 00000000 0000001c 00000000") + _CSCD + _SEGMENT
_CACHING = bytes.fromhex("88 12 04") + bytes(17)
_COUNTERS = bytes.fromhex("02 00 000c 0002 20 08 0000000000000005")
_UNMAP = bytes.fromhex("0016 0010 00000000 0000000000000001 00000002 00000000")

EXAMPLES: dict[str, Example] = {
    "TEST UNIT READY": Example("00 00 00 00 00 00"),
    "REQUEST SENSE": Example("03 00 00 00 fc 00"),
    "FORMAT UNIT": Example("04 00 00 00 00 00"),
    "READ (6)": Example("08 00 00 01 02 00"),
    "WRITE (6)": Example("0a 00 00 01 02 00", bytes(1024)),
    "INQUIRY": Example("12 00 00 10 00 00"),
    "MODE SELECT (6)": Example("15 11 00 00 18 00", bytes(4) + _CACHING),
    "RESERVE (6)": Example("16 00 00 00 00 00"),
    "RELEASE (6)": Example("17 00 00 00 00 00"),
    "MODE SENSE (6)": Example("1a 00 3f ff ff 00"),
    "START STOP UNIT": Example("1b 00 00 00 01 00"),
    "PREVENT ALLOW MEDIUM REMOVAL": Example("1e 00 00 00 01 00"),
    "RECEIVE DIAGNOSTIC RESULTS": Example("1c 01 00 10 00 00"),
    "SEND DIAGNOSTIC": Example("1d 04 00 00 00 00"),
    "READ CAPACITY (10)": Example("25 00 00000000 00 00 00 00"),
    "READ (10)": Example("28 00 00000001 00 0002 00"),
    "WRITE (10)": Example("2a 00 00000001 00 0002 00", bytes(1024)),
    "WRITE AND VERIFY (10)": Example("2e 02 00000001 00 0002 00", bytes(1024)),
    "VERIFY (10)": Example("2f 02 00000001 00 0002 00", bytes(1024)),
    "PRE-FETCH (10)": Example("34 00 00000001 00 0002 00"),
    "SYNCHRONIZE CACHE (10)": Example("35 00 00000001 00 0002 00"),
    "READ DEFECT DATA (10)": Example("37 00 18 00 00 00 00 1000 00"),
    "WRITE BUFFER": Example("3b 02 00 000004 000008 00", bytes(8)),
    "READ BUFFER (10)": Example("3c 03 00 000000 001000 00"),
    "WRITE SAME (10)": Example("41 00 00000001 00 0002 00", bytes(512)),
    "UNMAP": Example("42 00 00000000 00 0018 00", _UNMAP),
    "SANITIZE (OVERWRITE)": Example("48 01 00 00 00 00 00 0008 00", bytes.fromhex("01 00 0004 aabbccdd")),
    "SANITIZE (BLOCK ERASE)": Example("48 02 00 00 00 00 00 0000 00"),
    "SANITIZE (CRYPTOGRAPHIC ERASE)": Example("48 03 00 00 00 00 00 0000 00", replaces_key=True),
    "SANITIZE (EXIT FAILURE MODE)": Example("48 1f 00 00 00 00 00 0000 00"),
    "LOG SELECT": Example("4c 00 40 00 00 00 00 0010 00", _COUNTERS),
    "LOG SENSE": Example("4d 00 42 00 00 0000 1000 00"),
    "MODE SELECT (10)": Example("55 11 00 00 00 00 00 001c 00", bytes(8) + _CACHING),
    "RESERVE (10)": Example("56 00 00 00 00 00 00 0000 00"),
    "RELEASE (10)": Example("57 00 00 00 00 00 00 0000 00"),
    "MODE SENSE (10)": Example("5a 00 3f ff 00 00 00 1000 00"),
    "PERSISTENT RESERVE IN (READ KEYS)": Example("5e 00 00 00 00 00 00 1000 00", prepare=_registered),
    "PERSISTENT RESERVE IN (READ RESERVATION)": Example("5e 01 00 00 00 00 00 1000 00", prepare=_reserved),
    "PERSISTENT RESERVE IN (REPORT CAPABILITIES)": Example("5e 02 00 00 00 00 00 1000 00"),
    "PERSISTENT RESERVE IN (READ FULL STATUS)": Example("5e 03 00 00 00 00 00 1000 00", prepare=_reserved),
    "PERSISTENT RESERVE OUT (REGISTER)": Example(_out(0, 0), parameters(0, 1)),
    "PERSISTENT RESERVE OUT (RESERVE)": Example(_out(1, 1), parameters(1), _registered),
    "PERSISTENT RESERVE OUT (RELEASE)": Example(_out(2, 1), parameters(1), _reserved),
    "PERSISTENT RESERVE OUT (CLEAR)": Example(_out(3, 0), parameters(1), _reserved),
    "PERSISTENT RESERVE OUT (PREEMPT)": Example(_out(4, 3), parameters(1, 1), _reserved),
    "PERSISTENT RESERVE OUT (PREEMPT AND ABORT)": Example(_out(5, 3), parameters(1, 1), _reserved),
    "PERSISTENT RESERVE OUT (REGISTER AND IGNORE EXISTING KEY)": Example(_out(6, 0), parameters(9, 1)),
    "PERSISTENT RESERVE OUT (REGISTER AND MOVE)": Example(_out(7, 0, len(_MOVE)), _MOVE, _reserved),
    "PERSISTENT RESERVE OUT (REPLACE LOST RESERVATION)": Example(_out(8, 1), parameters(0, 1), lost=True),
    "EXTENDED COPY (LID1)": Example("83 00 0000000000000000 0000004c 00 00", _COPY),
    "RECEIVE COPY STATUS (LID1)": Example("84 00 07 00000000000000 00001000 00 00", prepare=_nothing_copied),
    "RECEIVE COPY OPERATING PARAMETERS": Example("84 03 00 00000000000000 00001000 00 00"),
    "RECEIVE COPY FAILURE DETAILS (LID1)": Example("84 04 07 00000000000000 00001000 00 00", prepare=_nothing_copied),
    "READ (16)": Example("88 00 0000000000000001 00000002 00 00"),
    "COMPARE AND WRITE": Example("89 00 0000000000000001 000000 02 00 00", bytes(2048)),
    "WRITE (16)": Example("8a 00 0000000000000001 00000002 00 00", bytes(1024)),
    "ORWRITE (16)": Example("8b 00 0000000000000001 00000002 00 00", bytes(1024)),
    "WRITE AND VERIFY (16)": Example("8e 02 0000000000000001 00000002 00 00", bytes(1024)),
    "VERIFY (16)": Example("8f 02 0000000000000001 00000002 00 00", bytes(1024)),
    "PRE-FETCH (16)": Example("90 00 0000000000000001 00000002 00 00"),
    "SYNCHRONIZE CACHE (16)": Example("91 00 0000000000000001 00000002 00 00"),
    "WRITE SAME (16)": Example("93 00 0000000000000001 00000002 00 00", bytes(512)),
    "WRITE ATOMIC (16)": Example("9c 00 0000000000000001 0000 0002 00 00", bytes(1024)),
    "READ CAPACITY (16)": Example("9e 10 0000000000000000 00001000 00 00"),
    "GET LBA STATUS (16)": Example("9e 12 0000000000000001 00001000 00 00"),
    "REPORT LUNS": Example("a0 00 00 000000 00001000 00 00"),
    "SECURITY PROTOCOL IN": Example("a2 00 0000 00 00 00001000 00 00"),
    "REPORT IDENTIFYING INFORMATION": Example("a3 05 00 000000 00001000 fe 00"),
    "REPORT TARGET PORT GROUPS": Example("a3 2a 00 000000 00001000 00 00"),
    "REPORT SUPPORTED OPERATION CODES": Example("a3 0c 00 00 0000 00010000 00 00"),
    "REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS": Example("a3 0d 80 000000 00001000 00 00"),
    "REPORT TIMESTAMP": Example("a3 0f 00 000000 00001000 00 00"),
    "SET IDENTIFYING INFORMATION": Example("a4 06 00 000000 00000004 04 00", b"one\0"),
    "SET TIMESTAMP": Example("a4 0f 00 000000 0000000c 00 00", bytes(4) + bytes.fromhex("0000 00001000 0000")),
    "READ (12)": Example("a8 00 00000001 00000002 00 00"),
    "WRITE (12)": Example("aa 00 00000001 00000002 00 00", bytes(1024)),
    "WRITE AND VERIFY (12)": Example("ae 02 00000001 00000002 00 00", bytes(1024)),
    "VERIFY (12)": Example("af 02 00000001 00000002 00 00", bytes(1024)),
    "READ DEFECT DATA (12)": Example("b7 18 00000000 00001000 00 00"),
}


def ready_for(name: str, *, prepared: bool = True, **settings: Any) -> Initiator:
    """An initiator of a unit of 1 MiB where the example of this command can be served, unless `settings` or a lack of
    preparation forbid it."""
    example = EXAMPLES[name]
    state = MemoryRecord(lost=True) if example.lost else MemoryState()
    initiator = Initiator(make_unit(**{"state": state, "replaces_key": example.replaces_key} | settings))
    if prepared:
        example.prepare(initiator)
    return initiator


def cdb_of(name: str) -> bytes:
    return bytes.fromhex(EXAMPLES[name].cdb)


def sent(initiator: Initiator, name: str, cdb: bytes | None = None, data_out: bytes | None = None) -> Response:
    """The example's answer, with another CDB or other data-out."""
    example = EXAMPLES[name]
    return initiator.send(cdb or cdb_of(name), example.data_out if data_out is None else data_out)


SERVED = (Status.GOOD, Status.CONDITION_MET)

ROWS = {row.name: row for row in COMMANDS}
LENGTHS = ("transfer_length", "verification_length", "prefetch_length", "number_of_logical_blocks")


def with_field(name: str, field: str, value: int) -> bytes:
    row = ROWS[name]
    found, cdb = row.fields[field], int.from_bytes(cdb_of(name))
    return (cdb & ~found.mask | found.encode(value)).to_bytes(row.length)


def at(name: str, lba: int, count: int) -> bytes:
    """The example with this LBA, and this length where it has one."""
    row = ROWS[name]
    cdb = int.from_bytes(with_field(name, "lba", lba))
    for field in LENGTHS:
        if found := row.fields.get(field):
            cdb = cdb & ~found.mask | found.encode(count)
    return cdb.to_bytes(row.length)


def blocks_out(name: str, count: int) -> bytes:
    """Data-out for so many blocks."""
    blocks = {"COMPARE AND WRITE": 2 * count, "WRITE SAME (10)": 1, "WRITE SAME (16)": 1}.get(name, count)
    return bytes(512 * blocks) if EXAMPLES[name].data_out else b""
