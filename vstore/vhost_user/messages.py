"""Every message that a front-end may send, one row each: what it carries, what it attaches, what answers it.

The rows are the vhost-user specification's "Front-end message types"; session.py has a method for each row that vstore
implements, by the row's name. A row whose protocol feature was not negotiated counts as unknown, and so do rows without
a method. Sizes and descriptor counts are checked against the row before any method sees the message.
"""

from collections.abc import Sequence
from enum import Enum, IntFlag
from typing import ClassVar, Self

from vstore.record import Record
from vstore.vhost_user.structure import U16, U32, U64, Structure, StructureError

VERSION = 1
VERSION_MASK = 0b11
REPLY = 1 << 2
NEED_REPLY = 1 << 3
MAX_PAYLOAD = 4096  # far above the longest honest payload: a SET_MEM_TABLE of 8 regions has 264 bytes
MAX_DESCRIPTORS = 8
MAX_TABLE_REGIONS = 8
CONFIG_SPACE = 256  # VHOST_USER_MAX_CONFIG_SIZE
VRING_INDEX = 0xFF  # bits 0-7 of the payload of SET_VRING_KICK, CALL and ERR
NO_DESCRIPTOR = 1 << 8
VRING_LOG = 1 << 0  # VHOST_VRING_F_LOG, in VringAddress.flags


class Feature(IntFlag):
    """Virtio feature bits (virtio 1.2 section 6, and vhost's own two)."""

    HOTPLUG = 1 << 1  # virtio-scsi: TRANSPORT_RESET events
    CHANGE = 1 << 2  # virtio-scsi: PARAM_CHANGE events
    T10_PI = 1 << 3  # virtio-scsi
    NOTIFY_ON_EMPTY = 1 << 24
    LOG_ALL = 1 << 26
    ANY_LAYOUT = 1 << 27
    RING_INDIRECT_DESC = 1 << 28
    RING_EVENT_IDX = 1 << 29
    PROTOCOL_FEATURES = 1 << 30
    VERSION_1 = 1 << 32
    ACCESS_PLATFORM = 1 << 33
    RING_PACKED = 1 << 34
    IN_ORDER = 1 << 35


class ProtocolFeature(IntFlag):
    """vhost-user protocol feature bits."""

    MQ = 1 << 0
    LOG_SHMFD = 1 << 1
    REPLY_ACK = 1 << 3
    BACKEND_REQ = 1 << 5
    PAGEFAULT = 1 << 8
    CONFIG = 1 << 9
    INFLIGHT_SHMFD = 1 << 12
    RESET_DEVICE = 1 << 13
    INBAND_NOTIFICATIONS = 1 << 14
    CONFIGURE_MEM_SLOTS = 1 << 15
    STATUS = 1 << 16
    DEVICE_STATE = 1 << 19


class Header(Structure):
    request: U32
    flags: U32
    size: U32


class Nothing(Structure):
    """The payload of a message that is its own meaning."""


class Integer(Structure):
    value: U64


class VringState(Structure):
    index: U32
    num: U32


class VringAddress(Structure):
    """Addresses are the front-end's own (user addresses); `log` is the guest address of the used ring."""

    index: U32
    flags: U32
    descriptor: U64
    used: U64
    available: U64
    log: U64


class MemoryRegion(Structure):
    guest_address: U64
    size: U64
    user_address: U64
    mmap_offset: U64


class SingleMemoryRegion(Structure):
    padding: U64
    guest_address: U64
    size: U64
    user_address: U64
    mmap_offset: U64


class LogDescription(Structure):
    size: U64
    offset: U64


class Inflight(Structure):
    """QEMU sends the C structure with its tail padding: 24 bytes."""

    mmap_size: U64
    mmap_offset: U64
    num_queues: U16
    queue_size: U16
    padding: U32


class Iotlb(Structure):
    iova: U64
    size: U64
    user_address: U64
    permissions_and_type: U64  # two bytes, then the C structure's padding


class _TableHead(Structure):
    count: U32
    padding: U32


class MemoryTable(Record):
    """Memory regions description: a count, then that many regions."""

    regions: Sequence[MemoryRegion]
    octets: ClassVar[int] = _TableHead.octets + MemoryRegion.octets

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        head = _TableHead.unpack(data[: _TableHead.octets])
        if head.count > MAX_TABLE_REGIONS or len(data) != _TableHead.octets + head.count * MemoryRegion.octets:
            raise StructureError(f"{len(data)} bytes for a memory table of {head.count} regions (at most 8)")
        starts = range(_TableHead.octets, len(data), MemoryRegion.octets)
        return cls([MemoryRegion.unpack(data[start : start + MemoryRegion.octets]) for start in starts])

    def pack(self) -> bytes:
        return _TableHead(len(self.regions), 0).pack() + b"".join(region.pack() for region in self.regions)


class _ConfigHead(Structure):
    offset: U32
    size: U32
    flags: U32


