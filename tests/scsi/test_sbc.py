import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.scsi.faulty import FaultyMedium
from tests.scsi.initiator import (
    INVALID_FIELD_IN_CDB,
    INVALID_FIELD_IN_PARAMETER_LIST,
    LBA_OUT_OF_RANGE,
    MIB,
    NOT_STARTED,
    PARAMETER_LIST_LENGTH_ERROR,
    SHORT_DATA_OUT,
    Initiator,
    make_unit,
)
from tests.scsi.sense_parser import parse_sense
from vstore.scsi.cdb import Cdb
from vstore.scsi.commands import (
    Read6,
    Read10,
    Read12,
    Read16,
    ReadCapacity10,
    ReadCapacity16,
    StartStopUnit,
    SynchronizeCache10,
    SynchronizeCache16,
    Unmap,
    Verify10,
    Verify12,
    Verify16,
    Write6,
    Write10,
    Write12,
    Write16,
    WriteSame10,
    WriteSame16,
)
from vstore.scsi.direct_access import MAXIMUM_TRANSFER_BYTES, MAXIMUM_WRITE_SAME_BYTES
from vstore.scsi.medium import MemoryMedium
from vstore.scsi.sbc import first_difference
from vstore.scsi.task import Status

READS = [Read6, Read10, Read12, Read16]
WRITES = [Write6, Write10, Write12, Write16]
VERIFIES = [Verify10, Verify12, Verify16]
BLOCKS = MIB // 512
MISCOMPARE = (0xE, 0x1D, 0x00)


class HugeMedium(MemoryMedium):
    """Claims a length; holds only zeros."""

    def __init__(self, length: int) -> None:
        super().__init__(0)
        self.claimed = length
        self.zeroed: list[tuple[int, int, bool]] = []

    @property
    def length(self) -> int:
        return self.claimed

    async def read(self, offset: int, length: int) -> bytes:
        assert offset + length <= self.claimed
        return bytes(length)

    async def write_zeroes(self, offset: int, length: int, *, deallocate: bool) -> None:
        self.zeroed.append((offset, length, deallocate))


def patterned(**settings: int) -> Initiator:
    """Each block is filled with its number."""
    initiator = Initiator(make_unit(**settings))
    size = initiator.unit.logical_block_length
    for block in range(initiator.unit.blocks):
        initiator.data[block * size : (block + 1) * size] = bytes([block & 0xFF]) * size
    return initiator


def with_log(**settings: bool) -> tuple[Initiator, FaultyMedium]:
    medium = FaultyMedium()
    initiator = Initiator(make_unit(medium=medium, **settings))
    return initiator, medium


# ---- READ and WRITE ------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", READS)
@pytest.mark.parametrize("size", [512, 4096])
def test_a_read_returns_the_blocks_asked_for(row: type[Read10], size: int) -> None:
    initiator = patterned(logical_block_length=size)
    data = initiator.good(row.build(lba=3, transfer_length=2))
    assert data == b"\3" * size + b"\4" * size


