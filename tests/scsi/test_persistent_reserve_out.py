"""Registering and moving by their tables (SPC-4 5.12.7, 5.12.8), and every refusal of a parameter list."""

import pytest

from tests.scsi.cluster import (
    ALL_TG_PT,
    CLEAR,
    CONFLICT,
    EA,
    EA_AR,
    EA_RO,
    GOOD,
    IGNORE,
    INSUFFICIENT,
    MOVE,
    PREEMPT,
    PREEMPT_AND_ABORT,
    REGISTER,
    RELEASE,
    RELEASED,
    REPLACE,
    RESERVE,
    SPEC_I_PT,
    WE,
    WE_AR,
    WE_RO,
    Node,
    cluster,
    code_of,
    generation_of,
    held,
    keys_of,
    move_parameters,
    out_cdb,
    parameters,
    registered,
    transport_id,
)
from tests.scsi.initiator import (
    INVALID_FIELD_IN_CDB,
    INVALID_FIELD_IN_PARAMETER_LIST,
    PARAMETER_LIST_LENGTH_ERROR,
    SHORT_DATA_OUT,
)
from vstore.scsi.persistent_reservations import MOST_REGISTRATIONS

# ---- REGISTER, REGISTER AND IGNORE EXISTING KEY -------------------------------------------------------------


@pytest.mark.parametrize(
    ("action", "present", "asked", "status", "keys"),
    [
        (REGISTER, 0, (0, 0), GOOD, []),
        (REGISTER, 0, (0, 7), GOOD, [7]),
        (REGISTER, 0, (9, 7), CONFLICT, []),
        (REGISTER, 5, (0, 7), CONFLICT, [5]),
        (REGISTER, 5, (9, 7), CONFLICT, [5]),
        (REGISTER, 5, (5, 7), GOOD, [7]),
        (REGISTER, 5, (5, 0), GOOD, []),
        (IGNORE, 0, (0, 0), GOOD, []),
        (IGNORE, 0, (9, 7), GOOD, [7]),
        (IGNORE, 5, (9, 7), GOOD, [7]),
        (IGNORE, 5, (9, 0), GOOD, []),
    ],
)
def test_registering_follows_its_tables(
    action: int, present: int, asked: tuple[int, int], status: object, keys: list[int]
) -> None:
    (one,) = cluster("one")
    if present:
        one.does(REGISTER, 0, present)
    before = generation_of(one)
    assert one.out(action, *asked).status is status
    assert keys_of(one) == keys
    assert generation_of(one) == before + (status is GOOD)


def test_the_generation_counts_what_changes_registrations_and_nothing_else() -> None:
    one, other = cluster("one", "other")
    seen = [generation_of(one)]
    for step in (
        lambda: one.out(REGISTER, 0, 1),
        lambda: one.out(RESERVE, 1, kind=WE),
        lambda: one.out(RELEASE, 1, kind=WE),
        lambda: one.out(IGNORE, 0, 2),
        lambda: other.out(REGISTER, 0, 3),
        lambda: other.out(REGISTER, 9, 3),
        lambda: other.out(PREEMPT, 3, 2, WE),
        lambda: other.out(PREEMPT_AND_ABORT, 3, 3, WE),
        lambda: other.out(REGISTER, 0, 3),
        one.told,
        lambda: other.out(CLEAR, 3),
        lambda: one.out(REGISTER, 0, 1),
        lambda: one.out(CLEAR, 1),
    ):
        step()
        seen.append(one.unit.persistent.generation)
    assert seen == [0, 1, 1, 1, 2, 3, 3, 4, 5, 6, 6, 7, 8, 9]


def test_the_holder_that_leaves_takes_the_reservation_along() -> None:
    for kind in (WE, EA, WE_RO, EA_RO):
        one, other = registered("one", "other")
        one.does(RESERVE, 1, kind=kind)
        one.does(REGISTER, 1, 0)
        assert other.told() == ([RELEASED] if kind in (WE_RO, EA_RO) else [])
        assert held(other) is None
        assert keys_of(other) == [2]


def test_what_all_registrants_hold_goes_with_the_last_of_them() -> None:
    for kind in (WE_AR, EA_AR):
        one, other = registered("one", "other")
        one.does(RESERVE, 1, kind=kind)
        one.does(REGISTER, 1, 0)
        assert held(other) == (0, kind)
        assert other.told() == []
        other.does(REGISTER, 2, 0)
        assert held(other) is None


def test_a_holder_that_changes_its_key_holds_under_the_new_one() -> None:
    (one,) = registered("one")
    one.does(RESERVE, 1, kind=WE)
    one.does(REGISTER, 1, 8)
    assert held(one) == (8, WE)


