"""An initiator beside the model: sends CDBs to a target and hands back responses, without an event loop."""

from collections.abc import Coroutine
from typing import Any
from uuid import UUID

from vstore.fuzz.sense_data import ParsedSense, parse_sense
from vstore.scsi.identity import Identity
from vstore.scsi.logical_unit import LogicalUnit
from vstore.scsi.medium import MemoryMedium
from vstore.scsi.refusals import CODES
from vstore.scsi.sense import SenseKey
from vstore.scsi.target import Target
from vstore.scsi.task import BytesOut, ITNexus, Response, Status, Task, TaskAttribute

MIB = 1 << 20
IDENTITY = Identity("8a5f", UUID("0f0e0d0c-0b0a-4908-8706-050403020100"))

INVALID_OPCODE = (0x5, 0x20, 0x00)
LBA_OUT_OF_RANGE = (0x5, 0x21, 0x00)
INVALID_FIELD_IN_CDB = (0x5, 0x24, 0x00)
LUN_NOT_SUPPORTED = (0x5, 0x25, 0x00)
INVALID_FIELD_IN_PARAMETER_LIST = (0x5, 0x26, 0x00)
PARAMETER_LIST_LENGTH_ERROR = (0x5, 0x1A, 0x00)
SHORT_DATA_OUT = (0x5, 0x0E, 0x03)
WRITE_PROTECTED = (0x7, 0x27, 0x00)
NOT_STARTED = (0x2, 0x04, 0x02)
POWER_ON = (0x6, 0x29, 0x01)


def run(work: Coroutine[Any, Any, Response]) -> Response:
    """Drives a coroutine that never waits."""
    try:
        work.send(None)
    except StopIteration as end:
        response = end.value
        assert isinstance(response, Response)
        return response
    raise AssertionError("the model waited for something")


def make_unit(length: int = MIB, **settings: Any) -> LogicalUnit:
    replaces_key = settings.pop("replaces_key", False)
    medium = settings.pop("medium", None) or MemoryMedium(length, replaces_key=replaces_key)
    return LogicalUnit(medium, IDENTITY, **settings)


class Initiator:
    """One nexus. `settled`: whether it has been told of the power on already."""

    def __init__(self, target: Target | LogicalUnit | None = None, *, lun: int = 0, settled: bool = True) -> None:
        if not isinstance(target, Target):
            unit = target or make_unit()
            target = Target()
            target.add(lun, unit)
        self.target = target
        self.lun = lun
        self.nexus = ITNexus("test")
        if settled:
            self.send("00 00 00 00 00 00")

    @property
    def unit(self) -> LogicalUnit:
        return self.target.luns[self.lun]

    @property
    def data(self) -> bytearray:
        assert isinstance(self.unit.medium, MemoryMedium)
        return self.unit.medium.data

    def task(self, cdb: bytes | str, data_out: bytes = b"", room: int = 1 << 16, **more: Any) -> Task:
        """The CDB is padded to 32 bytes, as virtio-scsi does."""
        raw = bytes.fromhex(cdb) if isinstance(cdb, str) else cdb
        attribute = more.pop("attribute", TaskAttribute.SIMPLE)
        return Task(self.nexus, more.pop("lun", self.lun), 1, attribute, raw.ljust(32, b"\0"), BytesOut(data_out), room)

    def send(self, cdb: bytes | str, data_out: bytes = b"", room: int = 1 << 16, **more: Any) -> Response:
        task = self.task(cdb, data_out, room, **more)
        response = run(self.target.execute(task))
        self._hold_to_the_table(task, response)
        return response

    def _hold_to_the_table(self, task: Task, response: Response) -> None:
        """What a disk answers stands in it; unit attentions and deferred errors are not of the command."""
        unit = self.target.luns.get(task.lun)
        row = unit.row_of(task.cdb) if unit else None
        if response.sense and isinstance(row, type):
            sense = parse_sense(response.sense)
            told = sense.deferred or sense.key == SenseKey.UNIT_ATTENTION or sense.code in CODES[row]
            assert told, f"{row.name} is not said to be refused with {sense}"

    def good(self, cdb: bytes | str, data_out: bytes = b"", room: int = 1 << 16, **more: Any) -> bytes:
        """Data-in of a command that must end with GOOD."""
        response = self.send(cdb, data_out, room, **more)
        assert response.status is Status.GOOD, parse_sense(response.sense)
        assert response.sense == b""
        return response.data_in

    def check(self, cdb: bytes | str, data_out: bytes = b"", room: int = 1 << 16, **more: Any) -> ParsedSense:
        """Sense data of a command that must end with CHECK CONDITION."""
        response = self.send(cdb, data_out, room, **more)
        assert response.status is Status.CHECK_CONDITION
        assert response.data_in == b""
        return parse_sense(response.sense)

    def refused(self, cdb: bytes | str, data_out: bytes = b"") -> tuple[int | None, int | None]:
        """Field pointer and bit pointer of INVALID FIELD IN CDB."""
        sense = self.check(cdb, data_out)
        assert (sense.code, sense.in_cdb) == (INVALID_FIELD_IN_CDB, True), sense
        return sense.byte, sense.bit
