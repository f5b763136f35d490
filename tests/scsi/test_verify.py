import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.scsi.disks import HugeMedium, patterned, with_log
from tests.scsi.initiator import (
    LBA_OUT_OF_RANGE,
    MIB,
    SHORT_DATA_OUT,
    WRITE_PROTECTED,
    Initiator,
    make_unit,
)
from vstore.scsi.commands import (
    Verify10,
    Verify12,
    Verify16,
    WriteAndVerify10,
    WriteAndVerify12,
    WriteAndVerify16,
)
from vstore.scsi.direct_access import MAXIMUM_TRANSFER_BYTES
from vstore.scsi.medium import MemoryMedium
from vstore.scsi.task import Status
from vstore.scsi.verify import first_difference

VERIFIES = [Verify10, Verify12, Verify16]
WRITES = [WriteAndVerify10, WriteAndVerify12, WriteAndVerify16]
BLOCKS = MIB // 512
MISCOMPARE = (0xE, 0x1D, 0x00)


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


# ---- WRITE AND VERIFY ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "printed"),
    [
        (WriteAndVerify10, "2e 12 01 02 03 04 1f 00 09 00"),
        (WriteAndVerify12, "ae 12 01 02 03 04 00 00 00 09 1f 00"),
        (WriteAndVerify16, "8e 12 00 00 00 00 01 02 03 04 00 00 00 09 1f 00"),
    ],
)
def test_write_and_verify_is_laid_out_as_sbc_3_prints_it(row: type[WriteAndVerify10], printed: str) -> None:
    cdb = row.build(lba=0x01020304, transfer_length=9, bytchk=1, dpo=1, group_number=0x1F)
    assert cdb.hex(" ") == printed


@pytest.mark.parametrize("row", WRITES)
@pytest.mark.parametrize("bytchk", [0, 1])
def test_data_is_written_made_durable_and_read_again(row: type[WriteAndVerify10], bytchk: int) -> None:
    initiator, medium = with_log()
    data = bytes(range(256)) * 6
    response = initiator.send(row.build(lba=2, transfer_length=3, bytchk=bytchk), data)
    assert (response.status, response.data_out_used) == (Status.GOOD, 1536)
    assert initiator.data == bytes(1024) + data + bytes(MIB - 2560)
    assert medium.calls == [("write", 1024, 1536), ("flush",), ("read", 1024, 1536)]


class Forgetful(MemoryMedium):
    """Keeps all that is written but one bit."""

    async def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        await super().write(offset, data)
        self.data[700] ^= 1


@pytest.mark.parametrize("row", WRITES)
def test_a_medium_that_keeps_other_bytes_miscompares_only_with_bytchk(row: type[WriteAndVerify10]) -> None:
    initiator = Initiator(make_unit(medium=Forgetful(MIB)))
    sense = initiator.check(row.build(lba=1, transfer_length=2, bytchk=1), b"\5" * 1024)
    assert (sense.code, sense.information) == (MISCOMPARE, 700 - 512)
    initiator.good(row.build(lba=1, transfer_length=2), b"\5" * 1024)


def test_a_long_write_and_verify_tells_the_offset_from_the_start_of_data_out() -> None:
    class ForgetfulAtTheEnd(MemoryMedium):
        async def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
            await super().write(offset, data)
            self.data[2 * MIB] = 9

    initiator = Initiator(make_unit(medium=ForgetfulAtTheEnd(3 * MIB)))
    cdb = WriteAndVerify16.build(lba=1, transfer_length=5 * MIB // 2 // 512, bytchk=1)
    assert initiator.check(cdb, bytes(5 * MIB // 2)).information == 2 * MIB - 512


@pytest.mark.parametrize("row", WRITES)
@pytest.mark.parametrize("bytchk", [2, 3])
def test_write_and_verify_knows_two_values_of_bytchk(row: type[WriteAndVerify10], bytchk: int) -> None:
    assert Initiator().refused(row.build(transfer_length=1, bytchk=bytchk), bytes(512)) == (1, 2)


@pytest.mark.parametrize("row", WRITES)
def test_write_and_verify_checks_range_data_and_protection(row: type[WriteAndVerify10]) -> None:
    initiator, medium = with_log()
    assert initiator.check(row.build(lba=BLOCKS - 1, transfer_length=2), bytes(1024)).code == LBA_OUT_OF_RANGE
    assert initiator.check(row.build(transfer_length=2), bytes(1023)).code == SHORT_DATA_OUT
    cdb = bytearray(row.build(transfer_length=1))
    cdb[1] |= 0x40
    assert initiator.refused(bytes(cdb), bytes(512)) == (1, 7)
    initiator.good(row.build(lba=BLOCKS))
    assert medium.calls == []
    protected = Initiator(make_unit(read_only=True))
    assert protected.check(row.build(transfer_length=1), bytes(512)).code == WRITE_PROTECTED


@pytest.mark.parametrize("call", ["write", "flush", "read"])
def test_whatever_fails_of_a_write_and_verify_is_a_write_error(call: str) -> None:
    initiator, medium = with_log()
    medium.errors[call] = errno.EIO
    assert initiator.check(WriteAndVerify10.build(transfer_length=1), bytes(512)).code == (3, 0x0C, 0)


def test_write_and_verify_is_held_to_the_maximum_transfer_length() -> None:
    initiator = Initiator(make_unit(medium=HugeMedium(1 << 30)))
    assert initiator.refused(WriteAndVerify16.build(transfer_length=MAXIMUM_TRANSFER_BYTES // 512 + 1)) == (10, 7)
