import gc

import pytest

from tests.scsi.initiator import Initiator, make_unit
from vstore.scsi.cdb import Cdb
from vstore.scsi.commands import COMMANDS, Read10, Release6, Release10, Reserve6, Reserve10, Write10
from vstore.scsi.kept_state import MemoryState
from vstore.scsi.logical_unit import ResetCause
from vstore.scsi.task import ITNexus, Status

RESERVES, RELEASES = [Reserve6, Reserve10], [Release6, Release10]

# SPC-2 table 10, SBC-2 table 4: what is served while another nexus has reserved the unit.
SERVED = {
    "INQUIRY",
    "LOG SENSE",
    "READ CAPACITY (10)",
    "READ CAPACITY (16)",
    "RELEASE (6)",
    "RELEASE (10)",
    "REPORT IDENTIFYING INFORMATION",
    "REPORT LUNS",
    "REPORT SUPPORTED OPERATION CODES",
    "REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS",
    "REPORT TARGET PORT GROUPS",
    "REPORT TIMESTAMP",
    "REQUEST SENSE",
}


def pair() -> tuple[Initiator, Initiator]:
    """Two nexuses of one unit."""
    one = Initiator(make_unit(state=MemoryState(), replaces_key=True))
    return one, Initiator(one.target)


def conflicts(initiator: Initiator) -> bool:
    """Whether a read does; the data plane's gate says the same."""
    response = initiator.send(Read10.build(transfer_length=1))
    conflict = response.status is Status.RESERVATION_CONFLICT
    assert initiator.unit.fast_path(initiator.nexus).read is not conflict
    assert initiator.unit.fast_path(initiator.nexus).write is not conflict
    return conflict


@pytest.mark.parametrize("reserve", RESERVES)
@pytest.mark.parametrize("release", RELEASES)
def test_a_reserved_unit_serves_its_holder_alone_until_it_is_released(
    reserve: type[Reserve6], release: type[Release6]
) -> None:
    one, other = pair()
    one.good(reserve.build())
    one.good(reserve.build())
    assert not conflicts(one)
    assert conflicts(other)
    response = other.send(Write10.build(transfer_length=1), b"\1" * 512)
    assert (response.status, response.sense, response.data_out_used) == (Status.RESERVATION_CONFLICT, b"", 0)
    assert not any(one.data)
    assert other.send(reserve.build()).status is Status.RESERVATION_CONFLICT
    other.good(release.build())
    assert conflicts(other)
    one.good(release.build())
    assert not conflicts(other)
    other.good(reserve.build())
    assert conflicts(one)


@pytest.mark.parametrize("row", COMMANDS, ids=lambda row: row.name)
def test_only_what_asks_about_the_unit_is_served_to_others(row: type[Cdb]) -> None:
    one, other = pair()
    one.good(Reserve6.build())
    conflict = other.send(row.build(), bytes(1024)).status is Status.RESERVATION_CONFLICT
    assert conflict is (row.name not in SERVED)


def test_a_reset_or_the_loss_of_the_holder_ends_the_reservation() -> None:
    for cause in (ResetCause.LOGICAL_UNIT_RESET, ResetCause.HARD_RESET, ResetCause.POWER_ON):
        one, other = pair()
        one.good(Reserve6.build())
        one.unit.reset(cause)
        other.check("00")
        assert not conflicts(other)
    one, other = pair()
    one.good(Reserve10.build())
    one.unit.reset(ResetCause.I_T_NEXUS_LOSS, other.nexus)
    other.check("00")
    assert conflicts(other)
    one.unit.reset(ResetCause.I_T_NEXUS_LOSS, one.nexus)
    assert not conflicts(other)
    one.check("00")
    one.good(Reserve10.build())
    one.unit.remove_nexus(one.nexus)
    assert not conflicts(other)


def test_a_holder_that_nobody_knows_any_more_holds_nothing() -> None:
    one, other = pair()
    one.good(Reserve6.build())
    one.nexus = ITNexus("another")
    gc.collect()
    assert not conflicts(other)


def test_a_reservation_opens_and_shuts_the_gates_at_once() -> None:
    one, other = pair()
    changes = []
    one.unit.on_change(lambda: changes.append(one.unit.fast_path(other.nexus).write))
    one.good(Reserve6.build())
    one.good(Release6.build())
    assert changes == [False, True]


@pytest.mark.parametrize(
    ("cdb", "pointer"),
    [
        ("16 10", (1, 4)),
        ("16 01", (1, 0)),
        ("17 10", (1, 4)),
        ("56 02", (1, 1)),
        ("57 01", (1, 0)),
        ("56 00 01", (2, 0)),
    ],
)
def test_third_party_and_extent_reservations_are_refused(cdb: str, pointer: tuple[int, int]) -> None:
    raw = bytes.fromhex(cdb)
    assert Initiator().refused(raw.ljust(6 if raw[0] < 0x20 else 10, b"\0")) == pointer
