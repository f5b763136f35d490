"""SWP of the Control mode page: nothing is written until it is zero again."""

from tests.scsi.faulty import FaultyMedium
from tests.scsi.initiator import Initiator, make_unit
from tests.scsi.test_modes import CONTROL, MODE_PARAMETERS_CHANGED, keeping, select6, sense6
from vstore.scsi.commands import Read10, Write10
from vstore.scsi.kept_state import MemoryState

PROTECTED = CONTROL.replace("02 10 00", "02 10 08")  # SWP


def test_swp_keeps_every_nexus_from_writing_until_it_is_zero_again() -> None:
    one = Initiator()
    other = Initiator(one.target)
    one.good(Write10.build(lba=1, transfer_length=1), b"a" * 512)
    one.good(*select6(PROTECTED))
    assert other.check("00").code == MODE_PARAMETERS_CHANGED
    for initiator in (one, other):
        assert initiator.check(Write10.build(lba=1, transfer_length=1), b"b" * 512).code == (7, 0x27, 0x02)
        assert not initiator.unit.fast_path(initiator.nexus).write
        assert initiator.unit.fast_path(initiator.nexus).read
        assert initiator.good(Read10.build(lba=1, transfer_length=1)) == b"a" * 512
    assert sense6(one, 0x0A)[2] == 0x90  # WP
    one.good(*select6(CONTROL))
    one.good(Write10.build(lba=1, transfer_length=1), b"b" * 512)
    assert one.unit.fast_path(one.nexus).write
    assert sense6(one, 0x0A)[2] == 0x10


def test_what_was_written_before_swp_is_made_durable() -> None:
    medium = FaultyMedium()
    initiator = Initiator(make_unit(medium=medium))
    initiator.good(*select6(PROTECTED))
    assert [call[0] for call in medium.calls].count("flush") == 1
    initiator.good(*select6(PROTECTED))
    initiator.good(*select6(CONTROL))
    assert [call[0] for call in medium.calls].count("flush") == 1


def test_swp_that_was_saved_outlives_a_loss_of_power() -> None:
    state = MemoryState()
    cdb, data = select6(PROTECTED)
    keeping(state).good(cdb[:1] + b"\x11" + cdb[2:], data)
    assert keeping(state).check(Write10.build(transfer_length=1), bytes(512)).code == (7, 0x27, 0x02)
