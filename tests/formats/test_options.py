"""Options of new images: each in every form that it may be written, and refused by name."""

import pytest

from formats.errors import InvalidArgument
from formats.options import Option, one_of, parsed, size, switch, whole, word

OPTIONS = (
    Option("size", "bytes", size),
    Option("bits", "a number", whole),
    Option("lazy", "a switch", switch),
    Option("name", "a name", word),
    Option("kind", "a choice", one_of({"old": 2, "new": 3})),
)


@pytest.mark.parametrize(
    ("name", "given", "meant"),
    [
        ("size", "65536", 65536),
        ("size", "64k", 65536),
        ("size", "2M", 2 << 20),
        ("size", 512, 512),
        ("bits", "16", 16),
        ("bits", 16, 16),
        ("lazy", "on", True),
        ("lazy", "off", False),
        ("lazy", False, False),
        ("name", "a/b.raw", "a/b.raw"),
        ("kind", "old", 2),
    ],
)
def test_a_value_is_taken_as_text_and_as_what_it_means(name: str, given: object, meant: object) -> None:
    value = parsed("vhs", OPTIONS, {name: given})[name]
    assert value == meant
    assert type(value) is type(meant)


@pytest.mark.parametrize(
    ("name", "given", "right"),
    [
        ("size", "64x", "a whole number"),
        ("size", -1, "a whole number"),
        ("size", True, "a whole number"),
        ("size", "9" * 30, "a whole number"),
        ("bits", "1.5", "a whole number"),
        ("bits", "٣", "a whole number"),
        ("lazy", "maybe", "on or off"),
        ("lazy", 1, "on or off"),
        ("name", "", "a name"),
        ("name", "a\0b", "a name"),
        ("name", 7, "a name"),
        ("kind", "newer", "one of old, new"),
    ],
)
def test_another_value_is_refused_with_what_would_be_right(name: str, given: object, right: str) -> None:
    with pytest.raises(InvalidArgument, match=f"^{name} is .*; it must be {right}$"):
        parsed("vhs", OPTIONS, {name: given})


def test_an_unknown_option_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InvalidArgument, match="vhs images have no option 'siez'; there are size, bits, lazy, name, ki"):
        parsed("vhs", OPTIONS, {"siez": 1})
    with pytest.raises(InvalidArgument, match="raw images have no option 'siez'; there are none"):
        parsed("raw", (), {"siez": 1})
