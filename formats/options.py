"""Option: one of the choices that a format offers when an image is made, named and written as `qemu-img create -o` has
it. A value may come as text (“64k”, “on”) or as what it means (65536, True); whatever else it is, is refused by name.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from formats.errors import InvalidArgument

_SIZE = re.compile(r"(\d{1,18})([kKmMgG]?)")
_SWITCH = {"on": True, "off": False, "true": True, "false": False}


class Option(NamedTuple):
    """`help`: one line for a person. `parse` raises ValueError with what would be right."""

    name: str
    help: str
    parse: Callable[[object], object]


def size(value: object) -> int:
    """Bytes; k, M and G are powers of 1024."""
    if isinstance(value, str) and (match := _SIZE.fullmatch(value)):
        return int(match[1]) << 10 * " kmg".index(match[2].lower() or " ")
    return whole(value)


def whole(value: object) -> int:
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 19:
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    raise ValueError("a whole number")


def switch(value: object) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value in _SWITCH:
        return _SWITCH[value]
    raise ValueError("on or off")


def word(value: object) -> str:
    """Any text that can be a name."""
    if isinstance(value, str) and value and "\0" not in value:
        return value
    raise ValueError("a name")


def one_of(meanings: Mapping[str, object]) -> Callable[[object], object]:
    """A choice of words, each with what it means."""

    def parse(value: object) -> object:
        if isinstance(value, str) and value in meanings:
            return meanings[value]
        raise ValueError(f"one of {', '.join(meanings)}")

    return parse


def parsed(format: str, options: Sequence[Option], given: Mapping[str, object]) -> dict[str, object]:
    """What was given, by name, as what it means. Errors: InvalidArgument."""
    known = {option.name: option for option in options}
    meant: dict[str, object] = {}
    for name, value in given.items():
        if name not in known:
            raise InvalidArgument(f"{format} images have no option {name!r}; there are {', '.join(known) or 'none'}")
        try:
            meant[name] = known[name].parse(value)
        except ValueError as error:
            raise InvalidArgument(f"{name} is {value!r}; it must be {error}") from None
    return meant
