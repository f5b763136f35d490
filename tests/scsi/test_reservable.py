"""Which commands a reservation shuts out: tables 66 and 67 of SPC-4 and table 13 of SBC-3, as they are printed."""

import asyncio

import pytest

from tests.scsi.cluster import (
    CLEAR,
    CONFLICT,
    EA,
    EA_AR,
    EA_RO,
    GOOD,
    PREEMPT,
    REGISTER,
    RELEASE,
    RESERVE,
    TYPES,
    WE,
    WE_AR,
    WE_RO,
    MemoryRecord,
    Node,
    cluster,
    held,
    keys_of,
    out_cdb,
    parameters,
)
from vstore.scsi.cdb import Cdb
from vstore.scsi.commands import COMMANDS, PreventAllowMediumRemoval
from vstore.scsi.logical_unit import ResetCause
from vstore.scsi.task import Response

# A write exclusive, b exclusive access, c from a registered nexus beside any other type, d and e from one that is not
# registered beside write exclusive and exclusive access of these types. + allowed, - conflict.
ALWAYS, AS_READ, NEVER = "+++++", "+-++-", "--+--"
ALLOWED = {
    "COMPARE AND WRITE": NEVER,
    "EXTENDED COPY (LID1)": NEVER,
    "FORMAT UNIT": NEVER,
    "GET LBA STATUS (16)": AS_READ,
    "INQUIRY": ALWAYS,
    "LOG SELECT": NEVER,
    "LOG SENSE": ALWAYS,
    "MODE SELECT (6)": NEVER,
    "MODE SELECT (10)": NEVER,
    "MODE SENSE (6)": AS_READ,
    "MODE SENSE (10)": AS_READ,
    "ORWRITE (16)": NEVER,
    "PREVENT ALLOW MEDIUM REMOVAL": ALWAYS,  # without PREVENT
    "PRE-FETCH (10)": AS_READ,
    "PRE-FETCH (16)": AS_READ,
    "READ (6)": AS_READ,
    "READ (10)": AS_READ,
    "READ (12)": AS_READ,
    "READ (16)": AS_READ,
    "READ BUFFER (10)": AS_READ,
    "READ CAPACITY (10)": ALWAYS,
    "READ CAPACITY (16)": ALWAYS,
    "READ DEFECT DATA (10)": AS_READ,
    "READ DEFECT DATA (12)": AS_READ,
    "RECEIVE COPY FAILURE DETAILS (LID1)": AS_READ,
    "RECEIVE COPY OPERATING PARAMETERS": AS_READ,
    "RECEIVE COPY STATUS (LID1)": AS_READ,
    "RECEIVE DIAGNOSTIC RESULTS": AS_READ,
    "REPORT IDENTIFYING INFORMATION": ALWAYS,
    "REPORT LUNS": ALWAYS,
    "REPORT SUPPORTED OPERATION CODES": AS_READ,
    "REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS": AS_READ,
    "REPORT TARGET PORT GROUPS": ALWAYS,
    "REPORT TIMESTAMP": ALWAYS,
    "REQUEST SENSE": ALWAYS,
    "SANITIZE (OVERWRITE)": NEVER,
    "SANITIZE (BLOCK ERASE)": NEVER,
    "SANITIZE (CRYPTOGRAPHIC ERASE)": NEVER,
    "SANITIZE (EXIT FAILURE MODE)": NEVER,
    "SECURITY PROTOCOL IN": AS_READ,
    "SEND DIAGNOSTIC": NEVER,
    "SET IDENTIFYING INFORMATION": NEVER,
    "SET TARGET PORT GROUPS": NEVER,
    "SET TIMESTAMP": NEVER,
    "START STOP UNIT": NEVER,
    "SYNCHRONIZE CACHE (10)": NEVER,
    "SYNCHRONIZE CACHE (16)": NEVER,
    "TEST UNIT READY": ALWAYS,
    "UNMAP": NEVER,
    "VERIFY (10)": AS_READ,
    "VERIFY (12)": AS_READ,
    "VERIFY (16)": AS_READ,
    "WRITE (6)": NEVER,
    "WRITE (10)": NEVER,
    "WRITE (12)": NEVER,
    "WRITE (16)": NEVER,
    "WRITE AND VERIFY (10)": NEVER,
    "WRITE AND VERIFY (12)": NEVER,
    "WRITE AND VERIFY (16)": NEVER,
    "WRITE ATOMIC (16)": NEVER,
    "WRITE BUFFER": NEVER,
    "WRITE SAME (10)": NEVER,
    "WRITE SAME (16)": NEVER,
}
# "As defined in SPC-2", and what has tables of its own.
APART = {"RESERVE (6)", "RESERVE (10)", "RELEASE (6)", "RELEASE (10)"}
PLAIN = [row for row in COMMANDS if row.name not in APART and row.opcode not in (0x5E, 0x5F)]
SPARE = bytes.fromhex("1b 00 00 00 01 00")  # START STOP UNIT with START


