"""The structures of virtio-scsi (virtio 1.2, 5.6) byte for byte: little-endian and packed. Bytes, no behaviour."""

from enum import IntEnum

from vstore.vhost_user.structure import U8, U16, U32, U64, Octets8, Octets32, Octets96, Structure

CONTROL_QUEUE = 0
EVENT_QUEUE = 1
FIRST_REQUEST_QUEUE = 2
SENSE_SIZE = 96  # the defaults of the configuration space; no driver in use changes them, and none may here
CDB_SIZE = 32


class Code(IntEnum):
    """`response` of every answer (5.6.6.1.1, 5.6.6.2)."""

    OK = 0  # a command: see its status; a task management function: complete
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


class ControlType(IntEnum):
    TASK_MANAGEMENT = 0
    ASYNCHRONOUS_NOTIFICATION_QUERY = 1
    ASYNCHRONOUS_NOTIFICATION_SUBSCRIBE = 2


class EventKind(IntEnum):
    NO_EVENT = 0
    TRANSPORT_RESET = 1
    ASYNCHRONOUS_NOTIFY = 2
    PARAM_CHANGE = 3


EVENTS_MISSED = 1 << 31


class TransportResetReason(IntEnum):
    HARD = 0
    RESCAN = 1
    REMOVED = 2


class Configuration(Structure, byte_order="<"):
    """The configuration space (5.6.4). Limits are those of the addresses and of QEMU's own device."""

    num_queues: U32
    seg_max: U32 = 126
    max_sectors: U32 = 0xFFFF
    cmd_per_lun: U32 = 128
    event_info_size: U32 = 16
    sense_size: U32 = SENSE_SIZE
    cdb_size: U32 = CDB_SIZE
    max_channel: U16 = 0
    max_target: U16 = 255
    max_lun: U32 = 16383


class CommandHeader(Structure, byte_order="<"):
    lun: Octets8
    tag: U64
    attribute: U8
    priority: U8
    crn: U8
    cdb: Octets32


class CommandResponse(Structure, byte_order="<"):
    sense_length: U32
    residual: U32
    status_qualifier: U16
    status: U8
    response: U8
    sense: Octets96


class TaskManagementRequest(Structure, byte_order="<"):
    type: U32
    function: U32
    lun: Octets8
    tag: U64


class TaskManagementResponse(Structure, byte_order="<"):
    response: U8


class NotificationRequest(Structure, byte_order="<"):
    """Asynchronous notification query and subscription."""

    type: U32
    lun: Octets8
    event_requested: U32


class NotificationResponse(Structure, byte_order="<"):
    event_actual: U32
    response: U8


class Event(Structure, byte_order="<"):
    event: U32
    lun: Octets8
    reason: U32


def lun_octets(target: int, lun: int) -> bytes:
    """How events name a logical unit: flat space addressing, as Linux and SeaBIOS write it (5.6.6.1)."""
    return bytes((1, target, 0x40 | lun >> 8, lun & 0xFF, 0, 0, 0, 0))
