from random import Random

import pytest

from vstore.fuzz.sense_data import ParsedSense, parse_sense
from vstore.scsi.cdb import Access, Cdb
from vstore.scsi.commands import COMMANDS, Inquiry, Read10, Read16, ReadCapacity16
from vstore.scsi.field import HINT, IGNORED, ZERO, bit, bits, u8, u16
from vstore.scsi.sense import CheckCondition


class Sample(Cdb, name="SAMPLE", opcode=0xC1, length=10, service_action=0x05):
    protect = bits(2, 7, 5, ZERO)
    hint = bit(2, 4, HINT)
    flag = bit(2, 3)
    group = bits(3, 4, 0, IGNORED)
    number = u16(4)
    code = u8(6)


def refusal(row: type[Cdb], cdb: str) -> ParsedSense:
    with pytest.raises(CheckCondition) as caught:
        row.decode(bytes.fromhex(cdb))
    return parse_sense(caught.value.sense.encode(descriptor=False))


def test_a_cdb_is_decoded_by_its_row() -> None:
    cdb = Sample.decode(bytes.fromhex("c1 05 18 1f abcd 7f 000000"))
    assert (cdb.hint, cdb.flag, cdb.group, cdb.number, cdb.code) == (1, 1, 0x1F, 0xABCD, 0x7F)


def test_padding_after_the_cdb_is_not_looked_at() -> None:
    assert Sample.decode(bytes.fromhex("c105") + bytes(8) + b"\xff" * 22).number == 0


def test_a_field_that_must_be_zero_is_pointed_at() -> None:
    sense = refusal(Sample, "c1 05 20 00 0000 00 000000")
    assert (sense.code, sense.in_cdb, sense.byte, sense.bit) == ((5, 0x24, 0), True, 2, 7)


@pytest.mark.parametrize(
    ("cdb", "byte", "bit_"),
    [
        ("c1 25 00 00 0000 00 000000", 1, 5),  # beside the service action
        ("c1 05 02 00 0000 00 000000", 2, 1),
        ("c1 05 00 80 0000 00 000000", 3, 7),
        ("c1 05 00 00 0000 00 000004", 9, 2),  # NACA
        ("c1 05 00 00 0000 00 010004", 7, 0),  # the leftmost of several
    ],
)
def test_a_reserved_bit_is_pointed_at(cdb: str, byte: int, bit_: int) -> None:
    sense = refusal(Sample, cdb)
    assert (sense.in_cdb, sense.byte, sense.bit) == (True, byte, bit_)


def test_a_cdb_that_ends_too_soon_is_pointed_at_where_it_ends() -> None:
    sense = refusal(Sample, "c1 05 00 00 00")
    assert (sense.code, sense.byte, sense.bit) == ((5, 0x24, 0), 5, 7)


def test_usage_data_has_a_one_for_every_evaluated_or_accepted_bit() -> None:
    assert Sample.usage_data().hex(" ") == "c1 05 18 00 ff ff ff 00 00 00"


def test_a_command_can_be_built_from_its_fields() -> None:
    assert Sample.build(flag=1, number=2).hex(" ") == "c1 05 08 00 00 02 00 00 00 00"
    assert Read10.build(lba=1, transfer_length=8).hex(" ") == "28 00 00 00 00 01 00 00 08 00"


def test_an_invalid_field_is_named_by_the_field_or_by_its_name() -> None:
    cdb = Read16.decode(Read16.build(transfer_length=1))
    by_name = cdb.invalid_field("transfer_length").sense
    assert by_name == cdb.invalid(Read16.transfer_length).sense
    assert by_name.pointer is not None
    assert (by_name.pointer.position.byte, by_name.pointer.in_cdb) == (10, True)


@pytest.mark.parametrize("row", COMMANDS, ids=lambda row: row.name)
def test_random_cdbs_pass_the_decoder(row: type[Cdb]) -> None:
    rng = Random(row.opcode)
    seen = set()
    for _ in range(50):
        cdb = row.random(rng)
        assert len(cdb) == row.length
        seen.add(row.decode(cdb).value)
    nothing_to_say = not row.accepted & ~0xE0_0000_0000
    assert len(seen) > 5 or nothing_to_say or len(seen) == 1 << row.accepted.bit_count()


def test_random_cdbs_take_the_values_they_are_given() -> None:
    cdb = Read10.decode(Read10.random(Random(1), lba=1 << 40 | 7, nothing_of_this_name=1))
    assert cdb.lba == 7  # cut to the field


def test_a_row_says_what_the_command_is() -> None:
    assert (Read10.name, Read10.opcode, Read10.service_action, Read10.access) == ("READ (10)", 0x28, None, Access.READ)
    assert ReadCapacity16.service_action == 0x10
    assert Inquiry.passes_attention
    assert not Read10.passes_attention