def column(kind: int, registered: bool) -> int:
    if kind in (WE, EA):
        return 0 if kind == WE else 1
    return 2 if registered else 3 if kind in (WE_RO, WE_AR) else 4


def reserved(kind: int) -> tuple[Node, Node, Node]:
    """The holder, one that is registered, one that is not."""
    holder, registered, stranger = cluster("holder", "registered", "stranger", record=MemoryRecord())
    holder.does(REGISTER, 0, 1)
    registered.does(REGISTER, 0, 2)
    holder.does(RESERVE, 1, kind=kind)
    return holder, registered, stranger


@pytest.mark.parametrize("row", PLAIN, ids=lambda row: row.name)
def test_commands_are_shut_out_as_the_tables_say(row: type[Cdb]) -> None:
    for kind in TYPES:
        for number, expected in enumerate(("+", *(ALLOWED[row.name][column(kind, known)] for known in (True, False)))):
            node = reserved(kind)[number]
            conflict = node.send(row.build(), bytes(1024)).status is CONFLICT
            assert conflict is (expected == "-"), (kind, number)


@pytest.mark.parametrize("kind", TYPES)
def test_removal_is_prevented_by_those_alone_who_may_do_everything(kind: int) -> None:
    cdb = PreventAllowMediumRemoval.build(prevent=1)
    shut_out = [node.send(cdb).status is CONFLICT for node in reserved(kind)]
    assert shut_out == [False, NEVER[column(kind, True)] == "-", NEVER[column(kind, False)] == "-"]


@pytest.mark.parametrize("kind", TYPES)
def test_a_unit_may_be_started_by_everyone(kind: int) -> None:
    for node in reserved(kind):
        node.good(SPARE)


@pytest.mark.parametrize(
    ("kind", "registered", "stranger"),
    [(WE, "r", "r"), (EA, "", ""), (WE_RO, "rw", "r"), (EA_RO, "rw", ""), (WE_AR, "rw", "r"), (EA_AR, "rw", "")],
)
def test_the_data_plane_is_let_do_what_the_commands_may(kind: int, registered: str, stranger: str) -> None:
    nodes = reserved(kind)
    assert [node.may() for node in nodes] == ["rw", registered, stranger]
    nodes[0].does(RELEASE, 1, kind=kind)
    for node in nodes:
        node.settle()
    assert [node.may() for node in nodes] == ["rw"] * 3


def test_gates_open_and_shut_at_once() -> None:
    holder, _, stranger = cluster("holder", "registered", "stranger")
    holder.does(REGISTER, 0, 1)
    gates = []
    holder.unit.on_change(lambda: gates.append(holder.unit.fast_path(stranger.nexus)))
    holder.does(RESERVE, 1, kind=WE)
    holder.does(RELEASE, 1, kind=WE)
    assert [(gate.read, gate.write, gate.flush) for gate in gates] == [(True, False, False), (True, True, True)]


# SPC-4 table 67: service actions beside the reservation of another; from a registered nexus and from one that is not.
@pytest.mark.parametrize(
    ("action", "registered", "stranger"),
    [
        (REGISTER, GOOD, GOOD),
        (RESERVE, CONFLICT, CONFLICT),
        (RELEASE, GOOD, CONFLICT),
        (CLEAR, GOOD, CONFLICT),
        (PREEMPT, GOOD, CONFLICT),
        (5, GOOD, CONFLICT),
        (6, GOOD, GOOD),
    ],
)
@pytest.mark.parametrize("kind", [WE, EA, WE_RO, EA_RO])
def test_service_actions_are_shut_out_as_their_table_says(
    kind: int, action: int, registered: object, stranger: object
) -> None:
    _, known, unknown = reserved(kind)
    assert unknown.out(action, 0, 9 if action == REGISTER else 1, kind).status is stranger
    _, known, _ = reserved(kind)
    assert known.out(action, 2, 1, kind).status is registered


def test_reading_what_is_reserved_is_open_to_all() -> None:
    for kind in TYPES:
        for node in reserved(kind):
            for action in range(4):
                node.asks(action)


# ---- beside RESERVE and RELEASE ---------------------------------------------------------------------------------

