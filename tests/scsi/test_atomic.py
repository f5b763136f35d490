import errno

import pytest

from tests.scsi.disks import patterned, with_log
from tests.scsi.initiator import LBA_OUT_OF_RANGE, MIB, SHORT_DATA_OUT, WRITE_PROTECTED, Initiator, make_unit
from vstore.scsi.commands import CompareAndWrite, OrWrite16
from vstore.scsi.direct_access import MAXIMUM_TRANSFER_BYTES
from vstore.scsi.medium import MemoryMedium
from vstore.scsi.task import Status

BLOCKS = MIB // 512
MISCOMPARE = (0xE, 0x1D, 0x00)


# ---- COMPARE AND WRITE ---------------------------------------------------------------------------------


def test_compare_and_write_is_laid_out_as_sbc_3_prints_it() -> None:
    cdb = CompareAndWrite.build(lba=0x0102030405060708, number_of_logical_blocks=0x42, fua=1, dpo=1, group_number=0x1F)
    assert cdb.hex(" ") == "89 18 01 02 03 04 05 06 07 08 00 00 00 42 1f 00"


@pytest.mark.parametrize("size", [512, 4096])
@pytest.mark.parametrize("count", [1, 2, 7])
def test_blocks_that_are_equal_are_written(size: int, count: int) -> None:
    initiator = patterned(logical_block_length=size)
    before = bytes(initiator.data)
    span = slice(3 * size, (3 + count) * size)
    new = b"\xa5" * count * size
    response = initiator.send(CompareAndWrite.build(lba=3, number_of_logical_blocks=count), before[span] + new)
    assert (response.status, response.data_out_used) == (Status.GOOD, 2 * count * size)
    assert initiator.data == before[: span.start] + new + before[span.stop :]


@pytest.mark.parametrize("at", [0, 1, 511, 512, 1023, 1535])
def test_one_other_byte_writes_nothing_and_is_pointed_at(at: int) -> None:
    initiator = patterned()
    before = bytes(initiator.data)
    expected = bytearray(before[5 * 512 : 8 * 512])
    expected[at] ^= 0x80
    sense = initiator.check(CompareAndWrite.build(lba=5, number_of_logical_blocks=3), bytes(expected) + bytes(1536))
    assert (sense.code, sense.information) == (MISCOMPARE, at)
    assert initiator.data == before


def test_the_most_blocks_are_those_that_the_block_limits_tell() -> None:
    initiator = patterned()
    limits = initiator.good(bytes([0x12, 1, 0xB0, 0, 64, 0]))
    assert limits[5] == 255
    old = bytes(initiator.data[: 255 * 512])
    initiator.good(CompareAndWrite.build(number_of_logical_blocks=255), old + b"\1" * len(old))
    assert initiator.data[: 255 * 512] == b"\1" * len(old)


def test_comparing_no_blocks_needs_no_data() -> None:
    initiator, medium = with_log()
    assert initiator.send(CompareAndWrite.build(lba=BLOCKS)).data_out_used == 0
    assert medium.calls == []


@pytest.mark.parametrize(
    ("lba", "count", "told"), [(BLOCKS - 1, 2, BLOCKS), (BLOCKS, 1, BLOCKS), ((1 << 64) - 1, 255, None)]
)
def test_compare_and_write_checks_its_range(lba: int, count: int, told: int | None) -> None:
    cdb = CompareAndWrite.build(lba=lba, number_of_logical_blocks=count)
    sense = Initiator().check(cdb, bytes(2 * count * 512))
    assert (sense.code, sense.information) == (LBA_OUT_OF_RANGE, told)


def test_half_of_the_data_is_not_enough() -> None:
    initiator, medium = with_log()
    for length in (0, 512, 1023):
        assert initiator.check(CompareAndWrite.build(number_of_logical_blocks=1), bytes(length)).code == SHORT_DATA_OUT
    assert medium.calls == []


@pytest.mark.parametrize(("bits", "pointer"), [(0x20, (1, 7)), (0xE0, (1, 7)), (0x04, (1, 2)), (0x01, (1, 0))])
def test_compare_and_write_with_protection_or_reserved_bits_is_refused(bits: int, pointer: tuple[int, int]) -> None:
    cdb = bytearray(CompareAndWrite.build(number_of_logical_blocks=1))
    cdb[1] |= bits
    assert Initiator().refused(bytes(cdb), bytes(1024)) == pointer
    for byte in (10, 11, 12):
        cdb = bytearray(CompareAndWrite.build(number_of_logical_blocks=1))
        cdb[byte] = 0x10
        assert Initiator().refused(bytes(cdb), bytes(1024)) == (byte, 4)


