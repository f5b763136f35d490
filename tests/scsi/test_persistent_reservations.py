"""Reserving, releasing, clearing and preempting by the tables of SPC-4 5.12.9 and 5.12.11."""

import pytest

from tests.scsi.cluster import (
    APTPL,
    CLEAR,
    CONFLICT,
    EA,
    EA_AR,
    EA_RO,
    FULL_STATUS,
    GOOD,
    INVALID_RELEASE,
    PREEMPT,
    PREEMPT_AND_ABORT,
    PREEMPTED,
    REGISTER,
    REGISTRATIONS_GONE,
    RELEASE,
    RELEASED,
    REPLACE,
    RESERVE,
    TYPES,
    WE,
    WE_AR,
    WE_RO,
    MemoryRecord,
    cluster,
    code_of,
    generation_of,
    held,
    keys_of,
    out_cdb,
    parameters,
    registered,
)
from tests.scsi.initiator import (
    INVALID_FIELD_IN_CDB,
    INVALID_FIELD_IN_PARAMETER_LIST,
)
from vstore.scsi.direct_access import ResetCause
from vstore.scsi.task import ITNexus, Task

# ---- RESERVE, RELEASE, CLEAR --------------------------------------------------------------------------------


@pytest.mark.parametrize("action", [RESERVE, RELEASE, CLEAR, PREEMPT, PREEMPT_AND_ABORT])
def test_without_the_key_of_its_nexus_a_command_conflicts(action: int) -> None:
    one, other = cluster("one", "other")
    one.does(REGISTER, 0, 1)
    one.does(RESERVE, 1, kind=WE_RO)
    for node, key in ((one, 2), (one, 0), (other, 0), (other, 1)):
        # also where scope and type would be refused
        assert node.out(action, key, 1, kind=0, scope=2).status is CONFLICT
    assert (keys_of(one), held(one)) == ([1], (1, WE_RO))


@pytest.mark.parametrize("action", [RESERVE, RELEASE, PREEMPT, PREEMPT_AND_ABORT, REPLACE])
def test_other_scopes_and_types_are_refused(action: int) -> None:
    record = MemoryRecord(lost=action == REPLACE)
    (one,) = cluster("one", record=record)
    if action != REPLACE:
        one.does(REGISTER, 0, 1)
        one.does(RESERVE, 1, kind=WE)
    key, action_key = (0, 1) if action == REPLACE else (1, 1)
    data = parameters(key, action_key)
    for scope in range(1, 16):
        assert one.refused(out_cdb(action, WE, 24, scope), data) == (2, 7)
    for kind in set(range(16)) - set(TYPES):
        assert one.refused(out_cdb(action, kind, 24), data) == (2, 3)


@pytest.mark.parametrize("kind", TYPES)
def test_a_reservation_is_its_holders_until_it_is_released(kind: int) -> None:
    one, other = registered("one", "other")
    one.does(RESERVE, 1, kind=kind)
    assert held(other) == (0 if kind in (WE_AR, EA_AR) else 1, kind)
    one.does(RESERVE, 1, kind=kind)
    for another in set(TYPES) - {kind}:
        assert one.out(RESERVE, 1, kind=another).status is CONFLICT
    holds_too = kind in (WE_AR, EA_AR)
    assert other.out(RESERVE, 2, kind=kind).status is (GOOD if holds_too else CONFLICT)
    assert code_of(one.out(RELEASE, 1, kind=kind % 8 + 1 if kind != WE else EA)) in (
        INVALID_RELEASE,
        INVALID_FIELD_IN_CDB,
    )
    if not holds_too:
        other.does(RELEASE, 2, kind=kind)  # no error, and nothing happens
        assert held(other) == (1, kind)
    one.does(RELEASE, 1, kind=kind)
    assert one.told() == []
    assert other.told() == ([] if kind in (WE, EA) else [RELEASED])
    assert held(other) is None
    one.does(RELEASE, 1, kind=kind)


def test_a_release_of_another_type_is_invalid() -> None:
    (one,) = registered("one")
    one.does(RESERVE, 1, kind=WE)
    assert code_of(one.out(RELEASE, 1, kind=WE_RO)) == INVALID_RELEASE
    assert held(one) == (1, WE)


def test_clear_removes_all_and_tells_the_others() -> None:
    one, other, third = registered("one", "other", "third")
    third.does(REGISTER, 3, 0)
    other.does(RESERVE, 2, kind=EA)
    one.does(CLEAR, 1)
    assert (keys_of(one), held(one)) == ([], None)
    assert (one.told(), other.told(), third.told()) == ([], [PREEMPTED], [])
    assert one.out(CLEAR, 1).status is CONFLICT


