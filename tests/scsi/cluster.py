"""Several nexuses of one logical unit, and PERSISTENT RESERVE OUT in bytes, not by the tables that are under test."""

from tests.scsi.initiator import Initiator, make_unit
from vstore.scsi.cdb import Beside
from vstore.scsi.kept_state import MemoryState, Section, StateLost
from vstore.scsi.logical_unit import LogicalUnit
from vstore.scsi.target import Target
from vstore.scsi.task import ITNexus, Response, Status

REGISTER, RESERVE, RELEASE, CLEAR, PREEMPT, PREEMPT_AND_ABORT, IGNORE, MOVE, REPLACE = range(9)
KEYS, RESERVATION, CAPABILITIES, FULL_STATUS = range(4)
WE, EA, WE_RO, EA_RO, WE_AR, EA_AR = TYPES = (1, 3, 5, 6, 7, 8)

# Service actions whose parameter list is the basic one.
BASIC = (REGISTER, RESERVE, RELEASE, CLEAR, PREEMPT, PREEMPT_AND_ABORT, IGNORE, REPLACE)
LOST = (0x7, 0x44, 0x01)
INVALID_RELEASE = (0x5, 0x26, 0x04)
INSUFFICIENT = (0x5, 0x55, 0x04)

GOOD, CONFLICT = Status.GOOD, Status.RESERVATION_CONFLICT
UNIT_ATTENTION = 0x6
PREEMPTED, RELEASED, REGISTRATIONS_GONE = (0x6, 0x2A, 0x03), (0x6, 0x2A, 0x04), (0x6, 0x2A, 0x05)

APTPL, ALL_TG_PT, SPEC_I_PT = 0x01, 0x04, 0x08


def parameters(key: int, action_key: int = 0, flags: int = 0, more: bytes = b"") -> bytes:
    return key.to_bytes(8) + action_key.to_bytes(8) + bytes(4) + bytes([flags, 0, 0, 0]) + more


def move_parameters(key: int, action_key: int, port: int, transport_id: bytes, flags: int = 0) -> bytes:
    head = key.to_bytes(8) + action_key.to_bytes(8) + bytes([0, flags])
    return head + port.to_bytes(2) + len(transport_id).to_bytes(4) + transport_id


def transport_id(name: str) -> bytes:
    """Of the machine that a target of this name serves."""
    text = f"iqn.2024-08.internal.vstore:{name}".encode() + b"\0"
    text = text.ljust(max(20, len(text) + -len(text) % 4), b"\0")
    return bytes([5, 0]) + len(text).to_bytes(2) + text


def out_cdb(action: int, kind: int, length: int, scope: int = 0) -> bytes:
    return bytes([0x5F, action, scope << 4 | kind, 0, 0]) + length.to_bytes(4) + b"\0"


def in_cdb(action: int, length: int = 0x2000) -> bytes:
    return bytes([0x5E, action, 0, 0, 0, 0, 0]) + length.to_bytes(2) + b"\0"


class MemoryRecord:
    """A state that is kept, of one section. `failing`: what the next save raises."""

    def __init__(self, data: bytes | None = None, *, lost: bool = False) -> None:
        self.data, self.lost = data, lost
        self.failing: OSError | None = None
        self.saves = 0

    def section(self, name: str) -> Section:
        return self if name == "persistent reservations" else MemoryState().section(name)

    def load(self) -> bytes | None:
        if self.lost:
            raise StateLost
        return self.data

    async def save(self, data: bytes) -> None:
        if self.failing:
            raise self.failing
        self.save_blocking(data)

    def save_blocking(self, data: bytes) -> None:
        self.saves += 1
        self.data, self.lost = data, False


