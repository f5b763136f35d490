"""Draws a structure as the standards print it: a line for each byte, a box for each field, with its name.

cells of a byte    (name, leftmost bit, rightmost bit) ...    what belongs to no field is “reserved”
rows               bytes that a single field, or nothing, fills are drawn as one
"""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

_BIT = 9  # characters of a bit's column, with the line left of it
_RESERVED = "reserved"


class Cell(NamedTuple):
    name: str
    msb: int
    lsb: int

    @property
    def whole(self) -> bool:
        return (self.msb, self.lsb) == (7, 0)


class Place(NamedTuple):
    """A field of the drawing: `width` bits from bit `msb` of byte `byte` on."""

    name: str
    byte: int
    msb: int
    width: int


def drawing(places: Sequence[Place], length: int) -> Iterator[str]:
    """The lines of a Markdown block."""
    yield "```"
    yield f" byte |{'|'.join(str(bit).center(_BIT - 1) for bit in range(7, -1, -1))}|"
    yield _line("=")
    for label, cells in _rows(_cells(places, length)):
        yield from _row(label, cells)
        yield _line("-")
    yield "```"
    yield ""


def _line(mark: str) -> str:
    return mark * 6 + "+" + "+".join([mark * (_BIT - 1)] * 8) + "+"


def _cells(places: Sequence[Place], length: int) -> Mapping[int, list[Cell]]:
    """Of each byte, from the left."""
    names = [_RESERVED] * (length * 8)
    for place in places:
        first = place.byte * 8 + 7 - place.msb
        names[first : first + place.width] = [place.name] * place.width
    return {byte: _of_byte(names[byte * 8 : byte * 8 + 8]) for byte in range(length)}


def _of_byte(names: Sequence[str]) -> list[Cell]:
    cells: list[Cell] = []
    for at, name in enumerate(names):
        if cells and cells[-1].name == name:
            cells[-1] = cells[-1]._replace(lsb=7 - at)
        else:
            cells.append(Cell(name, 7 - at, 7 - at))
    return cells


def _rows(cells: Mapping[int, list[Cell]]) -> Iterator[tuple[str, list[Cell]]]:
    """The bytes of a row (“3”, “4-7”), and what it shows."""
    bytes_left = list(cells)
    while bytes_left:
        first = last = bytes_left.pop(0)
        while bytes_left and cells[first][0].whole and cells[bytes_left[0]] == cells[first]:
            last = bytes_left.pop(0)
        yield f"{first}-{last}" if last > first else f"{first}", cells[first]


def _row(label: str, cells: Sequence[Cell]) -> Iterator[str]:
    """As many lines as the longest name needs."""
    boxes = [(_wrapped(cell.name, width), width) for cell in cells for width in [(cell.msb - cell.lsb + 1) * _BIT - 1]]
    for at in range(max(len(lines) for lines, _ in boxes)):
        shown = "|".join((lines[at] if at < len(lines) else "").center(width) for lines, width in boxes)
        yield f"{label if not at else '':>5} |{shown}|"


def _wrapped(name: str, width: int) -> list[str]:
    return textwrap.wrap(name, width) or [""]