RESERVES, RELEASES = ("16 00 00 00 00 00", "56" + " 00" * 9), ("17 00 00 00 00 00", "57" + " 00" * 9)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("cdb", [*RESERVES, *RELEASES])
def test_whom_a_persistent_reservation_favours_may_reserve_and_release_to_no_effect(kind: int, cdb: str) -> None:
    holder, registered, stranger = reserved(kind)
    holder.good(cdb)
    favoured = kind not in (WE, EA)
    assert registered.send(cdb).status is (GOOD if favoured else CONFLICT)
    assert stranger.send(cdb).status is CONFLICT
    assert holder.unit.reservation.holder is None
    assert held(holder) == (0 if kind in (WE_AR, EA_AR) else 1, kind)


@pytest.mark.parametrize("cdb", [*RESERVES, *RELEASES])
def test_while_anyone_is_registered_reserve_and_release_conflict(cdb: str) -> None:
    one, other = cluster("one", "other")
    one.does(REGISTER, 0, 1)
    assert one.send(cdb).status is other.send(cdb).status is CONFLICT
    one.does(CLEAR, 1)
    one.good(cdb)


@pytest.mark.parametrize("cdb", RESERVES)
def test_while_one_holds_the_unit_by_reserve_all_of_persistent_reserve_conflicts(cdb: str) -> None:
    one, other = cluster("one", "other")
    one.good(cdb)
    for node in (one, other):
        for action in range(4):
            assert node.send(bytes([0x5E, action, 0, 0, 0, 0, 0, 1, 0, 0])).status is CONFLICT
        for action in range(9):
            assert node.send(out_cdb(action, WE, 24), parameters(0, 1)).status is CONFLICT
    one.good(RELEASES[0])
    other.does(REGISTER, 0, 1)


# ---- what happens to the unit and to its nexuses ------------------------------------------------------------------


@pytest.mark.parametrize("cause", [ResetCause.LOGICAL_UNIT_RESET, ResetCause.HARD_RESET, ResetCause.I_T_NEXUS_LOSS])
def test_resets_leave_registrations_and_reservations(cause: ResetCause) -> None:
    holder, _, stranger = reserved(EA)
    holder.unit.reset(cause, holder.nexus)
    for node in (holder, stranger):
        node.settle()
    assert (keys_of(holder), held(holder), stranger.may()) == ([1, 2], (1, EA), "")


def test_a_machine_that_comes_again_is_who_it_was() -> None:
    holder, _, stranger = reserved(EA)
    holder.unit.remove_nexus(holder.nexus)
    assert stranger.may() == ""
    again = Node(holder.target, "holder", 1)
    assert again.nexus is not holder.nexus
    assert again.may() == "rw"
    elsewhere = Node(holder.target, "holder", 3)
    assert elsewhere.may() == ""


def test_power_on_ends_what_was_not_to_outlive_it() -> None:
    holder, _, stranger = reserved(EA)
    holder.unit.reset(ResetCause.POWER_ON)
    for node in (holder, stranger):
        node.settle()
    assert (keys_of(holder), stranger.may()) == ([], "rw")


class SlowRecord(MemoryRecord):
    def __init__(self) -> None:
        super().__init__()
        self.may_end = asyncio.Event()
        self.begun: list[bytes] = []

    async def save(self, data: bytes) -> None:
        self.begun.append(data)
        await self.may_end.wait()
        await super().save(data)


def begin(node: Node, action: int, key: int, action_key: int) -> asyncio.Task[Response]:
    task = node.task(out_cdb(action, WE, 24), parameters(key, action_key, flags=1))
    return asyncio.ensure_future(node.target.execute(task))


async def some_turns() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def test_one_change_is_durable_and_true_before_the_next_begins() -> None:
    async def story() -> None:
        record = SlowRecord()
        one, other = cluster("one", "other", record=record)
        first, second = begin(one, REGISTER, 0, 1), begin(other, REGISTER, 0, 2)
        await some_turns()
        assert len(record.begun) == 1
        assert not one.unit.persistent.keys
        record.may_end.set()
        assert [(await first).status, (await second).status] == [GOOD, GOOD]
        assert list(one.unit.persistent.keys.values()) == [1, 2]
        assert len(record.begun) == 2

    asyncio.run(story())


def test_a_change_whose_command_is_aborted_is_whole_all_the_same() -> None:
    async def story() -> None:
        record = SlowRecord()
        one, other = cluster("one", "other", record=record)
        first = begin(one, REGISTER, 0, 1)
        await some_turns()
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        assert not one.unit.persistent.keys
        record.may_end.set()
        await one.unit.settle()
        assert list(one.unit.persistent.keys.values()) == [1]
        assert (await begin(other, REGISTER, 0, 2)).status is GOOD

    asyncio.run(story())
