"""A task as SAM-5 knows it: one command on one I_T nexus, and the response that ends it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, NamedTuple, Protocol

from vstore.scsi.sense import AdditionalSense, CheckCondition, Sense
from vstore.scsi.transport_id import NexusName


class TaskAttribute(IntEnum):
    """SAM-5 8.6, numbered as virtio-scsi does."""

    SIMPLE = 0
    ORDERED = 1
    HEAD_OF_QUEUE = 2
    ACA = 3


class Status(IntEnum):
    """SAM-5 5.3.1."""

    GOOD = 0x00
    CHECK_CONDITION = 0x02
    CONDITION_MET = 0x04
    BUSY = 0x08
    RESERVATION_CONFLICT = 0x18
    TASK_SET_FULL = 0x28
    ACA_ACTIVE = 0x30
    TASK_ABORTED = 0x40


class ITNexus:
    """One initiator port as the target port sees it: a virtual machine. Equal to itself alone; the next connection of
    the same machine is another one, with the same `identity`."""

    __slots__ = ("__weakref__", "identity", "name")

    def __init__(self, name: str, port: int = 1) -> None:
        """`port`: relative target port identifier."""
        self.name = name
        self.identity = NexusName.of_machine(name, port)

    def __repr__(self) -> str:
        return f"ITNexus({self.name!r})"


class DataOut(Protocol):
    """The initiator's data-out buffer, fetched on demand; `length` is its size in bytes."""

    @property
    def length(self) -> int: ...

    def read(self, offset: int, length: int) -> bytes: ...


class BytesOut:
    """A data-out buffer that is already here."""

    def __init__(self, data: bytes = b"") -> None:
        self.data = data

    @property
    def length(self) -> int:
        return len(self.data)

    def read(self, offset: int, length: int) -> bytes:
        return self.data[offset : offset + length]


class LunInventory(Protocol):
    """What REPORT LUNS needs of the target that a task came through."""

    def reported_luns(self) -> Sequence[int]:
        """Ascending."""
        ...

    def logical_units(self) -> Sequence[Any]:
        """Of these LUNs, in order: all that a command of a nexus of the target may name."""
        ...

    def luns_reported(self, nexus: ITNexus) -> None:
        """The nexus has been told: REPORTED LUNS DATA HAS CHANGED is over for every unit of the target."""
        ...


@dataclass(slots=True)
class Task:
    """One command. `cdb`: as received (transports pad); `data_in_room`: bytes the initiator's data-in buffer holds."""

    nexus: ITNexus
    lun: int
    tag: int
    attribute: TaskAttribute
    cdb: bytes
    data_out: DataOut = field(default_factory=BytesOut)
    data_in_room: int = 0
    inventory: LunInventory | None = None  # set by the target that routes the task
    data_out_used: int = field(default=0, init=False)

    def require(self, length: int) -> None:
        """CheckCondition when the initiator's data-out buffer is shorter than its CDB says.

        No standard names this fault; the buffer's size came with the command, hence COMMAND INFORMATION UNIT. To ask
        before the first write keeps a refused command without effect.
        """
        if length > self.data_out.length:
            raise CheckCondition(Sense.illegal(AdditionalSense.INVALID_FIELD_IN_COMMAND_INFORMATION_UNIT))

    def fetch(self, length: int, offset: int = 0) -> bytes:
        """Bytes of data-out, never beyond the initiator's buffer."""
        self.require(offset + length)
        data = self.data_out.read(offset, length)
        assert len(data) == length
        self.data_out_used = max(self.data_out_used, offset + length)
        return data


class ReservationConflict(Exception):  # noqa: N818
    """Another nexus has reserved the unit: the command ends with that status, and does nothing."""


class Response(NamedTuple):
    """How a task ended. `data_in` fits both the allocation length and the initiator's room.

    `data_out_used`: bytes of data-out that the command consumed. `overrun`: the command had more data-in than room, or
    its CDB asks for more data-out than the initiator offers.
    """

    status: Status
    data_in: bytes = b""
    sense: bytes = b""
    data_out_used: int = 0
    status_qualifier: int = 0
    overrun: bool = False
