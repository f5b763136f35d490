"""Sizes as people write and read them: what qemu-img and virsh take is taken here, and nothing is guessed.

A bare number is bytes; `k m g t p e`, alone or as `KiB`, are powers of 1024; `KB` and its kin are powers of 1000.
"""

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # it loads decimal, and most commands parse no size
    from fractions import Fraction

SECTOR = 512
LARGEST = 2**63 - SECTOR  # off_t is signed

_PREFIXES = "kmgtpe"
_TEXT = re.compile(
    r"(?P<number>\d{1,40}(?:\.\d{1,40})?|\.\d{1,40})\s*(?:(?P<prefix>[kmgtpe])?(?P<unit>i?b)?)",
    re.IGNORECASE | re.ASCII,
)
_HEXADECIMAL = re.compile(r"0x[0-9a-f]+", re.IGNORECASE | re.ASCII)
_EXPECTED = "write a number of bytes or a number with k, M, G, T, P or E (1024), KiB..EiB (1024) or KB..EB (1000)"
_IEC = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


def parse_size(text: str, *, multiple: int = SECTOR) -> int:
    """Bytes of a size such as `1.5G`, `20GiB`, `10GB`, `1048576` or `0x100000`; a multiple of `multiple`.

    Raises ValueError with a sentence that says what would be right.
    """
    return _whole(text, _bytes(text.strip(), text), multiple)


def parse_size_change(text: str, current: int, *, multiple: int = SECTOR) -> int:
    """The new size in bytes: as `parse_size`, and `+SIZE` or `-SIZE` change `current`. Raises ValueError."""
    stripped = text.strip()
    sign = {"+": 1, "-": -1}.get(stripped[:1])
    if sign is None:
        return parse_size(text, multiple=multiple)
    size = current + sign * _bytes(stripped[1:].strip(), text)
    if size < 0:
        raise ValueError(f"{text!r} takes away more than the {current} bytes there are")
    return _whole(text, size, multiple)


def format_size(size: int) -> str:
    """Three digits and an IEC unit: `512 B`, `1.50 GiB`, `1023 MiB`."""
    from fractions import Fraction

    value = Fraction(size)
    for unit in _IEC[:-1]:
        if value < Fraction(2047, 2):  # 1023.5 of a unit would round to 1024 of it
            return f"{value.numerator // value.denominator} B" if unit == "B" else _three_digits(value, unit)
        value /= 1024
    return _three_digits(value, _IEC[-1])


def _three_digits(value: "Fraction", unit: str) -> str:
    places = next((places for limit, places in ((9.995, 2), (99.95, 1)) if value < limit), 0)
    return f"{float(value):.{places}f} {unit}"


def _bytes(size: str, text: str) -> "Fraction":
    from fractions import Fraction

    """The exact value, which may still be a fraction of a byte."""
    if _HEXADECIMAL.fullmatch(size):
        return Fraction(int(size, 16))
    match = _TEXT.fullmatch(size)
    if not match:
        raise ValueError(f"{text!r} is not a size: {_EXPECTED}")
    prefix, unit = (match["prefix"] or "").lower(), (match["unit"] or "").lower()
    if unit == "ib" and not prefix:
        raise ValueError(f"{text!r} is not a size: {_EXPECTED}")
    base = 1000 if prefix and unit == "b" else 1024
    exponent = _PREFIXES.index(prefix) + 1 if prefix else 0
    return Fraction(match["number"]) * Fraction(base) ** exponent


def _whole(text: str, size: "Fraction", multiple: int) -> int:
    if size > LARGEST:
        raise ValueError(f"{text!r} is larger than a file can be ({LARGEST} bytes)")
    if size % multiple:
        below = int(size // multiple) * multiple
        nearest = f"{below} or {below + multiple}" if below else f"{multiple}"
        raise ValueError(f"{text!r} is not a whole number of {multiple}-byte blocks; nearest: {nearest} bytes")
    return int(size)
