"""Each unit attention that this device has: what raises it, who is told, who is not, and what ends it.

raised      by an event or a command, for every nexus, for all but the one that caused it, or for one alone
waits       INQUIRY and REPORT LUNS pass it; every other command is refused with it, and has no effect
ends        told once: by CHECK CONDITION, or as the parameter data of REQUEST SENSE; 3F/0E by REPORT LUNS, too
"""

from collections.abc import Callable
from typing import NamedTuple

import pytest

from tests.scsi.cluster import CONFLICT, EA, PREEMPT, REGISTER, RESERVE, WE, MemoryRecord, Node, cluster, registered
from tests.scsi.examples import EXAMPLES, cdb_of
from tests.scsi.initiator import make_unit, run
from vstore.fuzz.sense_data import parse_sense
from vstore.scsi.commands import COMMANDS
from vstore.scsi.direct_access import ResetCause
from vstore.scsi.medium import MemoryMedium, Room
from vstore.scsi.sense import AdditionalSense
from vstore.scsi.task import Status

Code = tuple[int, int, int]


def _mode_select(one: Node) -> None:
    one.good("15 10 00 00 18 00", bytes(4) + bytes.fromhex("08 12 00") + bytes(17))


def _log_select(one: Node) -> None:
    one.good("4c 02 c0 00 00 00 00 0000 00")


def _set_timestamp(one: Node) -> None:
    one.good(cdb_of("SET TIMESTAMP"), EXAMPLES["SET TIMESTAMP"].data_out)


def _set_identifying_information(one: Node) -> None:
    one.good("a4 06 00 000000 00000004 04 00", b"one\0")


def _clear(one: Node) -> None:
    one.does(REGISTER, 0, 1)
    one.does(3, 1)


def _threshold(one: Node) -> None:
    """It is armed by this nexus, and then the host's storage runs short."""
    page = bytearray(one.good("1a 08 1c 02 ff 00")[4:])
    page[0] &= 0x7F
    page[16], page[20:24] = 0x80, (10).to_bytes(4)
    one.good(bytes([0x15, 0x10, 0, 0, 4 + len(page), 0]), bytes(4) + bytes(page))
    for nexus in one.unit.attentions.nexuses():
        one.unit.clear_attention(AdditionalSense.MODE_PARAMETERS_CHANGED, nexus)
    assert isinstance(one.unit.medium, MemoryMedium)
    one.unit.medium.room = Room(0, 9 << 20)
    with pytest.raises(StopIteration):
        one.unit.look_at_space().send(None)


class Cause(NamedTuple):
    """`one`, `other`: whether the nexus that acts and another one are told."""

    code: Code
    act: Callable[[Node], None]
    one: bool
    other: bool


EVERYBODY, OTHERS, ITSELF = (True, True), (False, True), (True, False)
CAUSES = {
    "power on": Cause((6, 0x29, 1), lambda one: one.unit.reset(ResetCause.POWER_ON), *EVERYBODY),
    "bus reset": Cause((6, 0x29, 2), lambda one: one.unit.reset(ResetCause.HARD_RESET), *EVERYBODY),
    "LOGICAL UNIT RESET": Cause((6, 0x29, 3), lambda one: one.unit.reset(ResetCause.LOGICAL_UNIT_RESET), *EVERYBODY),
    "I_T nexus loss": Cause((6, 0x29, 7), lambda one: one.unit.reset(ResetCause.I_T_NEXUS_LOSS, one.nexus), *ITSELF),
    "MODE SELECT": Cause((6, 0x2A, 1), _mode_select, *OTHERS),
    "LOG SELECT": Cause((6, 0x2A, 2), _log_select, *OTHERS),
    "capacity": Cause((6, 0x2A, 9), lambda one: one.unit.capacity_changed(), *EVERYBODY),
    "SET TIMESTAMP": Cause((6, 0x2A, 0x10), _set_timestamp, *OTHERS),
    "threshold": Cause((6, 0x38, 7), _threshold, *EVERYBODY),
    "target port": Cause((6, 0x3F, 3), lambda one: one.unit.add_port(9), *EVERYBODY),
    "SET IDENTIFYING INFORMATION": Cause((6, 0x3F, 5), _set_identifying_information, *OTHERS),
    "LUNs": Cause((6, 0x3F, 0x0E), lambda one: one.target.add(5, make_unit()), *EVERYBODY),
}
# Of PERSISTENT RESERVE OUT, by test_persistent_*.py against the tables of SPC-4 5.12; of PREEMPT AND ABORT and CLEAR
# TASK SET, by test_reservable.py and the control queue's tests.
ELSEWHERE = {(6, 0x2A, 3), (6, 0x2A, 4), (6, 0x2A, 5), (6, 0x2F, 0)}