@pytest.mark.parametrize("row", [CompareAndWrite, OrWrite16])
def test_a_read_only_unit_is_write_protected(row: type[CompareAndWrite]) -> None:
    initiator = Initiator(make_unit(read_only=True))
    assert initiator.check(row.build(), bytes(1024)).code == WRITE_PROTECTED


@pytest.mark.parametrize("fua", [0, 1])
@pytest.mark.parametrize("write_cache", [False, True])
def test_what_was_written_is_durable_where_asked(fua: int, write_cache: bool) -> None:
    initiator, medium = with_log(write_cache=write_cache)
    initiator.good(CompareAndWrite.build(lba=1, number_of_logical_blocks=1, fua=fua), bytes(512) + b"\1" * 512)
    flushes = [("flush",)] if fua or not write_cache else []
    assert medium.calls == [("read", 512, 512), ("write", 512, 512), *flushes]


@pytest.mark.parametrize(("call", "told"), [("read", (3, 0x11, 0)), ("write", (3, 0x0C, 0))])
@pytest.mark.parametrize(
    "cdb", [CompareAndWrite.build(number_of_logical_blocks=1), OrWrite16.build(transfer_length=1)], ids=["CAW", "OR"]
)
def test_an_error_of_the_medium_is_told_as_that_of_the_step_that_met_it(
    cdb: bytes, call: str, told: tuple[int, int, int]
) -> None:
    initiator, medium = with_log()
    medium.errors[call] = errno.EIO
    assert initiator.check(cdb, bytes(1024)).code == told
    medium.errors[call] = errno.ENOSPC
    assert initiator.check(cdb, bytes(1024)).code == (7, 0x27, 7)
    medium.errors[call] = errno.ENOMEM
    assert initiator.send(cdb, bytes(1024)).status is Status.TASK_SET_FULL


# ---- ORWRITE -------------------------------------------------------------------------------------------


def test_orwrite_is_laid_out_as_sbc_3_prints_it() -> None:
    cdb = OrWrite16.build(lba=0x0102030405060708, transfer_length=0x11223344, fua=1, dpo=1, group_number=0x1F)
    assert cdb.hex(" ") == "8b 18 01 02 03 04 05 06 07 08 11 22 33 44 1f 00"


@pytest.mark.parametrize("size", [512, 4096])
def test_orwrite_sets_the_bits_of_data_out_and_no_others(size: int) -> None:
    initiator = patterned(logical_block_length=size)
    before = bytes(initiator.data)
    mask = bytes(range(256)) * (3 * size // 256)
    response = initiator.send(OrWrite16.build(lba=2, transfer_length=3), mask)
    assert (response.status, response.data_out_used) == (Status.GOOD, 3 * size)
    changed = bytes(old | new for old, new in zip(before[2 * size : 5 * size], mask, strict=True))
    assert initiator.data == before[: 2 * size] + changed + before[5 * size :]


def test_a_long_orwrite_goes_in_pieces() -> None:
    initiator = Initiator(make_unit(medium=MemoryMedium(3 * MIB)))
    initiator.data[:] = b"\x11" * (3 * MIB)
    initiator.good(OrWrite16.build(lba=1, transfer_length=5 * MIB // 2 // 512), b"\x22" * (5 * MIB // 2))
    assert initiator.data == b"\x11" * 512 + b"\x33" * (5 * MIB // 2) + b"\x11" * (MIB // 2 - 512)


def test_orwrite_of_no_blocks_writes_nothing() -> None:
    initiator, medium = with_log()
    initiator.good(OrWrite16.build(lba=BLOCKS))
    assert medium.calls == []


def test_orwrite_checks_range_length_and_data() -> None:
    initiator = Initiator()
    assert initiator.check(OrWrite16.build(lba=BLOCKS, transfer_length=1), bytes(512)).code == LBA_OUT_OF_RANGE
    assert initiator.refused(OrWrite16.build(transfer_length=MAXIMUM_TRANSFER_BYTES // 512 + 1)) == (10, 7)
    assert initiator.check(OrWrite16.build(transfer_length=2), bytes(1023)).code == SHORT_DATA_OUT
    assert initiator.refused(bytes([0x8B, 0x20]) + bytes(14)) == (1, 7)
    assert initiator.refused(bytes([0x8B, 0x04]) + bytes(14)) == (1, 2)


def test_orwrite_with_fua_is_durable() -> None:
    initiator, medium = with_log()
    initiator.good(OrWrite16.build(transfer_length=1, fua=1), b"\1" * 512)
    assert medium.calls == [("read", 0, 512), ("write", 0, 512), ("flush",)]