class DeviceConfig(Record):
    """Virtio device config space: where, how long, and the bytes."""

    offset: int
    flags: int
    data: bytes
    octets: ClassVar[int] = _ConfigHead.octets + 1

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        head = _ConfigHead.unpack(data[: _ConfigHead.octets])
        if len(data) != _ConfigHead.octets + head.size:
            raise StructureError(f"{len(data)} bytes for {head.size} bytes of configuration space")
        return cls(head.offset, head.flags, data[_ConfigHead.octets :])

    def pack(self) -> bytes:
        return _ConfigHead(self.offset, len(self.data), self.flags).pack() + self.data


Payload = Structure | MemoryTable | DeviceConfig


class Answer(Enum):
    """How a message is answered: of its own accord, or only by the acknowledgement that NEED_REPLY asks for."""

    ON_DEMAND = 0
    ALWAYS = 1


class Row(Record):
    """One message type. `descriptors`: fewest and most that it may attach. `feature`: what must be negotiated first."""

    id: int
    name: str
    payload: type[Payload]
    descriptors: tuple[int, int] = (0, 0)
    answer: Answer = Answer.ON_DEMAND
    feature: ProtocolFeature | None = None

    @property
    def method(self) -> str:
        """The name of the session's method for it."""
        return self.name.lower()


_ALWAYS = Answer.ALWAYS
_DEMAND = Answer.ON_DEMAND
_P = ProtocolFeature
_ROWS = (
    Row(1, "GET_FEATURES", Nothing, answer=_ALWAYS),
    Row(2, "SET_FEATURES", Integer),
    Row(3, "SET_OWNER", Nothing),
    Row(4, "RESET_OWNER", Nothing),
    Row(5, "SET_MEM_TABLE", MemoryTable, (0, 8)),
    Row(6, "SET_LOG_BASE", LogDescription, (1, 1), _ALWAYS, _P.LOG_SHMFD),
    Row(7, "SET_LOG_FD", Nothing, (1, 1)),
    Row(8, "SET_VRING_NUM", VringState),
    Row(9, "SET_VRING_ADDR", VringAddress),
    Row(10, "SET_VRING_BASE", VringState),
    Row(11, "GET_VRING_BASE", VringState, answer=_ALWAYS),
    Row(12, "SET_VRING_KICK", Integer, (0, 1)),
    Row(13, "SET_VRING_CALL", Integer, (0, 1)),
    Row(14, "SET_VRING_ERR", Integer, (0, 1)),
    Row(15, "GET_PROTOCOL_FEATURES", Nothing, answer=_ALWAYS),
    Row(16, "SET_PROTOCOL_FEATURES", Integer),
    Row(17, "GET_QUEUE_NUM", Nothing, (0, 0), _ALWAYS, _P.MQ),
    Row(18, "SET_VRING_ENABLE", VringState),
    Row(21, "SET_BACKEND_REQ_FD", Nothing, (1, 1), _DEMAND, _P.BACKEND_REQ),
    Row(22, "IOTLB_MSG", Iotlb, (0, 0), _ALWAYS, _P.BACKEND_REQ),
    Row(24, "GET_CONFIG", DeviceConfig, (0, 0), _ALWAYS, _P.CONFIG),
    Row(25, "SET_CONFIG", DeviceConfig, (0, 0), _DEMAND, _P.CONFIG),
    Row(28, "POSTCOPY_ADVISE", Nothing, (0, 0), _ALWAYS, _P.PAGEFAULT),
    Row(29, "POSTCOPY_LISTEN", Nothing, (0, 0), _DEMAND, _P.PAGEFAULT),
    Row(30, "POSTCOPY_END", Nothing, (0, 0), _ALWAYS, _P.PAGEFAULT),
    Row(31, "GET_INFLIGHT_FD", Inflight, (0, 0), _ALWAYS, _P.INFLIGHT_SHMFD),
    Row(32, "SET_INFLIGHT_FD", Inflight, (1, 1), _DEMAND, _P.INFLIGHT_SHMFD),
    Row(34, "RESET_DEVICE", Nothing, (0, 0), _DEMAND, _P.RESET_DEVICE),
    Row(35, "VRING_KICK", VringState, (0, 0), _DEMAND, _P.INBAND_NOTIFICATIONS),
    Row(36, "GET_MAX_MEM_SLOTS", Nothing, (0, 0), _ALWAYS, _P.CONFIGURE_MEM_SLOTS),
    Row(37, "ADD_MEM_REG", SingleMemoryRegion, (1, 1), _DEMAND, _P.CONFIGURE_MEM_SLOTS),
    # A descriptor here is a fault of some front-ends that the specification lets pass.
    Row(38, "REM_MEM_REG", SingleMemoryRegion, (0, 1), _DEMAND, _P.CONFIGURE_MEM_SLOTS),
    Row(39, "SET_STATUS", Integer, (0, 0), _DEMAND, _P.STATUS),
    Row(40, "GET_STATUS", Nothing, (0, 0), _ALWAYS, _P.STATUS),
    Row(42, "SET_DEVICE_STATE_FD", VringState, (1, 1), _ALWAYS, _P.DEVICE_STATE),
    Row(43, "CHECK_DEVICE_STATE", Nothing, (0, 0), _ALWAYS, _P.DEVICE_STATE),
)
MESSAGES = {row.id: row for row in _ROWS}