every_cause = pytest.mark.parametrize("cause", CAUSES.values(), ids=CAUSES)


def nodes() -> tuple[Node, Node]:
    one, other = cluster("one", "other", unit=make_unit(state=MemoryRecord()))
    one.target._port = other.target._port = 1
    other.nexus.identity = other.nexus.identity._replace(port=1)  # both through the port whose LUNs change
    return one, other


def waiting(node: Node) -> list[Code]:
    return [(s.key, s.code.asc, s.code.ascq) for s in node.unit.attentions.waiting(node.nexus)]


def test_every_unit_attention_there_is_has_its_row() -> None:
    attentions = {cause.code[1:] for cause in CAUSES.values()} | {code[1:] for code in ELSEWHERE}
    families = (0x28, 0x29, 0x2A, 0x2F, 0x38, 0x3F)
    assert {(code.asc, code.ascq) for code in AdditionalSense if code.asc in families} == attentions


@every_cause
def test_it_is_raised_for_whom_it_concerns_and_nobody_else(cause: Cause) -> None:
    one, other = nodes()
    cause.act(one)
    assert waiting(one) == [cause.code] * cause.one
    assert waiting(other) == [cause.code] * cause.other


@every_cause
def test_it_is_told_once_and_as_a_unit_attention(cause: Cause) -> None:
    one, other = nodes()
    cause.act(one)
    told = other if cause.other else one
    assert told.check("00").code == cause.code
    told.good("00")


@every_cause
def test_a_nexus_that_comes_later_is_told_of_the_power_on_alone(cause: Cause) -> None:
    one, _ = nodes()
    cause.act(one)
    late = Node.__new__(Node)
    late.__dict__.update(one.__dict__, nexus=type(one.nexus)("late"))
    assert late.check("00").code == (6, 0x29, 1)
    late.good("00")


@every_cause
def test_inquiry_lets_it_stand_and_request_sense_tells_it_as_data(cause: Cause) -> None:
    one, other = nodes()
    cause.act(one)
    told = other if cause.other else one
    told.good("12 00 00 00 ff 00")
    assert waiting(told) == [cause.code]
    assert parse_sense(told.good("03 00 00 00 fc 00")).code == cause.code
    assert waiting(told) == []
    told.good("00")


@every_cause
def test_report_luns_ends_only_that_of_changed_luns(cause: Cause) -> None:
    one, other = nodes()
    cause.act(one)
    told = other if cause.other else one
    told.good(cdb_of("REPORT LUNS"))
    assert waiting(told) == [cause.code] * (cause.code != (6, 0x3F, 0x0E))


@every_cause
def test_the_data_plane_serves_nothing_until_it_was_told(cause: Cause) -> None:
    one, other = nodes()
    cause.act(one)
    told = other if cause.other else one
    assert not any(told.unit.fast_path(told.nexus)[:3])
    told.check("00")
    assert all(told.unit.fast_path(told.nexus)[:3])


@pytest.mark.parametrize("name", [row.name for row in COMMANDS if not row.passes_attention])
def test_every_other_command_is_refused_with_it_and_has_no_effect(name: str) -> None:
    _, other = nodes()
    other.data[:] = b"\x5a" * len(other.data)
    other.unit.capacity_changed()
    assert other.check(cdb_of(name), EXAMPLES[name].data_out).code == (6, 0x2A, 9)
    assert other.data == b"\x5a" * len(other.data)
    assert not other.unit.persistent.keys
    assert other.unit.reservation.holder is None