# ---- PREEMPT ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("action", [PREEMPT, PREEMPT_AND_ABORT])
@pytest.mark.parametrize("kind", [WE, EA, WE_RO, EA_RO])
@pytest.mark.parametrize("new", TYPES)
def test_preempt_takes_the_reservation_over_with_all_that_have_the_holders_key(
    action: int, kind: int, new: int
) -> None:
    one, other, third, fourth = registered("one", "other", "third", "fourth")
    third.does(REGISTER, 3, 1)  # the same key as the holder's
    one.does(RESERVE, 1, kind=kind)
    other.does(action, 2, 1, new)
    assert keys_of(other) == [2, 4]
    assert held(other) == (0 if new in (WE_AR, EA_AR) else 2, new)
    assert one.told() == [REGISTRATIONS_GONE]
    assert third.told() == [REGISTRATIONS_GONE]
    assert fourth.told() == ([] if kind == new else [RELEASED])
    assert other.told() == []


def test_preempt_of_any_other_key_only_removes_registrations() -> None:
    for kind in (0, *TYPES):
        one, other, third = registered("one", "other", "third")
        if kind:
            one.does(RESERVE, 1, kind=kind)
        before = held(one)
        other.does(PREEMPT, 2, 3, kind=0)  # its type is not looked at
        assert (keys_of(one), held(one)) == ([1, 2], before)
        assert (one.told(), other.told(), third.told()) == ([], [], [REGISTRATIONS_GONE])


def test_preempt_of_all_registrants_takes_the_key_zero() -> None:
    for kind in (WE_AR, EA_AR):
        one, other, third = registered("one", "other", "third")
        one.does(RESERVE, 1, kind=kind)
        third.does(PREEMPT, 3, 0, WE_RO)
        assert (keys_of(third), held(third)) == ([3], (3, WE_RO))
        assert (one.told(), other.told()) == ([REGISTRATIONS_GONE],) * 2


def test_the_last_of_all_registrants_may_preempt_itself_out() -> None:
    one, other = registered("one", "other")
    one.does(RESERVE, 1, kind=WE_AR)
    other.does(PREEMPT, 2, 1)
    assert (keys_of(other), held(other)) == ([2], (0, WE_AR))
    other.does(PREEMPT, 2, 2)
    assert (keys_of(other), held(other)) == ([], None)
    assert other.told() == []


def test_preempt_of_the_key_zero_is_refused_where_not_all_registrants_hold() -> None:
    for kind in (0, WE, EA, WE_RO, EA_RO):
        (one,) = registered("one")
        if kind:
            one.does(RESERVE, 1, kind=kind)
        assert one.wrong(parameters(1, 0), PREEMPT, WE) == (INVALID_FIELD_IN_PARAMETER_LIST, 8)


def test_preempt_of_a_key_that_nobody_has_conflicts() -> None:
    for kind in (0, *TYPES):
        (one,) = registered("one")
        if kind:
            one.does(RESERVE, 1, kind=kind)
        assert one.out(PREEMPT, 1, 77, WE).status is CONFLICT


def test_a_holder_may_preempt_itself_to_another_type() -> None:
    one, other = registered("one", "other")
    one.does(RESERVE, 1, kind=WE)
    one.does(PREEMPT, 1, 1, EA_RO)
    assert (keys_of(one), held(one)) == ([1, 2], (1, EA_RO))
    assert (one.told(), other.told()) == ([], [RELEASED])


def test_preempt_and_abort_ends_the_commands_of_those_it_removes() -> None:
    one, other, third = registered("one", "other", "third")
    asked = []

    async def abort(nexuses: object, but: Task) -> list[ITNexus]:
        asked.append(nexuses)
        assert not other.unit.persistent.keys.get(one.nexus.identity)
        assert not one.unit.fast_path(one.nexus).write
        return [one.nexus, but.nexus]

    other.unit.on_abort(abort)
    one.does(RESERVE, 1, kind=EA_RO)
    other.does(PREEMPT, 2, 3, EA_RO)
    assert asked == []
    other.does(PREEMPT_AND_ABORT, 2, 1, EA_RO)
    assert asked == [(one.nexus.identity,)]
    assert one.told() == [REGISTRATIONS_GONE, (0x6, 0x2F, 0x00)]
    assert other.told() == []
    assert third.told() == [REGISTRATIONS_GONE]
    other.unit.forget_abort(abort)
    other.does(PREEMPT_AND_ABORT, 2, 2, EA_RO)
    assert len(asked) == 1


@pytest.mark.parametrize("flags", [0, APTPL])
def test_a_power_on_leaves_what_aptpl_keeps_and_counts_generations_anew(flags: int) -> None:
    (one,) = cluster("one", record=MemoryRecord())
    one.does(REGISTER, 0, 7, flags=flags)
    one.does(RESERVE, 7, kind=WE)
    one.unit.reset(ResetCause.POWER_ON)
    one.told()
    assert (generation_of(one), keys_of(one), held(one)) == ((0, [7], (7, WE)) if flags else (0, [], None))


def test_who_is_registered_where_nothing_is_reserved_holds_nothing() -> None:
    (one,) = registered("one")
    descriptor = one.asks(FULL_STATUS)[8:]
    assert (descriptor[:8], descriptor[12], descriptor[13]) == ((1).to_bytes(8), 0, 0)