def test_all_target_ports_are_registered_and_unregistered_at_once() -> None:
    one, other = cluster("one", "other")
    one.does(REGISTER, 0, 1, flags=ALL_TG_PT)
    assert keys_of(one) == [1, 1]
    assert sorted(nexus.port for nexus in one.unit.persistent.keys) == [1, 2]
    assert other.out(RESERVE, 1, kind=WE).status is CONFLICT
    again = Node(one.target, "one", 2)
    again.does(RESERVE, 1, kind=WE)
    one.does(REGISTER, 1, 0, flags=ALL_TG_PT)
    assert keys_of(one) == []
    assert held(one) is None


def test_all_target_ports_are_registered_only_where_each_of_them_could_be() -> None:
    one, _ = cluster("one", "other")
    again = Node(one.target, "one", 2)
    again.does(REGISTER, 0, 5)
    assert one.out(REGISTER, 0, 1, flags=ALL_TG_PT).status is CONFLICT
    assert keys_of(one) == [5]
    one.does(IGNORE, 0, 1, flags=ALL_TG_PT)
    assert keys_of(one) == [1, 1]


def with_list(ids: bytes, length: int | None = None) -> bytes:
    return (len(ids) if length is None else length).to_bytes(4) + ids


def test_others_are_registered_by_their_transport_ids() -> None:
    one, other, third = cluster("one", "other", "third")
    ids = transport_id("other") + transport_id("one") + transport_id("other") + transport_id("third")
    data = parameters(0, 4, SPEC_I_PT, with_list(ids))
    one.good(out_cdb(REGISTER, 0, len(data)), data)
    # at the target port that the command came through, unless ALL_TG_PT says otherwise
    assert {nexus.port for nexus in one.unit.persistent.keys} == {1}
    assert keys_of(one) == [4, 4, 4]
    assert other.out(RESERVE, 4, kind=WE).status is CONFLICT
    one.does(CLEAR, 4)
    data = parameters(0, 4, SPEC_I_PT | ALL_TG_PT, with_list(transport_id("other") + transport_id("third")))
    one.good(out_cdb(REGISTER, 0, len(data)), data)
    assert keys_of(one) == [4] * 9
    third.does(RESERVE, 4, kind=WE)


def test_others_are_registered_only_with_oneself_and_only_if_they_are_not() -> None:
    one, _ = registered("one", "other")
    ids = with_list(transport_id("third"))
    for key, action_key in ((1, 3), (1, 0)):
        assert one.wrong(parameters(key, action_key, SPEC_I_PT, ids)) == (INVALID_FIELD_IN_PARAMETER_LIST, 20)
    one.does(REGISTER, 1, 0)
    through_one = Node(one.target, "other", 1)
    through_one.does(REGISTER, 0, 6)
    ids = with_list(transport_id("third") + transport_id("other"))
    assert one.wrong(parameters(0, 3, SPEC_I_PT, ids)) == (INVALID_FIELD_IN_PARAMETER_LIST, 20)
    assert keys_of(one) == [2, 6]
    for action in (IGNORE, RESERVE, RELEASE, CLEAR, PREEMPT, PREEMPT_AND_ABORT, REPLACE):
        wrong = one.wrong(parameters(0, 3, SPEC_I_PT, ids), action, WE)
        assert wrong == (INVALID_FIELD_IN_PARAMETER_LIST, 20)


@pytest.mark.parametrize(
    "data",
    [
        parameters(0, 1)[:-1],
        parameters(0, 1) + b"\0",
        parameters(0, 1, SPEC_I_PT),
        parameters(0, 1, SPEC_I_PT) + bytes(3),
        parameters(0, 1, SPEC_I_PT, with_list(transport_id("x"), 20)),
        parameters(0, 1, SPEC_I_PT, with_list(transport_id("x"), 4000)),
        parameters(0, 1, SPEC_I_PT, with_list(bytes(70000))),
        b"",
    ],
)
def test_a_parameter_list_of_another_length_is_refused(data: bytes) -> None:
    (one,) = cluster("one")
    assert one.wrong(data)[0] == PARAMETER_LIST_LENGTH_ERROR
    assert keys_of(one) == []


@pytest.mark.parametrize(
    ("ids", "at"),
    [
        (b"\x45" + transport_id("x")[1:], 28),  # TPID FORMAT 01b
        (b"\x06" + transport_id("x")[1:], 28),  # SAS
        (transport_id("x") + transport_id("x")[:-4], 64),  # cut off
        (b"\x05\0\0\x14" + b"iqn.x".ljust(20, b"\0") + b"\x05\0\0\x10" + b"iqn.y".ljust(16, b"\0"), 52),  # too short
        (b"\x05\0\0\x14" + b"iqn.xxxxxxxxxxxxxxxx", 28),  # not ended
    ],
)
def test_a_transport_id_that_is_none_is_refused_where_it_stands(ids: bytes, at: int) -> None:
    (one,) = cluster("one")
    assert one.wrong(parameters(0, 1, SPEC_I_PT, with_list(ids))) == (INVALID_FIELD_IN_PARAMETER_LIST, at)
    assert keys_of(one) == []


