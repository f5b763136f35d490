"""The declaration kit: a structure of a standard, written as the standard prints it.

A CDB, a page or a parameter list is one big-endian number. A field of it is a shift and a mask, whatever its width and
wherever it starts, so decoding, encoding, masks and pointers are all the same arithmetic:

    byte      0         1         2         3
          +---------+---------+---------+---------+
          | 7 ... 0 | 7 ... 0 | 7 ... 0 | 7 ... 0 |     bits(1, 4, 2): byte 1, bits 4 to 2
          +---------+---------+---------+---------+     shift = 32 - 8 - (7 - 4) - 3 = 18, mask = 7

A subclass of `Layout` is such a structure; its class attributes are its fields, beside those of the structure that it
extends. A layout holds no behaviour: limits and meanings live with whoever reads it.
"""

from collections.abc import Iterator
from enum import Enum
from typing import Any, ClassVar, NamedTuple, Self, overload


class Use(Enum):
    """What the device server does with a field."""

    EVALUATED = "evaluated"  # its value changes the answer
    HINT = "accepted"  # supported, but asks for nothing that could be seen: DPO
    IGNORED = "ignored"  # any value is accepted and means nothing here: GROUP NUMBER
    ZERO = "must be zero"  # not supported: any other value is refused
    CHANGEABLE = "changeable"  # a mode parameter that MODE SELECT may change


EVALUATED, HINT, IGNORED, ZERO, CHANGEABLE = Use


class Position(NamedTuple):
    """Where a field starts: what the field pointer and the bit pointer of sense data say (SPC-4 4.5.2.4.2)."""

    byte: int
    bit: int


class Field:
    """`width` bits that start at bit `msb` of byte `byte`; read from a layout it is an int, from the class itself."""

    def __init__(self, byte: int, msb: int, width: int, use: Use = EVALUATED) -> None:
        self.byte, self.msb, self.width, self.use = byte, msb, width, use
        self.name = ""
        self.shift = 0
        self.limit = (1 << width) - 1

    def bind(self, name: str, length: int) -> None:
        """Learns its name and, from the structure's length in bytes, its shift."""
        self.name = name
        self.shift = length * 8 - self.byte * 8 - (7 - self.msb) - self.width
        if self.shift < 0:
            raise TypeError(f"{name} ends past the last byte of a structure of {length} bytes")

    @property
    def mask(self) -> int:
        return self.limit << self.shift

    @property
    def position(self) -> Position:
        return Position(self.byte, self.msb)

    @property
    def size(self) -> int:
        """Bytes that the field touches."""
        return (7 - self.msb + self.width + 7) // 8

    def encode(self, value: int) -> int:
        """The value moved to its place. ValueError when it does not fit."""
        if not 0 <= value <= self.limit:
            raise ValueError(f"{self.name} is {value}, and holds 0..{self.limit}")
        return value << self.shift

    @overload
    def __get__(self, layout: None, owner: type) -> Self: ...
    @overload
    def __get__(self, layout: "Layout", owner: type) -> int: ...
    def __get__(self, layout: "Layout | None", owner: type) -> "Self | int":
        if layout is None:
            return self
        return (layout.value >> self.shift) & self.limit


def bit(byte: int, position: int, use: Use = EVALUATED) -> Field:
    return Field(byte, position, 1, use)


def bits(byte: int, msb: int, lsb: int, use: Use = EVALUATED) -> Field:
    return Field(byte, msb, msb - lsb + 1, use)


def u8(byte: int, use: Use = EVALUATED) -> Field:
    return Field(byte, 7, 8, use)


def u16(byte: int, use: Use = EVALUATED) -> Field:
    return Field(byte, 7, 16, use)


def u24(byte: int, use: Use = EVALUATED) -> Field:
    return Field(byte, 7, 24, use)


def u32(byte: int, use: Use = EVALUATED) -> Field:
    return Field(byte, 7, 32, use)


def u64(byte: int, use: Use = EVALUATED) -> Field:
    return Field(byte, 7, 64, use)


def text(byte: int, length: int) -> Field:
    """ASCII, left aligned and padded with spaces; encode with `ascii_field`."""
    return Field(byte, 7, length * 8)


def ascii_field(words: str, length: int) -> int:
    """The number that a text field of `length` bytes holds for these words."""
    return int.from_bytes(words.encode("ascii").ljust(length)[:length])


class Layout:
    """A structure of fixed length; `value` is the whole of it as one big-endian number."""

    __slots__ = ("value",)
    length: ClassVar[int] = 0
    fields: ClassVar[dict[str, Field]] = {}

    def __init_subclass__(cls, *, length: int, **rest: Any) -> None:
        super().__init_subclass__(**rest)
        cls.length = length
        inherited = next((base.fields for base in cls.__bases__ if issubclass(base, Layout)), {})
        own = {name: member for name, member in vars(cls).items() if isinstance(member, Field)}
        cls.fields = dict(sorted((inherited | own).items(), key=lambda each: (each[1].byte, -each[1].msb)))
        taken = 0
        for name, member in cls.fields.items():
            member.bind(name, length)
            if taken & member.mask:
                raise TypeError(f"{cls.__name__}.{name} overlaps a field declared before it")
            taken |= member.mask

    def __init__(self, value: int = 0) -> None:
        self.value = value

    @classmethod
    def of(cls, **values: int) -> Self:
        """A structure with these fields set and all other bits zero."""
        return cls(sum(cls.fields[name].encode(value) for name, value in values.items()))

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """The structure at the start of `data`, which the caller knows to be long enough."""
        assert len(data) >= cls.length, f"{cls.__name__} is {cls.length} bytes, not {len(data)}"
        return cls(int.from_bytes(data[: cls.length]))

    def encode(self) -> bytes:
        return self.value.to_bytes(self.length)

    def items(self) -> Iterator[tuple[str, int]]:
        return ((name, (self.value >> member.shift) & member.limit) for name, member in self.fields.items())

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and isinstance(other, Layout) and other.value == self.value

    def __hash__(self) -> int:
        return hash((type(self), self.value))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value:#x}' for name, value in self.items())})"

    @classmethod
    def mask_of(cls, *uses: Use) -> int:
        """Every bit of every field that has one of these uses."""
        return sum(member.mask for member in cls.fields.values() if member.use in uses)

    @classmethod
    def position_of(cls, bits_set: int) -> Position:
        """Where the field lies that holds the leftmost of these bits; that bit itself when no field holds it."""
        top = bits_set.bit_length() - 1
        for member in cls.fields.values():
            if member.mask >> top & 1:
                return member.position
        return Position(cls.length - 1 - top // 8, top % 8)
