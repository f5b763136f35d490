"""The structures of virtio-scsi (virtio 1.2, 5.6.6) as a driver writes and reads them; bytes, no behaviour.

Declared apart from the back-end's own, for the reason given in `frontend.py`.
"""

import struct
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Self

CONTROL_QUEUE = 0
EVENT_QUEUE = 1
FIRST_REQUEST_QUEUE = 2

CDB_BYTES = 32
SENSE_BYTES = 96
WELL_KNOWN_REPORT_LUNS = bytes.fromhex("c101000000000000")

_COMMAND = struct.Struct(f"<8sQBBB{CDB_BYTES}s")
_RESPONSE = struct.Struct(f"<IIHBB{SENSE_BYTES}s")
_TASK_MANAGEMENT = struct.Struct("<II8sQ")
_EVENT = struct.Struct("<I8sI")

COMMAND_BYTES = _COMMAND.size
RESPONSE_BYTES = _RESPONSE.size
TASK_MANAGEMENT_BYTES = _TASK_MANAGEMENT.size
EVENT_BYTES = _EVENT.size


class Feature(IntFlag):
    """Feature bits of the device type."""

    INOUT = 1 << 0
    HOTPLUG = 1 << 1
    CHANGE = 1 << 2
    T10_PI = 1 << 3


class LunFormat(IntEnum):
    """Bits 7:6 of a LUN's first byte (SAM-5 4.7.4): Windows sends peripheral addresses, Linux and SeaBIOS flat ones."""

    PERIPHERAL = 0
    FLAT = 1


class TaskAttribute(IntEnum):
    SIMPLE = 0
    ORDERED = 1
    HEAD_OF_QUEUE = 2
    ACA = 3


class Response(IntEnum):
    """What became of a request at the transport; status and sense data count only with OK."""

    OK = 0
    OVERRUN = 1
    ABORTED = 2
    BAD_TARGET = 3
    RESET = 4
    BUSY = 5
    TRANSPORT_FAILURE = 6
    TARGET_FAILURE = 7
    NEXUS_FAILURE = 8
    FAILURE = 9
    FUNCTION_SUCCEEDED = 10
    FUNCTION_REJECTED = 11
    INCORRECT_LUN = 12


class TaskManagementFunction(IntEnum):
    ABORT_TASK = 0
    ABORT_TASK_SET = 1
    CLEAR_ACA = 2
    CLEAR_TASK_SET = 3
    I_T_NEXUS_RESET = 4
    LOGICAL_UNIT_RESET = 5
    QUERY_TASK = 6
    QUERY_TASK_SET = 7


class EventKind(IntEnum):
    NO_EVENT = 0
    TRANSPORT_RESET = 1
    ASYNC_NOTIFY = 2
    PARAM_CHANGE = 3


class ResetReason(IntEnum):
    """`reason` of a TRANSPORT_RESET event."""

    HARD = 0
    RESCAN = 1
    REMOVED = 2


@dataclass(frozen=True, slots=True)
class Event:
    """An element of the event queue; `reason` is a ResetReason, or ASC | ASCQ << 8 for PARAM_CHANGE."""

    kind: int
    lun: bytes
    reason: int
    missed: bool

    @classmethod
    def decode(cls, data: bytes) -> Self:
        event, lun, reason = _EVENT.unpack(data)
        return cls(event & 0x7FFF_FFFF, lun, reason, missed=bool(event >> 31))


@dataclass(frozen=True, slots=True)
class ResponseHeader:
    """struct virtio_scsi_cmd_resp without its sense buffer's unused rest."""

    residual: int
    status_qualifier: int
    status: int
    response: int
    sense: bytes
    sense_length: int

    @classmethod
    def decode(cls, data: bytes) -> Self:
        sense_length, residual, qualifier, status, response, sense = _RESPONSE.unpack(data)
        return cls(residual, qualifier, status, response, sense[:sense_length], sense_length)


def encode_lun(target: int, lun: int, lun_format: LunFormat = LunFormat.FLAT) -> bytes:
    """The 8 bytes that address a logical unit (virtio 1.2 5.6.6.1). ValueError for what the format cannot say."""
    limit = 16384 if lun_format == LunFormat.FLAT else 256
    if not 0 <= target < 256 or not 0 <= lun < limit:
        raise ValueError(
            f"target {target}, LUN {lun}: a {lun_format.name.lower()} address has targets 0..255, LUNs 0..{limit - 1}"
        )
    return bytes((1, target, lun_format << 6 | lun >> 8, lun & 0xFF, 0, 0, 0, 0))


def encode_command(lun: bytes, tag: int, attribute: int, cdb: bytes) -> bytes:
    return _COMMAND.pack(lun, tag, attribute, 0, 0, cdb)


def encode_task_management(function: int, lun: bytes, tag: int) -> bytes:
    return _TASK_MANAGEMENT.pack(0, function, lun, tag)
