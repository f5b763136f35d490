from pathlib import Path

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
from tests.scsi.sg3 import decoded
from vstore.scsi.commands import (
    GetLbaStatus16,
    Inquiry,
    Unmap,
    Write10,
    WriteSame10,
    WriteSame16,
)
from vstore.scsi.direct_access import MAXIMUM_WRITE_SAME_BYTES
from vstore.scsi.medium import MemoryMedium
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


# ---- GET LBA STATUS ------------------------------------------------------------------------------------


def status(initiator: Initiator, lba: int = 0, room: int = 4096) -> list[tuple[int, int, int]]:
    """(LBA, blocks, provisioning status) of each descriptor."""
    data = initiator.good(GetLbaStatus16.build(lba=lba, allocation_length=room))
    assert int.from_bytes(data[:4]) == len(data) - 4
    assert data[4:8] == bytes(4)
    found = []
    for at in range(8, len(data), 16):
        assert data[at + 13 : at + 16] == bytes(3)
        found.append((int.from_bytes(data[at : at + 8]), int.from_bytes(data[at + 8 : at + 12]), data[at + 12]))
    return found


def test_get_lba_status_is_laid_out_as_sbc_3_prints_it() -> None:
    cdb = GetLbaStatus16.build(lba=0x0102030405060708, allocation_length=0x11223344)
    assert cdb.hex(" ") == "9e 12 01 02 03 04 05 06 07 08 11 22 33 44 00 00"


def test_deallocated_blocks_are_told_from_mapped_ones_block_by_block(tmp_path: Path) -> None:
    initiator = patterned()
    send_unmap(initiator, unmap_list((3, 1), (10, 20)))
    initiator.good(WriteSame16.build(lba=15, number_of_logical_blocks=1), b"\1" * 512)
    told = [(0, 3, 0), (3, 1, 1), (4, 6, 0), (10, 5, 1), (15, 1, 0), (16, 14, 1), (30, BLOCKS - 30, 0)]
    assert status(initiator) == told
    assert status(initiator, 12) == [(12, 3, 1), *told[4:]]
    data = initiator.good(GetLbaStatus16.build(allocation_length=4096))
    lines = decoded("sg_get_lba_status", data, tmp_path, "--brief", "--maxlen=4096").split("\n")
    assert [line for line in lines if line.startswith("0x")] == [
        f"0x{lba:016x}  0x{blocks:x}  {state}  0" for lba, blocks, state in told
    ]


def test_zeros_that_were_written_are_mapped() -> None:
    initiator = patterned()
    initiator.good(WriteSame16.build(lba=4, number_of_logical_blocks=2), bytes(512))
    assert status(initiator) == [(0, BLOCKS, 0)]


def test_a_block_is_mapped_as_soon_as_a_part_of_it_is() -> None:
    medium = MemoryMedium(16 * 4096)
    medium.holes = {*range(9, 30), *range(40, 48)}  # sectors
    initiator = Initiator(make_unit(medium=medium, logical_block_length=4096))
    assert status(initiator) == [(0, 2, 0), (2, 1, 1), (3, 2, 0), (5, 1, 1), (6, 10, 0)]
    medium.holes = {*range(8 * 3)} - {8 * 2 + 7}  # the last sector of the third block
    assert status(initiator) == [(0, 2, 1), (2, 14, 0)]
    medium.holes = {8}  # the first of the second
    assert status(initiator, 1) == [(1, 15, 0)]


def test_a_thick_unit_has_every_block_mapped() -> None:
    initiator = Initiator(make_unit(thin=False))
    initiator.unit.medium.holes.add(3)  # type: ignore[attr-defined]
    assert status(initiator, 1) == [(1, BLOCKS - 1, 0)]


@pytest.mark.parametrize(
    ("length", "count"), [(0, 1), (23, 1), (24, 1), (39, 1), (40, 2), (55, 2), (56, 3), (0xFFFFFFFF, 256)]
)
def test_there_are_as_many_descriptors_as_have_room(length: int, count: int) -> None:
    initiator = patterned()
    send_unmap(initiator, unmap_list(*[(2 * n, 1) for n in range(200)]))
    whole = initiator.good(GetLbaStatus16.build(allocation_length=8 + 16 * count))
    assert len(whole) == 8 + 16 * count
    assert initiator.good(GetLbaStatus16.build(allocation_length=length)) == whole[:length]


