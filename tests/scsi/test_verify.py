import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.scsi.disks import HugeMedium, patterned, with_log
from tests.scsi.initiator import (
    LBA_OUT_OF_RANGE,
    MIB,
    SHORT_DATA_OUT,
    Initiator,
    make_unit,
)
from vstore.scsi.commands import (
    Verify10,
    Verify12,
    Verify16,
)
from vstore.scsi.direct_access import MAXIMUM_TRANSFER_BYTES
from vstore.scsi.task import Status
from vstore.scsi.verify import first_difference

VERIFIES = [Verify10, Verify12, Verify16]
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
