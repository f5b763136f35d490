"""What outlives a loss of power, and what becomes of what was lost (SPC-4 5.12.5)."""

import errno

from tests.scsi.cluster import (
    APTPL,
    BASIC,
    CLEAR,
    EA,
    EA_RO,
    GOOD,
    IGNORE,
    LOST,
    MOVE,
    REGISTER,
    RELEASE,
    REPLACE,
    RESERVE,
    WE,
    MemoryRecord,
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
    restarted,
    transport_id,
)
from tests.scsi.initiator import (
    INVALID_FIELD_IN_PARAMETER_LIST,
)
from vstore.scsi.sense import AdditionalSense
from vstore.scsi.task import BytesOut

# ---- APTPL, REPLACE LOST RESERVATION --------------------------------------------------------------------------


def test_what_is_to_outlive_a_loss_of_power_does() -> None:
    record = MemoryRecord()
    one, other = cluster("one", "other", record=record)
    one.does(REGISTER, 0, 1, flags=APTPL)
    other.does(REGISTER, 0, 2, flags=APTPL)
    one.does(RESERVE, 1, kind=EA_RO)
    one, other = restarted(record, "one", "other")
    assert (keys_of(one), held(one), generation_of(one)) == ([1, 2], (1, EA_RO), 0)
    (third,) = [Node(one.target, "third", 3)]
    assert (one.may(), other.may(), third.may()) == ("rw", "rw", "")
    one.does(RELEASE, 1, kind=EA_RO)
    assert held(restarted(one.unit.record, "one")[0]) is None  # type: ignore[arg-type]


def test_without_aptpl_a_loss_of_power_takes_all() -> None:
    record = MemoryRecord()
    (one,) = cluster("one", record=record)
    one.does(REGISTER, 0, 1)
    one.does(RESERVE, 1, kind=EA)
    assert record.saves == 0
    assert keys_of(restarted(record, "one")[0]) == []
    one.does(REGISTER, 1, 2, flags=APTPL)
    assert keys_of(restarted(record, "one")[0]) == [2]
    one.does(REGISTER, 2, 3)  # the last word counts
    assert keys_of(restarted(record, "one")[0]) == []


def test_a_change_that_cannot_be_made_durable_does_not_happen() -> None:
    record = MemoryRecord()
    one, other = cluster("one", "other", record=record)
    one.does(REGISTER, 0, 1, flags=APTPL)
    other.does(REGISTER, 0, 2, flags=APTPL)
    record.failing = OSError(errno.ENOSPC, "full")
    assert code_of(one.out(RESERVE, 1, kind=EA)) == (0x7, 0x27, 0x07)
    record.failing = OSError(errno.EIO, "broken")
    assert code_of(one.out(CLEAR, 1)) == (0x3, 0x0C, 0x00)
    assert (keys_of(one), held(one)) == ([1, 2], None)
    assert other.told() == []
    record.failing = None
    one.does(RESERVE, 1, kind=EA)


def test_without_a_place_to_keep_them_aptpl_is_refused() -> None:
    one, _ = registered("one", "other")
    one.does(RESERVE, 1, kind=WE)
    for action in (REGISTER, IGNORE):
        assert one.wrong(parameters(1, 5, APTPL), action) == (INVALID_FIELD_IN_PARAMETER_LIST, 20)
    moving = move_parameters(1, 9, 2, transport_id("other"), 0x01)
    assert one.wrong(moving, MOVE) == (INVALID_FIELD_IN_PARAMETER_LIST, 17)
    for action in (RESERVE, RELEASE, CLEAR):  # it means nothing there
        assert one.out(action, 1, kind=WE, flags=APTPL).status is GOOD
    assert keys_of(one) == []


def test_what_was_lost_keeps_everyone_out_until_it_is_replaced() -> None:
    record = MemoryRecord(lost=True)
    one, other = cluster("one", "other", record=record)
    for cdb in ("28 00 00 00 00 00 00 00 01 00", "35 00 00 00 00 00 00 00 00 00", "1a 00 3f 00 ff 00"):
        assert one.check(cdb).code == LOST
    assert one.check("16 00 00 00 00 00").code == LOST
    assert not one.unit.fast_path(one.nexus).read
    for action in set(BASIC) - {REPLACE}:
        assert code_of(one.out(action, 0, 1, WE)) == LOST
    assert one.check("5e 00 00 00 00 00 00 10 00 00").code == LOST
    one.good("5e 02 00 00 00 00 00 10 00 00")
    for cdb in ("00 00 00 00 00 00", "12 00 00 00 ff 00", "a0 00 00 00 00 00 00 00 10 00 00 00"):
        one.good(cdb)
    assert one.wrong(parameters(1, 1), REPLACE, WE) == (INVALID_FIELD_IN_PARAMETER_LIST, 0)
    assert one.wrong(parameters(0, 0), REPLACE, WE) == (INVALID_FIELD_IN_PARAMETER_LIST, 8)
    one.does(REPLACE, 0, 6, EA)
    assert (keys_of(one), held(one)) == ([6], (6, EA))
    assert (one.may(), other.may()) == ("rw", "")
    assert (keys_of(restarted(record, "one")[0]), generation_of(one)) == ([6], 1)


def test_what_is_not_lost_cannot_be_replaced() -> None:
    (one,) = cluster("one", record=MemoryRecord())
    assert one.refused(out_cdb(REPLACE, WE, 24), parameters(0, 6)) == (1, 4)
    assert AdditionalSense.PERSISTENT_RESERVATION_INFORMATION_LOST.value == 0x4401


def test_a_record_that_says_what_cannot_be_is_a_lost_one() -> None:
    for data in (
        b"",
        b"[]",
        b"{}",
        b'{"aptpl": true, "registrations": [], "reservation": {"type": 1, "holder": ["iqn.x", 1]}}',
        b'{"aptpl": true, "registrations": [], "reservation": {"type": 2, "holder": null}}',
    ):
        (one,) = cluster("one", record=MemoryRecord(data))
        assert one.unit.persistent.lost


def test_a_command_that_is_not_read_yet_changes_nothing() -> None:
    (one,) = cluster("one")
    task = one.task(out_cdb(REGISTER, 0, 24), b"")
    task.data_out = BytesOut(parameters(0, 1))
    one.target.execute(task).close()
    assert keys_of(one) == []
