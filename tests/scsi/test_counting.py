from tests.scsi.initiator import MIB, Initiator, make_unit
from vstore.scsi.commands import Read6, WriteAndVerify10
from vstore.scsi.medium import MemoryMedium, Room


def test_a_command_counts_what_it_moved_and_one_that_was_refused_nothing() -> None:
    initiator = Initiator()
    initiator.good(Read6.build(), room=1 << 18)
    initiator.good(WriteAndVerify10.build(transfer_length=2), bytes(1024))
    initiator.check(WriteAndVerify10.build(transfer_length=2), bytes(1000))
    initiator.check(Read6.build(lba=2048))
    total = initiator.unit.statistics.total()
    assert (total.reads, total.bytes_read) == (1, 256 * 512)
    assert (total.writes, total.bytes_written, total.bytes_verified) == (1, 1024, 1024)


def test_data_in_that_the_initiator_has_no_room_for_was_read_all_the_same() -> None:
    initiator = Initiator()
    initiator.send(Read6.build(transfer_length=4), room=100)
    assert initiator.unit.statistics.total().bytes_read == 2048


def test_a_threshold_set_has_a_mebibyte_whatever_the_block() -> None:
    for size in (512, 1024, 2048, 4096):
        assert size << make_unit(logical_block_length=size).threshold_exponent == MIB


async def test_the_space_is_the_mediums() -> None:
    medium = MemoryMedium(MIB)
    unit = make_unit(medium=medium)
    medium.room = Room(1, 2)
    assert unit.space is None
    await unit.look_at_space()
    assert unit.space == Room(1, 2)
