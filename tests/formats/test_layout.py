"""Structures are made, shown, compared and packed by the fields that were declared, and by nothing else."""

import dataclasses

import pytest

from formats.layout import Structure, big_endian, octets, u16, u32


@big_endian
class Start(Structure):
    """Eight bytes."""

    kind: int = u16()
    length: int = u32()
    tail: bytes = octets(2)


def test_the_bytes_are_the_fields_in_order_without_gaps_the_most_significant_first() -> None:
    assert Start.SIZE == 8
    assert Start(1, 2, b"x").pack() == bytes.fromhex("0001 00000002 7800")
    assert Start.unpack(b"?" + bytes.fromhex("0001 00000002 7879"), 1) == Start(1, 2, b"xy")


def test_it_is_a_dataclass_for_those_who_ask() -> None:
    start = Start(kind=1, length=2, tail=b"")
    assert repr(start) == "Start(kind=1, length=2, tail=b'')"
    assert dataclasses.replace(start, length=9) == Start(1, 9, b"")
    assert [field.name for field in dataclasses.fields(Start)] == ["kind", "length", "tail"]
    assert start != Start(1, 3, b"")
    assert start != (1, 2, b"")


@pytest.mark.parametrize(
    ("values", "named"), [((1, 2), {}), ((1, 2, b"", 4), {}), ((1, 2), {"kind": 1}), ((1, 2), {"x": 1})]
)
def test_what_does_not_fit_the_fields_is_no_structure(values: tuple[int, ...], named: dict[str, int]) -> None:
    with pytest.raises(TypeError, match="Start takes one value for each of kind, length, tail"):
        Start(*values, **named)  # type: ignore[arg-type]
