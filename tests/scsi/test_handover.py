import pytest

from tests.scsi.cluster import EA_RO, REGISTER, RESERVE, MemoryRecord, Node, cluster, held, keys_of
from tests.scsi.initiator import make_unit
from vstore.scsi.handover import handed_over, take_over
from vstore.scsi.logical_unit import LogicalUnit
from vstore.scsi.task import ITNexus


def successor(of: Node) -> LogicalUnit:
    """The same disk in the next process, to which the node has gone over."""
    unit = make_unit(state=MemoryRecord())
    take_over(unit, handed_over(of.unit), of.nexus)
    return unit


def gone_over(node: Node) -> Node:
    unit = successor(node)
    (after,) = cluster("nobody", unit=unit)
    after.nexus = node.nexus
    return after


def test_a_nexus_that_goes_over_is_told_nothing_new_and_misses_nothing() -> None:
    one, _ = cluster("one", "other", unit=make_unit(state=MemoryRecord()))
    assert gone_over(one).told() == []
    one.unit.capacity_changed()
    assert gone_over(one).told() == [(6, 0x2A, 9)]


def test_registrations_reservations_modes_and_a_stop_go_with_it() -> None:
    (one,) = cluster("one", unit=make_unit(state=MemoryRecord()))
    one.does(REGISTER, 0, 7)
    one.does(RESERVE, 7, kind=EA_RO)
    one.good("15 10 00 00 18 00", bytes(4) + bytes.fromhex("08 12 00") + bytes(17))
    one.good("1b 00 00 00 00 00")
    after = gone_over(one)
    assert (keys_of(after), held(after)) == ([7], (7, EA_RO))
    assert after.unit.write_through
    assert after.check("00").code == (2, 0x04, 0x02)


def test_who_holds_the_unit_by_reserve_goes_on_holding_it() -> None:
    (one,) = cluster("one")
    one.good("16 00 00 00 00 00")
    after = successor(one)
    assert after.reservation.holder is one.nexus
    assert after.reservation.excludes(ITNexus("other"))


@pytest.mark.parametrize("told", [b"", b"{}", b"[]", b"\xff"])
def test_what_is_no_such_text_is_refused(told: bytes) -> None:
    with pytest.raises((ValueError, KeyError, TypeError)):
        take_over(make_unit(), told, ITNexus("one"))