class Node(Initiator):
    """One machine of a cluster."""

    def __init__(self, target: Target, name: str, port: int) -> None:
        super().__init__(target, settled=False)
        self.name = name
        self.nexus = ITNexus(name, port)
        self.unit.ports.add(port)
        self.settle()

    def settle(self) -> None:
        """What waits to be told is told."""
        self.unit.add_nexus(self.nexus)
        self.told()

    def out(
        self,
        action: int,
        key: int = 0,
        action_key: int = 0,
        kind: int = 0,
        *,
        flags: int = 0,
        more: bytes = b"",
        scope: int = 0,
    ) -> Response:
        data = parameters(key, action_key, flags, more)
        return self.send(out_cdb(action, kind, len(data), scope), data)

    def does(self, action: int, key: int = 0, action_key: int = 0, kind: int = 0, *, flags: int = 0) -> None:
        """As `out`, which must end well."""
        response = self.out(action, key, action_key, kind, flags=flags)
        assert response.status is GOOD, response

    def move(self, key: int, action_key: int, to: "Node", flags: int = 0) -> Response:
        data = move_parameters(key, action_key, to.nexus.identity.port, transport_id(to.name), flags)
        return self.send(out_cdb(MOVE, 0, len(data)), data)

    def wrong(self, data: bytes, action: int = REGISTER, kind: int = 0) -> tuple[tuple[int, int, int], int | None]:
        """Sense and field pointer of a parameter list that is refused."""
        sense = self.check(out_cdb(action, kind, len(data)), data)
        return sense.code, sense.byte

    def asks(self, action: int) -> bytes:
        return self.good(in_cdb(action))

    def told(self) -> list[tuple[int, int, int]]:
        """The unit attentions that wait."""
        codes: list[tuple[int, int, int]] = []
        while (sense := self.send("00 00 00 00 00 00").sense) and sense[2] & 0xF == UNIT_ATTENTION:
            codes.append((UNIT_ATTENTION, sense[12], sense[13]))
        return codes

    def may(self) -> str:
        """`rw`, `r` or nothing: what READ, WRITE and the gate of the data plane say alike."""
        reads = self.send("28 00 00 00 00 00 00 00 01 00").status
        writes = self.send("2a 00 00 00 00 00 00 00 01 00", bytes(512)).status
        flushes = self.send("35 00 00 00 00 00 00 00 00 00").status
        assert {reads, writes, flushes} <= {GOOD, CONFLICT}
        assert flushes is writes
        gate = self.unit.fast_path(self.nexus)
        assert (gate.read, gate.write, gate.flush) == (reads is GOOD, writes is GOOD, flushes is GOOD)
        assert self.unit.shuts_out(self.nexus, Beside.CONFLICT) is (writes is CONFLICT)
        return ("r" if reads is GOOD else "") + ("w" if writes is GOOD else "")


def keys_of(node: Node) -> list[int]:
    data = node.asks(KEYS)
    assert int.from_bytes(data[4:8]) == len(data) - 8
    return [int.from_bytes(data[at : at + 8]) for at in range(8, len(data), 8)]


def generation_of(node: Node) -> int:
    return int.from_bytes(node.asks(KEYS)[:4])


def held(node: Node) -> tuple[int, int] | None:
    """Key and type of the reservation."""
    data = node.asks(RESERVATION)
    if len(data) == 8:
        return None
    assert (len(data), data[4:8]) == (24, bytes([0, 0, 0, 16]))
    return int.from_bytes(data[8:16]), data[21]


def cluster(*names: str, record: MemoryRecord | None = None, unit: LogicalUnit | None = None) -> list[Node]:
    """Machines of these names at target ports 1, 2 and so on."""
    target = Target()
    target.add(0, unit or make_unit(state=record, replaces_key=True))
    return [Node(target, name, port) for port, name in enumerate(names, 1)]


def restarted(record: MemoryRecord, *names: str) -> list[Node]:
    """The same machines, after the process was killed and started again."""
    return cluster(*names, unit=make_unit(state=MemoryRecord(record.data, lost=record.lost)))


def registered(*names: str, record: MemoryRecord | None = None) -> list[Node]:
    """Machines with the keys 1, 2 and so on."""
    nodes = cluster(*names, record=record)
    for key, node in enumerate(nodes, 1):
        node.does(REGISTER, 0, key)
    return nodes


def code_of(response: Response) -> tuple[int, int, int]:
    return response.sense[2] & 0xF, response.sense[12], response.sense[13]
