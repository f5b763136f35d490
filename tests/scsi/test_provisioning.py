import pytest

from tests.scsi.disks import HugeMedium, patterned, with_log
from tests.scsi.faulty import FaultyMedium
from tests.scsi.initiator import (
    INVALID_FIELD_IN_PARAMETER_LIST,
    LBA_OUT_OF_RANGE,
    MIB,
    PARAMETER_LIST_LENGTH_ERROR,
    SHORT_DATA_OUT,
    Initiator,
    make_unit,
)
from vstore.scsi.commands import (
    Unmap,
    WriteSame10,
    WriteSame16,
)
from vstore.scsi.direct_access import MAXIMUM_WRITE_SAME_BYTES
from vstore.scsi.task import Status

BLOCKS = MIB // 512


# ---- WRITE SAME ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", [WriteSame10, WriteSame16])
@pytest.mark.parametrize("size", [512, 4096])
def test_write_same_repeats_its_block(row: type[WriteSame10], size: int) -> None:
    initiator = patterned(logical_block_length=size)
    before = bytes(initiator.data)
    block = bytes(range(256)) * (size // 256)
    response = initiator.send(row.build(lba=2, number_of_logical_blocks=5), block)
    assert (response.status, response.data_out_used) == (Status.GOOD, size)
    assert initiator.data == before[: 2 * size] + block * 5 + before[7 * size :]


def test_a_long_pattern_is_written_in_pieces() -> None:
    medium = FaultyMedium(4 * MIB)
    initiator = Initiator(make_unit(medium=medium))
    initiator.good(WriteSame10.build(lba=1, number_of_logical_blocks=3 * MIB // 512), b"\1" * 512)
    assert medium.calls == [("write", 512 + n * MIB, MIB) for n in range(3)]
    assert initiator.data[512 : 512 + 3 * MIB] == b"\1" * 3 * MIB


@pytest.mark.parametrize("row", [WriteSame10, WriteSame16])
@pytest.mark.parametrize("unmap", [0, 1])
def test_zeros_are_zeroed_and_deallocated_only_if_asked(row: type[WriteSame10], unmap: int) -> None:
    initiator, medium = with_log()
    initiator.good(row.build(lba=1, number_of_logical_blocks=2, unmap=unmap), bytes(512))
    assert medium.calls == [("write_zeroes", 512, 1024, bool(unmap))]


def test_ndob_needs_no_data_out() -> None:
    initiator, medium = with_log()
    response = initiator.send(WriteSame16.build(lba=1, number_of_logical_blocks=2, ndob=1))
    assert (response.status, response.data_out_used) == (Status.GOOD, 0)
    assert medium.calls == [("write_zeroes", 512, 1024, False)]
    assert initiator.refused(bytes([0x41, 1]) + bytes(8)) == (1, 0)  # there is none in WRITE SAME (10)


def test_a_pattern_is_written_even_with_unmap() -> None:
    initiator = Initiator()
    initiator.good(WriteSame16.build(number_of_logical_blocks=4, unmap=1), b"\2" * 512)
    assert initiator.data[: 4 * 512] == b"\2" * 4 * 512


@pytest.mark.parametrize("row", [WriteSame10, WriteSame16])
def test_unmap_on_a_thick_unit_is_refused(row: type[WriteSame10]) -> None:
    initiator = Initiator(make_unit(thin=False))
    assert initiator.refused(row.build(number_of_logical_blocks=1, unmap=1), bytes(512)) == (1, 3)


@pytest.mark.parametrize("row", [WriteSame10, WriteSame16])
def test_writing_the_same_to_no_blocks_is_refused_as_the_block_limits_say(row: type[WriteSame10]) -> None:
    pointer = (7, 7) if row is WriteSame10 else (10, 7)
    assert Initiator().refused(row.build(number_of_logical_blocks=0), bytes(512)) == pointer


def test_more_blocks_than_the_block_limits_say_are_refused() -> None:
    medium = HugeMedium(1 << 41)
    initiator = Initiator(make_unit(medium=medium))
    limit = MAXIMUM_WRITE_SAME_BYTES // 512
    assert initiator.refused(WriteSame16.build(number_of_logical_blocks=limit + 1, ndob=1)) == (10, 7)
    initiator.good(WriteSame16.build(number_of_logical_blocks=limit, ndob=1))
    assert medium.zeroed == [(0, MAXIMUM_WRITE_SAME_BYTES, False)]


@pytest.mark.parametrize("row", [WriteSame10, WriteSame16])
def test_write_same_checks_its_range(row: type[WriteSame10]) -> None:
    cdb = row.build(lba=BLOCKS - 1, number_of_logical_blocks=2)
    sense = Initiator().check(cdb, bytes(512))
    assert (sense.code, sense.information) == (LBA_OUT_OF_RANGE, BLOCKS)


@pytest.mark.parametrize("row", [WriteSame10, WriteSame16])
def test_write_same_without_its_block_is_refused(row: type[WriteSame10]) -> None:
    assert Initiator().check(row.build(number_of_logical_blocks=1), bytes(511)).code == SHORT_DATA_OUT


@pytest.mark.parametrize("cdb", ["41 10", "93 10", "42 01"])
def test_anchor_is_refused_because_there_are_no_anchored_blocks(cdb: str) -> None:
    raw = bytes.fromhex(cdb)
    assert Initiator().refused(raw) == ((1, 4) if raw[1] == 0x10 else (1, 0))


# ---- UNMAP ---------------------------------------------------------------------------------------------


def unmap_list(*ranges: tuple[int, int], told: int | None = None) -> bytes:
    body = b"".join(lba.to_bytes(8) + count.to_bytes(4) + bytes(4) for lba, count in ranges)
    told = len(body) if told is None else told
    return (told + 6).to_bytes(2) + told.to_bytes(2) + bytes(4) + body


def send_unmap(initiator: Initiator, data: bytes, length: int | None = None) -> None:
    initiator.good(Unmap.build(parameter_list_length=len(data) if length is None else length), data)


def test_unmap_deallocates_each_range() -> None:
    initiator, medium = with_log()
    initiator.data[:] = b"\xff" * MIB
    send_unmap(initiator, unmap_list((1, 2), (10, 0), (BLOCKS - 1, 1)))
    assert medium.calls == [("write_zeroes", 512, 1024, True), ("write_zeroes", MIB - 512, 512, True)]
    assert initiator.data == b"\xff" * 512 + bytes(1024) + b"\xff" * (MIB - 2048) + bytes(512)


def test_no_parameter_list_and_no_descriptors_are_no_error() -> None:
    initiator, medium = with_log()
    send_unmap(initiator, b"")
    send_unmap(initiator, unmap_list())
    send_unmap(initiator, unmap_list((1, 1)), 8)  # cut after the header
    send_unmap(initiator, unmap_list((1, 1)), 23)  # cut inside the descriptor
    send_unmap(initiator, unmap_list((1, 1), told=15))
    assert medium.calls == []


def test_the_shorter_of_the_two_lengths_counts() -> None:
    initiator, medium = with_log()
    send_unmap(initiator, unmap_list((1, 1), (2, 1), told=16))
    send_unmap(initiator, unmap_list((3, 1), told=0xFFF0))
    assert medium.calls == [("write_zeroes", 512, 512, True), ("write_zeroes", 1536, 512, True)]


@pytest.mark.parametrize("length", range(1, 8))
def test_a_list_without_a_whole_header_is_a_length_error(length: int) -> None:
    initiator = Initiator()
    cdb = Unmap.build(parameter_list_length=length)
    assert initiator.check(cdb, bytes(8)).code == PARAMETER_LIST_LENGTH_ERROR


def test_nothing_is_unmapped_when_one_range_is_beyond_the_end() -> None:
    initiator, medium = with_log()
    for bad in ((BLOCKS, 1), (BLOCKS - 1, 2), (0xFFFF_FFFF_FFFF_FFFF, 0xFFFF_FFFF), (BLOCKS + 1, 0)):
        data = unmap_list((0, 1), bad)
        sense = initiator.check(Unmap.build(parameter_list_length=len(data)), data)
        assert (sense.code, sense.information) == (
            LBA_OUT_OF_RANGE,
            None if bad[0] > 0xFFFF_FFFF else max(bad[0], BLOCKS),
        )
    assert medium.calls == []


def test_256_descriptors_are_served_and_257_refused() -> None:
    initiator, medium = with_log()
    send_unmap(initiator, unmap_list(*[(n, 1) for n in range(256)]))
    assert len(medium.calls) == 256
    data = unmap_list(*[(n, 1) for n in range(257)])
    sense = initiator.check(Unmap.build(parameter_list_length=len(data)), data)
    assert (sense.code, sense.in_cdb, sense.byte) == (INVALID_FIELD_IN_PARAMETER_LIST, False, 2)


def test_data_out_shorter_than_the_parameter_list_is_refused() -> None:
    assert Initiator().check(Unmap.build(parameter_list_length=24), bytes(23)).code == SHORT_DATA_OUT