@pytest.mark.parametrize("row", WRITES)
@pytest.mark.parametrize("size", [512, 4096])
def test_a_write_changes_its_blocks_and_no_others(row: type[Write10], size: int) -> None:
    initiator = patterned(logical_block_length=size)
    before = bytes(initiator.data)
    new = bytes(range(256)) * (size // 128)
    response = initiator.send(row.build(lba=5, transfer_length=2), new)
    assert (response.status, response.data_out_used) == (Status.GOOD, 2 * size)
    assert initiator.data == before[: 5 * size] + new + before[7 * size :]


def test_zero_blocks_in_a_6_byte_cdb_are_256() -> None:
    initiator = Initiator()
    assert len(initiator.good(Read6.build(transfer_length=0), room=MIB)) == 256 * 512
    initiator.good(Write6.build(transfer_length=0), b"\xaa" * 256 * 512)
    assert initiator.data[: 256 * 512] == b"\xaa" * 256 * 512


@pytest.mark.parametrize("row", [*READS[1:], *WRITES[1:]])
def test_zero_blocks_in_a_longer_cdb_are_none(row: type[Read10]) -> None:
    initiator, medium = with_log()
    for lba in (0, BLOCKS):
        assert initiator.good(row.build(lba=lba, transfer_length=0)) == b""
    assert medium.calls == []


@pytest.mark.parametrize("row", [*READS, *WRITES])
@pytest.mark.parametrize(("lba", "count"), [(BLOCKS - 1, 2), (BLOCKS, 1), (BLOCKS + 5, 1), (0x1FFFFF, 1)])
def test_past_the_last_block_is_out_of_range_with_the_first_such_address(
    row: type[Read10], lba: int, count: int
) -> None:
    initiator, medium = with_log()
    sense = initiator.check(row.build(lba=lba, transfer_length=count), bytes(1024))
    assert (sense.code, sense.information) == (LBA_OUT_OF_RANGE, max(lba, BLOCKS))
    assert medium.calls == []


@pytest.mark.parametrize("row", [Read16, Write16])
def test_an_address_near_the_end_of_64_bits_does_not_wrap(row: type[Read16]) -> None:
    for lba in (0xFFFF_FFFF_FFFF_FFFF, 0xFFFF_FFFF_FFFF_FF00, 1 << 55):
        assert Initiator().check(row.build(lba=lba, transfer_length=256), bytes(256 * 512)).code == LBA_OUT_OF_RANGE


@pytest.mark.parametrize("row", [*READS, *WRITES])
def test_the_last_block_is_in_range(row: type[Read10]) -> None:
    Initiator().good(row.build(lba=BLOCKS - 1, transfer_length=1), bytes(512))


@pytest.mark.parametrize("row", [Read12, Read16, Write12, Write16])
@pytest.mark.parametrize("size", [512, 4096])
def test_a_transfer_longer_than_the_block_limits_say_is_refused(row: type[Read16], size: int) -> None:
    initiator = Initiator(make_unit(medium=HugeMedium(1 << 40), logical_block_length=size))
    limit = MAXIMUM_TRANSFER_BYTES // size
    pointer = (10, 7) if row.length == 16 else (6, 7)
    assert initiator.refused(row.build(transfer_length=limit + 1)) == pointer
    assert initiator.refused(row.build(transfer_length=0xFFFF_FFFF)) == pointer


def test_the_longest_transfer_is_served() -> None:
    initiator = Initiator(make_unit(medium=HugeMedium(1 << 40)))
    data = initiator.good(Read16.build(transfer_length=MAXIMUM_TRANSFER_BYTES // 512), room=MAXIMUM_TRANSFER_BYTES)
    assert len(data) == MAXIMUM_TRANSFER_BYTES


def test_a_long_write_goes_to_the_medium_in_pieces_and_in_order() -> None:
    medium = FaultyMedium(4 * MIB)
    initiator = Initiator(make_unit(medium=medium))
    data = b"".join(bytes([n % 251]) * 512 for n in range(5 * MIB // 2 // 512))
    initiator.good(Write10.build(lba=1, transfer_length=len(data) // 512), data)
    assert medium.calls == [("write", 512, MIB), ("write", 512 + MIB, MIB), ("write", 512 + 2 * MIB, MIB // 2)]
    assert initiator.data[512 : 512 + len(data)] == data


@pytest.mark.parametrize("row", WRITES)
def test_data_out_shorter_than_the_write_changes_nothing(row: type[Write10]) -> None:
    initiator, medium = with_log()
    response = initiator.send(row.build(transfer_length=2), bytes(1023))
    assert parse_sense(response.sense).code == SHORT_DATA_OUT
    assert response.overrun
    assert response.data_out_used == 0
    assert medium.calls == []


@pytest.mark.parametrize("row", [Read10, Read12, Read16, Write10, Write12, Write16])
def test_dpo_and_the_group_number_are_accepted(row: type[Read10]) -> None:
    Initiator().good(row.build(dpo=1, group_number=31, transfer_length=1), bytes(512))


@pytest.mark.parametrize(
    "cdb", ["28 20", "28 04", "88 80", "a8 04", "2a 20", "8a 40", "aa 80", "2f 20", "41 20", "93 20"]
)
def test_protection_and_rarc_are_refused_at_their_field(cdb: str) -> None:
    raw = bytes.fromhex(cdb)
    expected = (1, 2) if raw[1] == 4 else (1, 7)
    assert Initiator().refused(raw) == expected


# ---- durability ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", [Write10, Write12, Write16])
def test_a_write_with_fua_is_durable_before_it_completes(row: type[Write10]) -> None:
    initiator, medium = with_log()
    initiator.good(row.build(transfer_length=1, fua=0), bytes(512))
    assert medium.calls == [("write", 0, 512)]
    initiator.good(row.build(transfer_length=1, fua=1), bytes(512))
    assert medium.calls == [("write", 0, 512)] * 2 + [("flush",)]


@pytest.mark.parametrize("row", [Read10, Read12, Read16])
def test_a_read_with_fua_flushes_first(row: type[Read10]) -> None:
    initiator, medium = with_log()
    initiator.good(row.build(transfer_length=1, fua=1))
    assert medium.calls == [("flush",), ("read", 0, 512)]


@pytest.mark.parametrize(
    ("cdb", "data_out"),
    [
        (Write6.build(transfer_length=1), bytes(512)),
        (Write10.build(transfer_length=1), bytes(512)),
        (WriteSame10.build(number_of_logical_blocks=1), bytes(512)),
        (WriteSame16.build(number_of_logical_blocks=1), b"\1" * 512),
        (Unmap.build(parameter_list_length=24), bytes.fromhex("0016 0010 00000000 0000000000000000 00000001 00000000")),
    ],
)
def test_without_a_write_cache_every_write_is_durable_before_it_completes(cdb: bytes, data_out: bytes) -> None:
    initiator, medium = with_log(write_cache=False)
    initiator.good(cdb, data_out)
    assert medium.calls[-1] == ("flush",)
    assert len(medium.calls) == 2


@pytest.mark.parametrize("row", [SynchronizeCache10, SynchronizeCache16])
def test_synchronize_cache_flushes(row: type[SynchronizeCache10]) -> None:
    initiator, medium = with_log()
    for values in ({}, {"lba": 3}, {"lba": BLOCKS}, {"lba": 1, "number_of_logical_blocks": BLOCKS - 1}, {"immed": 1}):
        initiator.good(row.build(**values))
    assert medium.calls == [("flush",)] * 5


@pytest.mark.parametrize("row", [SynchronizeCache10, SynchronizeCache16])
@pytest.mark.parametrize(("lba", "count"), [(BLOCKS + 1, 0), (BLOCKS, 1), (1, BLOCKS), (0xFFFF_FFFF, 0xFFFF)])
def test_synchronize_cache_checks_its_range(row: type[SynchronizeCache10], lba: int, count: int) -> None:
    initiator, medium = with_log()
    sense = initiator.check(row.build(lba=lba, number_of_logical_blocks=count))
    assert (sense.code, sense.information) == (LBA_OUT_OF_RANGE, max(lba, BLOCKS))
    assert medium.calls == []


# ---- capacity and state --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("length", "size", "ten", "sixteen"),
    [
        (MIB, 512, "000007ff 00000200", "00000000000007ff 00000200 00 03 c0 00"),
        (MIB, 4096, "000000ff 00001000", "00000000000000ff 00001000 00 00 c0 00"),
        (MIB, 1024, "000003ff 00000400", "00000000000003ff 00000400 00 02 c0 00"),
        (MIB + 513, 512, "00000800 00000200", "0000000000000800 00000200 00 03 c0 00"),  # whole blocks only
        (512 << 32, 512, "ffffffff 00000200", "00000000ffffffff 00000200 00 03 c0 00"),
        (513 << 32, 512, "ffffffff 00000200", "0000000100 7fffff 00000200 00 03 c0 00"),
        (1 << 62, 4096, "ffffffff 00001000", "0003ffffffffffff 00001000 00 00 c0 00"),
    ],
)
def test_capacity_is_told_in_blocks(length: int, size: int, ten: str, sixteen: str) -> None:
    initiator = Initiator(make_unit(medium=HugeMedium(length), logical_block_length=size))
    assert initiator.good(ReadCapacity10.build()) == bytes.fromhex(ten)
    data = initiator.good(ReadCapacity16.build(allocation_length=32))
    assert data == bytes.fromhex(sixteen).ljust(32, b"\0")


def test_a_thick_unit_is_not_provisioned_thinly() -> None:
    initiator = Initiator(make_unit(thin=False, physical_block_exponent=0))
    assert initiator.good(ReadCapacity16.build(allocation_length=32))[12:16] == bytes(4)


@pytest.mark.parametrize("cdb", ["25 00 00000001 0000 00 00", "25 00 00000000 0000 01 00"])
def test_the_obsolete_fields_of_read_capacity_must_be_zero(cdb: str) -> None:
    assert Initiator().check(cdb).code == INVALID_FIELD_IN_CDB


def test_a_stopped_unit_still_tells_its_capacity_and_can_be_started() -> None:
    initiator, medium = with_log()
    initiator.good(StartStopUnit.build(start=0))
    assert medium.calls == [("flush",)]
    initiator.good(ReadCapacity10.build())
    assert initiator.check(Read10.build()).code == NOT_STARTED
    initiator.good(StartStopUnit.build(start=1))
    initiator.good(Read10.build())
    initiator.good("00")


def test_no_flush_stops_without_flushing() -> None:
    initiator, medium = with_log()
    initiator.good(StartStopUnit.build(start=0, no_flush=1, immed=1))
    assert medium.calls == []


def test_a_stop_that_cannot_flush_leaves_the_unit_running() -> None:
    initiator, medium = with_log()
    medium.errors["flush"] = errno.EIO
    assert initiator.check(StartStopUnit.build(start=0)).code == (3, 0x0C, 0)
    initiator.good("00")


@pytest.mark.parametrize(("cdb", "pointer"), [("1b 00 00 00 02 00", (4, 1)), ("1b 00 00 00 30 00", (4, 7))])
def test_ejecting_and_power_conditions_are_refused(cdb: str, pointer: tuple[int, int]) -> None:
    assert Initiator().refused(cdb) == pointer


# ---- VERIFY --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", VERIFIES)
def test_verify_without_bytchk_reads_the_medium(row: type[Verify10]) -> None:
    initiator, medium = with_log()
    initiator.good(row.build(lba=2, verification_length=4))
    assert medium.calls == [("read", 1024, 2048)]
    medium.errors["read"] = errno.EIO
    assert initiator.check(row.build(lba=2, verification_length=4)).code == (3, 0x11, 0)


@pytest.mark.parametrize("row", VERIFIES)
@pytest.mark.parametrize("bytchk", [0b00, 0b01, 0b11])
def test_verify_checks_its_range(row: type[Verify10], bytchk: int) -> None:
    cdb = row.build(lba=BLOCKS - 1, verification_length=2, bytchk=bytchk)
    assert Initiator().check(cdb, bytes(1024)).code == LBA_OUT_OF_RANGE


@pytest.mark.parametrize("row", VERIFIES)
def test_the_reserved_bytchk_value_is_refused(row: type[Verify10]) -> None:
    assert Initiator().refused(row.build(bytchk=0b10)) == (1, 2)


@pytest.mark.parametrize("row", VERIFIES)
@pytest.mark.parametrize("at", [0, 1, 511, 512, 2047])
def test_verify_compares_every_byte_with_data_out(row: type[Verify10], at: int) -> None:
    initiator = patterned()
    cdb = row.build(lba=3, verification_length=4, bytchk=0b01)
    expected = bytearray(initiator.data[3 * 512 : 7 * 512])
    response = initiator.send(cdb, bytes(expected))
    assert (response.status, response.data_out_used) == (Status.GOOD, 2048)
    expected[at] ^= 0x10
    sense = initiator.check(cdb, bytes(expected))
    assert (sense.code, sense.information) == (MISCOMPARE, at)


def test_a_long_verify_tells_the_offset_from_the_start_of_data_out() -> None:
    initiator = Initiator(make_unit(3 * MIB))
    data = bytearray(5 * MIB // 2)
    data[2 * MIB + 7] = 1
    cdb = Verify10.build(lba=1, verification_length=len(data) // 512, bytchk=1)
    assert initiator.check(cdb, bytes(data)).information == 2 * MIB + 7


@pytest.mark.parametrize("row", VERIFIES)
def test_verify_compares_each_block_with_the_one_block_of_data_out(row: type[Verify10]) -> None:
    initiator = Initiator()
    block = bytes(range(256)) * 2
    initiator.data[5 * 512 : 9 * 512] = block * 4
    cdb = row.build(lba=5, verification_length=4, bytchk=0b11)
    response = initiator.send(cdb, block)
    assert (response.status, response.data_out_used) == (Status.GOOD, 512)
    initiator.data[8 * 512 + 100] ^= 1
    sense = initiator.check(cdb, block)
    assert (sense.code, sense.information) == (MISCOMPARE, 100)


@pytest.mark.parametrize("bytchk", [0b01, 0b11])
def test_verify_with_data_out_too_short_is_refused(bytchk: int) -> None:
    cdb = Verify10.build(verification_length=1, bytchk=bytchk)
    assert Initiator().check(cdb, bytes(511)).code == SHORT_DATA_OUT


@pytest.mark.parametrize("bytchk", [0b00, 0b01, 0b11])
def test_verifying_no_blocks_needs_no_data(bytchk: int) -> None:
    initiator, medium = with_log()
    initiator.good(Verify16.build(verification_length=0, bytchk=bytchk))
    assert medium.calls == []


def test_only_a_verify_with_data_out_is_held_to_the_maximum_transfer_length() -> None:
    initiator = Initiator(make_unit(medium=HugeMedium(1 << 30)))
    count = MAXIMUM_TRANSFER_BYTES // 512 + 1
    assert initiator.refused(Verify16.build(verification_length=count, bytchk=1)) == (10, 7)
    initiator.good(Verify16.build(verification_length=count))
    initiator.good(Verify16.build(verification_length=count, bytchk=3), bytes(512))


@given(st.binary(min_size=1, max_size=300), st.data())
def test_the_first_difference_is_found(one: bytes, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(one) - 1))
    tail = data.draw(st.binary(min_size=len(one) - at - 1, max_size=len(one) - at - 1))
    other = one[:at] + bytes([one[at] ^ 1]) + tail
    assert first_difference(one, other) == at


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


# ---- all of them ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", [*READS, *WRITES, *VERIFIES, WriteSame10, WriteSame16])
@pytest.mark.parametrize("size", [512, 1024, 2048, 4096])
def test_the_end_of_the_medium_is_reached_with_every_block_length(row: type[Cdb], size: int) -> None:
    initiator = Initiator(make_unit(logical_block_length=size))
    last = MIB // size - 1
    length = next(name for name in row.fields if "length" in name or "number_of" in name)
    initiator.good(row.build(**{"lba": last, length: 1}), bytes(size))
    assert initiator.check(row.build(**{"lba": last + 1, length: 1}), bytes(size)).code == LBA_OUT_OF_RANGE
