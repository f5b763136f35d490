import pytest

from vstore.scsi.field import (
    CHANGEABLE,
    EVALUATED,
    IGNORED,
    ZERO,
    Field,
    Layout,
    Position,
    ascii_field,
    bit,
    bits,
    text,
    u8,
    u16,
    u24,
    u32,
    u64,
)


class Sample(Layout, length=12):
    high = bit(0, 7)
    middle = bits(0, 6, 4, ZERO)
    odd = Field(1, 4, 21, IGNORED)
    word = u16(4)
    triple = u24(6, CHANGEABLE)
    name = text(9, 2)
    last = u8(11)


def test_fields_are_read_from_where_the_standard_prints_them() -> None:
    sample = Sample.parse(bytes.fromhex("d5 ff 12 34 a1b2 010203 4142 7f"))
    assert (sample.high, sample.middle, sample.odd) == (1, 0b101, 0x1F1234)
    assert (sample.word, sample.triple, sample.name, sample.last) == (0xA1B2, 0x010203, 0x4142, 0x7F)


def test_encoding_is_the_reverse_of_parsing() -> None:
    sample = Sample.of(high=1, middle=5, odd=0x1F1234, word=0xA1B2, triple=0x10203, name=ascii_field("A", 2), last=1)
    assert sample.encode() == bytes.fromhex("d0 1f 12 34 a1b2 010203 4120 01")
    assert Sample.parse(sample.encode()) == sample


def test_bytes_after_the_structure_are_not_read() -> None:
    assert Sample.parse(bytes(12) + b"\xff") == Sample()


def test_a_value_that_does_not_fit_is_refused_with_the_range() -> None:
    with pytest.raises(ValueError, match=r"middle is 8, and holds 0\.\.7"):
        Sample.of(middle=8)
    with pytest.raises(ValueError, match="word is -1"):
        Sample.of(word=-1)


def test_an_unknown_field_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        Sample.of(nothing=1)


def test_a_structure_that_is_cut_off_is_a_programming_error() -> None:
    with pytest.raises(AssertionError, match="Sample is 12 bytes, not 11"):
        Sample.parse(bytes(11))


def test_overlapping_fields_cannot_be_declared() -> None:
    with pytest.raises(TypeError, match=r"Wrong\.second overlaps"):

        class Wrong(Layout, length=4):
            first = u16(0)
            second = u8(1)


def test_a_field_past_the_end_cannot_be_declared() -> None:
    with pytest.raises(TypeError, match="lba ends past the last byte of a structure of 8 bytes"):

        class Wrong(Layout, length=8):
            lba = u64(1)


def test_masks_collect_fields_by_use() -> None:
    assert Sample.mask_of(ZERO) == 0x70 << 88
    assert Sample.mask_of(CHANGEABLE).to_bytes(12).hex() == "000000000000ffffff000000"
    assert Sample.mask_of(ZERO, IGNORED).to_bytes(12).hex() == "701fffff0000000000000000"


@pytest.mark.parametrize(
    ("bits_set", "position"),
    [
        ("50 00 00 00 0000 000000 0000 00", Position(0, 6)),  # inside a field: the field's leftmost bit
        ("00 01 00 00 0000 000000 0000 00", Position(1, 4)),
        ("00 00 00 00 00ff 000000 0000 00", Position(4, 7)),
        ("00 40 00 01 0000 000000 0000 00", Position(1, 6)),  # of no field: the bit itself
        ("0a 00 00 01 0000 000000 0000 00", Position(0, 3)),
    ],
)
def test_the_position_is_that_of_the_leftmost_field_in_error(bits_set: str, position: Position) -> None:
    assert Sample.position_of(int.from_bytes(bytes.fromhex(bits_set))) == position


def test_a_field_knows_how_many_bytes_it_touches() -> None:
    assert [member.size for member in Sample.fields.values()] == [1, 1, 3, 2, 3, 2, 1]


def test_read_from_the_class_a_field_is_itself() -> None:
    assert Sample.word.position == Position(4, 7)
    assert Sample.word.use is EVALUATED


def test_layouts_compare_by_type_and_value() -> None:
    class Other(Layout, length=12):
        word = u32(4)

    assert Sample(1) == Sample(1)
    assert Sample(1) != Sample(2)
    assert Sample(1) != Other(1)
    assert len({Sample(1), Sample(1), Other(1)}) == 2


def test_a_layout_prints_its_fields() -> None:
    assert repr(Sample.of(word=16, last=1)) == (
        "Sample(high=0x0, middle=0x0, odd=0x0, word=0x10, triple=0x0, name=0x0, last=0x1)"
    )


def test_text_is_padded_with_spaces_and_cut() -> None:
    assert ascii_field("AB", 4) == int.from_bytes(b"AB  ")
    assert ascii_field("ABCDE", 4) == int.from_bytes(b"ABCD")


def test_a_structure_that_extends_another_has_its_fields_too_in_the_order_of_the_bytes() -> None:
    class Extended(Sample, length=12):
        middle = bits(0, 5, 4)  # in place of the other's

    assert list(Extended.fields) == list(Sample.fields)
    extended = Extended.of(high=1, middle=3, last=7)
    assert extended.encode() == bytes.fromhex("b0 00 00 00 0000 000000 0000 07")
    assert Sample.fields["middle"].width == 3