@pytest.mark.parametrize("bit", [0x80, 0x40, 0x20, 0x10, 0x02])
def test_reserved_bits_of_the_parameter_list_are_refused(bit: int) -> None:
    (one,) = cluster("one")
    assert one.wrong(parameters(0, 1, bit)) == (INVALID_FIELD_IN_PARAMETER_LIST, 20)
    data = bytearray(parameters(0, 1))
    data[21] = 1
    assert one.wrong(bytes(data)) == (INVALID_FIELD_IN_PARAMETER_LIST, 21)
    data[21] = 0
    data[16:20], data[22:24] = b"\xff" * 4, b"\xff" * 2  # obsolete: any value
    one.good(out_cdb(REGISTER, 0, len(data)), bytes(data))


def test_data_out_shorter_than_its_cdb_says_is_refused() -> None:
    (one,) = cluster("one")
    response = one.send(out_cdb(REGISTER, 0, 24), bytes(23))
    assert response.overrun
    assert code_of(response) == SHORT_DATA_OUT


def test_no_more_are_registered_than_there_is_room_for() -> None:
    one, other = cluster("one", "other")
    most = b"".join(transport_id(f"m{number}") for number in range(MOST_REGISTRATIONS))
    assert code_of(one.out(REGISTER, 0, 1, flags=SPEC_I_PT, more=with_list(most))) == INSUFFICIENT
    assert keys_of(one) == []
    fewer = most[len(transport_id("m0")) :]
    assert one.out(REGISTER, 0, 1, flags=SPEC_I_PT, more=with_list(fewer)).status is GOOD
    assert code_of(other.out(REGISTER, 0, 1)) == INSUFFICIENT
    one.does(RESERVE, 1, kind=WE)
    assert code_of(one.move(1, 2, other)) == INSUFFICIENT
    one.does(REGISTER, 1, 2)  # who is there may change its key


# ---- REGISTER AND MOVE --------------------------------------------------------------------------------------


@pytest.mark.parametrize("unreg", [0, 2])
@pytest.mark.parametrize("kind", [WE, EA, WE_RO, EA_RO])
def test_the_reservation_moves_to_a_nexus_that_is_registered_thereby(kind: int, unreg: int) -> None:
    one, other = cluster("one", "other")
    one.does(REGISTER, 0, 1)
    one.does(RESERVE, 1, kind=kind)
    assert one.move(1, 9, other, unreg).status is GOOD
    assert held(other) == (9, kind)
    assert keys_of(other) == ([9] if unreg else [1, 9])
    other.does(RELEASE, 9, kind=kind)


def test_it_moves_to_one_that_is_registered_already_too() -> None:
    one, other = registered("one", "other")
    one.does(RESERVE, 1, kind=WE)
    before = generation_of(one)
    assert one.move(1, 8, other).status is GOOD
    assert (keys_of(one), held(one)) == ([1, 8], (8, WE))
    assert generation_of(one) == before + 1
    assert one.told() == other.told() == []


def test_a_move_that_cannot_be_is_refused() -> None:
    one, other, third = cluster("one", "other", "third")
    assert one.move(0, 9, other).status is CONFLICT
    one.does(REGISTER, 0, 1)
    assert one.move(2, 9, other).status is CONFLICT
    assert code_of(one.move(1, 9, other)) == INVALID_FIELD_IN_CDB  # nothing is reserved
    one.does(RESERVE, 1, kind=WE_RO)
    third.does(REGISTER, 0, 3)
    assert third.move(3, 9, other).status is CONFLICT
    assert one.wrong(move_parameters(1, 0, 2, transport_id("other")), MOVE) == (INVALID_FIELD_IN_PARAMETER_LIST, 8)
    assert one.wrong(move_parameters(1, 9, 1, transport_id("one")), MOVE) == (INVALID_FIELD_IN_PARAMETER_LIST, 24)
    assert one.wrong(move_parameters(1, 9, 7, transport_id("other")), MOVE) == (INVALID_FIELD_IN_PARAMETER_LIST, 18)
    assert one.wrong(move_parameters(1, 9, 2, b"\x06" + bytes(23)), MOVE) == (INVALID_FIELD_IN_PARAMETER_LIST, 24)
    assert one.wrong(move_parameters(1, 9, 2, transport_id("other"), 0x04), MOVE) == (
        INVALID_FIELD_IN_PARAMETER_LIST,
        17,
    )
    assert one.wrong(move_parameters(1, 9, 2, transport_id("other")) + bytes(4), MOVE)[0] == PARAMETER_LIST_LENGTH_ERROR
    assert held(one) == (1, WE_RO)


def test_what_all_registrants_hold_does_not_move() -> None:
    one, other = registered("one", "other")
    one.does(RESERVE, 1, kind=WE_AR)
    assert one.move(1, 9, other).status is CONFLICT
