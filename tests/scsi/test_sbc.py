import errno

import pytest

from tests.scsi.disks import HugeMedium, patterned, with_log
from tests.scsi.faulty import FaultyMedium
from tests.scsi.initiator import (
    INVALID_FIELD_IN_CDB,
    LBA_OUT_OF_RANGE,
    MIB,
    NOT_STARTED,
    SHORT_DATA_OUT,
    Initiator,
    make_unit,
)
from vstore.fuzz.sense_data import parse_sense
from vstore.scsi.cdb import Cdb
from vstore.scsi.commands import (
    PreFetch10,
    PreFetch16,
    Read6,
    Read10,
    Read12,
    Read16,
    ReadCapacity10,
    ReadCapacity16,
    ReadDefectData10,
    ReadDefectData12,
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
from vstore.scsi.direct_access import MAXIMUM_PREFETCH_BYTES, MAXIMUM_TRANSFER_BYTES
from vstore.scsi.task import Status

READS = [Read6, Read10, Read12, Read16]
WRITES = [Write6, Write10, Write12, Write16]
VERIFIES = [Verify10, Verify12, Verify16]
BLOCKS = MIB // 512


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


def test_a_write_that_cannot_ask_for_it_waits_for_no_flush() -> None:
    initiator, medium = with_log()
    initiator.good(Write6.build(transfer_length=1), bytes(512))
    assert medium.calls == [("write", 0, 512)]


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


# ---- PRE-FETCH -----------------------------------------------------------------------------------------

PRE_FETCHES = [PreFetch10, PreFetch16]


@pytest.mark.parametrize(
    ("row", "printed"),
    [(PreFetch10, "34 02 01 02 03 04 1f 00 09 00"), (PreFetch16, "90 02 00 00 00 00 01 02 03 04 00 00 00 09 1f 00")],
)
def test_pre_fetch_is_laid_out_as_sbc_3_prints_it(row: type[PreFetch10], printed: str) -> None:
    assert row.build(lba=0x01020304, prefetch_length=9, immed=1, group_number=0x1F).hex(" ") == printed


@pytest.mark.parametrize("row", PRE_FETCHES)
@pytest.mark.parametrize("immed", [0, 1])
def test_blocks_that_fit_the_cache_meet_the_condition(row: type[PreFetch10], immed: int) -> None:
    initiator, medium = with_log()
    response = initiator.send(row.build(lba=2, prefetch_length=3, immed=immed))
    assert (response.status, response.sense, response.data_in) == (Status.CONDITION_MET, b"", b"")
    assert medium.calls == [("read", 1024, 1536)]


@pytest.mark.parametrize("row", PRE_FETCHES)
def test_a_prefetch_length_of_zero_reaches_to_the_last_block(row: type[PreFetch10]) -> None:
    initiator, medium = with_log()
    assert initiator.send(row.build(lba=BLOCKS - 3)).status is Status.CONDITION_MET
    assert initiator.send(row.build(lba=BLOCKS)).status is Status.CONDITION_MET
    assert medium.calls == [("read", MIB - 1536, 1536)]
    assert initiator.check(row.build(lba=BLOCKS + 1)).code == LBA_OUT_OF_RANGE


@pytest.mark.parametrize("immed", [0, 1])
def test_more_than_the_cache_is_to_hold_ends_with_good(immed: int) -> None:
    initiator = Initiator(make_unit(medium=HugeMedium(1 << 40)))
    most = MAXIMUM_PREFETCH_BYTES // 512
    assert initiator.send(PreFetch16.build(prefetch_length=most, immed=immed)).status is Status.CONDITION_MET
    assert initiator.send(PreFetch16.build(prefetch_length=most + 1, immed=immed)).status is Status.GOOD
    assert initiator.send(PreFetch16.build(immed=immed)).status is Status.GOOD


def test_a_medium_without_a_cache_has_room_for_nothing() -> None:
    initiator, medium = with_log()
    medium.caches = False
    assert initiator.send(PreFetch10.build(prefetch_length=1)).status is Status.GOOD
    assert medium.calls == []


@pytest.mark.parametrize("row", PRE_FETCHES)
def test_pre_fetch_checks_its_range_and_tells_errors(row: type[PreFetch10]) -> None:
    initiator, medium = with_log()
    sense = initiator.check(row.build(lba=BLOCKS - 1, prefetch_length=2))
    assert (sense.code, sense.information) == (LBA_OUT_OF_RANGE, BLOCKS)
    medium.errors["read"] = errno.EIO
    assert initiator.check(row.build(prefetch_length=1)).code == (3, 0x11, 0)
    assert initiator.send(row.build(prefetch_length=1, immed=1)).status is Status.CONDITION_MET
    told = initiator.check("00")
    assert (told.code, told.deferred) == ((3, 0x11, 0), True)
    assert initiator.refused(bytes([row.opcode, 0x10]).ljust(row.length, b"\0")) == (1, 4)


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


@pytest.mark.parametrize(
    ("cdb", "data"),
    [
        ("37 00 00 000000 00 0008 00", "00 00 0000"),
        ("37 00 1d 000000 00 0008 00", "00 1d 0000"),
        ("37 00 08 000000 00 0003 00", "00 08 00"),
        ("37 00 10 000000 00 0000 00", ""),
        ("b7 1d 00000000 00000010 00 00", "00 1d 0000 00000000"),
        ("b7 13 12345678 00000010 00 00", "00 13 0000 00000000"),
        ("b7 03 00000000 00000005 00 00", "00 03 0000 00"),
    ],
)
def test_the_lists_of_defects_are_valid_and_empty(cdb: str, data: str) -> None:
    assert Initiator().good(cdb) == bytes.fromhex(data)


@pytest.mark.parametrize("format", range(8))
@pytest.mark.parametrize("row", [ReadDefectData10, ReadDefectData12])
def test_defects_are_told_in_the_formats_of_the_standard(row: type[ReadDefectData10], format: int) -> None:
    cdb = row.build(defect_list_format=format, allocation_length=8)
    if format < 6:
        assert Initiator().good(cdb)[1] == format
    else:
        assert Initiator().refused(cdb) == (2 if row is ReadDefectData10 else 1, 2)


# ---- all of them ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", [*READS, *WRITES, *VERIFIES, WriteSame10, WriteSame16])
@pytest.mark.parametrize("size", [512, 1024, 2048, 4096])
def test_the_end_of_the_medium_is_reached_with_every_block_length(row: type[Cdb], size: int) -> None:
    initiator = Initiator(make_unit(logical_block_length=size))
    last = MIB // size - 1
    length = next(name for name in row.fields if "length" in name or "number_of" in name)
    initiator.good(row.build(**{"lba": last, length: 1}), bytes(size))
    assert initiator.check(row.build(**{"lba": last + 1, length: 1}), bytes(size)).code == LBA_OUT_OF_RANGE