def test_a_row_that_four_bytes_cannot_count_takes_several_descriptors() -> None:
    initiator = Initiator(make_unit(medium=HugeMedium(5 << 41), thin=False))
    count = (5 << 41) // 512
    assert status(initiator) == [
        *[(n * 0xFFFF_FFFF, 0xFFFF_FFFF, 0) for n in range(count // 0xFFFF_FFFF)],
        (count // 0xFFFF_FFFF * 0xFFFF_FFFF, count % 0xFFFF_FFFF, 0),
    ]


@pytest.mark.parametrize("lba", [BLOCKS, BLOCKS + 1, (1 << 64) - 1])
def test_the_status_of_blocks_beyond_the_end_is_refused(lba: int) -> None:
    sense = Initiator().check(GetLbaStatus16.build(lba=lba, allocation_length=24))
    assert (sense.code, sense.information) == (LBA_OUT_OF_RANGE, lba if lba < 1 << 32 else None)


@pytest.mark.parametrize("byte", [14, 15])
def test_reserved_bytes_of_get_lba_status_are_refused(byte: int) -> None:
    cdb = bytearray(GetLbaStatus16.build(allocation_length=24))
    cdb[byte] = 1
    assert Initiator().refused(bytes(cdb)) == (byte, 0)


def test_an_error_of_the_map_is_told() -> None:
    class Unknown(MemoryMedium):
        async def status(self, _: int, __: int) -> list[tuple[int, int]]:
            raise OSError(5, "no map")

    initiator = Initiator(make_unit(medium=Unknown(MIB)))
    assert initiator.check(GetLbaStatus16.build(allocation_length=24)).code == (3, 0x11, 0)


# ---- ANCHOR --------------------------------------------------------------------------------------------

ANCHORING = [
    (
        Unmap.build(anchor=1, parameter_list_length=24),
        bytes.fromhex("0016 0010 00000000 0000000000000003 00000002 00000000"),
    ),
    (WriteSame10.build(anchor=1, unmap=1, lba=3, number_of_logical_blocks=2), bytes(512)),
    (WriteSame16.build(anchor=1, unmap=1, lba=3, number_of_logical_blocks=2), bytes(512)),
    (WriteSame16.build(anchor=1, unmap=1, ndob=1, lba=3, number_of_logical_blocks=2), b""),
]


def anchoring() -> Initiator:
    initiator = Initiator(make_unit(medium=MemoryMedium(MIB, anchors=True)))
    initiator.data[:] = b"\1" * MIB
    return initiator


@pytest.mark.parametrize(("cdb", "data"), ANCHORING)
def test_anchored_blocks_read_as_zeros_and_are_told_to_be_anchored(cdb: bytes, data: bytes) -> None:
    initiator = anchoring()
    initiator.good(WriteSame16.build(unmap=1, ndob=1, lba=4, number_of_logical_blocks=4))
    initiator.good(cdb, data)
    assert initiator.data == b"\1" * 1536 + bytes(5 * 512) + b"\1" * (MIB - 8 * 512)
    assert status(initiator) == [(0, 3, 0), (3, 2, 2), (5, 3, 1), (8, BLOCKS - 8, 0)]
    initiator.good(Write10.build(lba=3, transfer_length=1), bytes(512))
    assert status(initiator)[:2] == [(0, 4, 0), (4, 1, 2)]
    initiator.good(WriteSame16.build(unmap=1, ndob=1, lba=4, number_of_logical_blocks=1))
    assert status(initiator)[1] == (4, 4, 1)


def test_other_data_than_zeros_is_written_whether_anchored_or_not() -> None:
    initiator = anchoring()
    initiator.good(WriteSame16.build(anchor=1, unmap=1, number_of_logical_blocks=2), b"\2" * 512)
    assert status(initiator) == [(0, BLOCKS, 0)]
    assert initiator.data[:1024] == b"\2" * 1024


@pytest.mark.parametrize(("cdb", "data"), ANCHORING)
def test_a_unit_that_cannot_anchor_refuses_to_and_says_so(cdb: bytes, data: bytes) -> None:
    initiator = Initiator()
    assert initiator.refused(cdb, data) == ((1, 0) if cdb[0] == 0x42 else (1, 4))
    page = Inquiry.build(evpd=1, page_code=0xB2, allocation_length=8)
    assert initiator.good(page)[5] & 2 == 0
    assert anchoring().good(page)[5] & 2 == 2


@pytest.mark.parametrize("row", [WriteSame10, WriteSame16])
def test_write_same_without_unmap_anchors_nothing(row: type[WriteSame10]) -> None:
    assert anchoring().refused(row.build(anchor=1, number_of_logical_blocks=1), bytes(512)) == (1, 4)


def test_a_unit_that_is_not_thin_has_no_anchors() -> None:
    initiator = Initiator(make_unit(medium=MemoryMedium(MIB, anchors=True), thin=False))
    assert initiator.refused(WriteSame16.build(anchor=1, unmap=1, number_of_logical_blocks=1), bytes(512)) == (1, 3)


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([(512, 2), (3584, 0), (4096, 2)], [(0, 1, 0), (1, 1, 2), (2, 254, 0)]),
        ([(4608, 2), (3584, 2), (8192, 0)], [(0, 2, 2), (2, 2, 1), (4, 252, 0)]),
        ([(2048, 0), (1024, 1), (1024, 0), (4096, 0)], [(0, 1, 0), (1, 1, 1), (2, 254, 0)]),
    ],
)
def test_a_block_of_which_a_part_is_anchored_and_a_part_is_not_is_mapped(
    rows: list[tuple[int, int]], told: list[tuple[int, int, int]]
) -> None:
    class Mixed(MemoryMedium):
        async def status(self, _: int, length: int) -> list[tuple[int, int]]:
            return [*rows, (length - sum(row[0] for row in rows), 1)]

    assert status(Initiator(make_unit(medium=Mixed(MIB, anchors=True), logical_block_length=4096))) == told