def test_what_changed_nothing_is_told_to_nobody() -> None:
    one, other = nodes()
    for act in (_mode_select, _set_identifying_information):
        act(one)
        other.told()
        act(one)
        assert waiting(other) == []


# ---- order ----------------------------------------------------------------------------------------------


def test_resets_go_first_and_the_others_in_the_order_they_came() -> None:
    one, other = nodes()
    for name in ("MODE SELECT", "capacity", "LUNs", "I_T nexus loss", "LOGICAL UNIT RESET"):
        CAUSES[name].act(one)
    assert other.told() == [(6, 0x29, 3), (6, 0x2A, 1), (6, 0x2A, 9), (6, 0x3F, 0x0E)]


def test_a_reset_says_that_commands_were_cleared_without_a_word_of_its_own() -> None:
    one, _ = nodes()
    one.unit.establish(AdditionalSense.COMMANDS_CLEARED_BY_ANOTHER_INITIATOR)
    one.unit.reset(ResetCause.LOGICAL_UNIT_RESET)
    assert one.told() == [(6, 0x29, 3)]


def test_a_reservation_conflict_goes_before_a_unit_attention_which_goes_on_waiting() -> None:
    # SAM-5 5.3.3
    one, other = registered("one", "other")
    other.does(RESERVE, 2, kind=EA)
    one.does(PREEMPT, 1, 2, kind=EA)
    for _ in range(2):
        assert other.send("28 00 00000000 00 0001 00").status is CONFLICT
    assert other.told() == [(6, 0x2A, 5)]
    assert other.send("28 00 00000000 00 0001 00").status is CONFLICT


@pytest.mark.parametrize("cause", list(ResetCause))
def test_the_unit_attention_of_a_reset_goes_before_a_reservation_conflict(cause: ResetCause) -> None:
    one, other = cluster("one", "other", unit=make_unit(state=MemoryRecord()))
    one.does(REGISTER, 0, 1, flags=1)
    one.does(RESERVE, 1, kind=EA)
    other.unit.reset(cause, other.nexus)
    assert other.check("28 00 00000000 00 0001 00").code == (6, *divmod(cause.value.value, 256))
    assert other.send("28 00 00000000 00 0001 00").status is CONFLICT


def test_what_cannot_be_decoded_is_told_of_the_unit_attention_first() -> None:
    one, other = registered("one", "other")
    one.does(RESERVE, 1, kind=EA)
    other.does(REGISTER, 2, 0)
    one.unit.capacity_changed()
    assert other.check("28 00 00000000 80 0001 00").code == (6, 0x2A, 9)


def test_a_command_that_does_not_conflict_tells_the_unit_attention() -> None:
    one, other = registered("one", "other")
    one.does(RESERVE, 1, kind=WE)
    one.does(3, 1)
    assert other.send("28 00 00000000 00 0001 00").status is Status.CHECK_CONDITION
    assert waiting(other) == []


# ---- target ports ---------------------------------------------------------------------------------------


def test_a_unit_of_several_target_ports_says_so_and_tells_when_one_goes() -> None:
    one, other = nodes()
    assert one.good("12 00 00 00 ff 00")[6] & 0x10
    one.unit.remove_port(other.unit.ports.copy().pop())
    assert one.told() == [(6, 0x3F, 3)]
    one.unit.remove_port(99)
    one.unit.add_port(next(iter(one.unit.ports)))
    assert one.told() == []


def test_a_unit_of_one_target_port_is_none_of_several() -> None:
    (one,) = cluster("one")
    assert not one.good("12 00 00 00 ff 00")[6] & 0x10
    assert run(one.target.execute(one.task("12 00 00 00 ff 00", lun=0xC101))).data_in[6] == 0
