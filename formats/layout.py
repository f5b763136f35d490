"""On-disk structures as declarations: a class lists its fields in order, as the standard prints them.

    @big_endian
    class ExtensionStart(Structure):
        type: int = u32()
        length: int = u32()

Sizes, decoder and encoder follow from it. What the values mean, and which of them are legal, is said elsewhere.
"""

import dataclasses
import struct
from typing import Any, ClassVar, Self, TypeVar, dataclass_transform

_CODE = "struct code"


def _field(code: str) -> Any:
    return dataclasses.field(metadata={_CODE: code})


def u8() -> Any:
    return _field("B")


def u16() -> Any:
    return _field("H")


def u32() -> Any:
    return _field("I")


def u64() -> Any:
    return _field("Q")


def octets(count: int) -> Any:
    """`count` bytes as they are; a shorter value is padded with zeros."""
    return _field(f"{count}s")


class Structure:
    """Base of every declaration. SIZE is in bytes."""

    SIZE: ClassVar[int]
    _struct: ClassVar[struct.Struct]
    _names: ClassVar[tuple[str, ...]]

    def __init__(self, *values: Any, **named: Any) -> None:
        """Raises TypeError unless each field gets one value."""
        given = dict(zip(self._names, values, strict=False)) | named
        if len(values) + len(named) != len(self._names) or given.keys() != set(self._names):
            raise TypeError(f"{type(self).__name__} takes one value for each of {', '.join(self._names)}")
        self.__dict__.update(given)

    def __eq__(self, other: object) -> bool:
        return vars(self) == vars(other) if type(other) is type(self) else NotImplemented

    __hash__ = None  # type: ignore[assignment]  # it may change

    def __repr__(self) -> str:
        return f"{type(self).__qualname__}({', '.join(f'{name}={value!r}' for name, value in vars(self).items())})"

    @classmethod
    def unpack(cls, data: bytes, at: int = 0) -> Self:
        """The structure at byte `at`; `data` must hold all of it (struct.error otherwise)."""
        return cls(*cls._struct.unpack_from(data, at))

    def pack(self) -> bytes:
        """Its SIZE bytes."""
        return self._struct.pack(*(getattr(self, name) for name in self._names))


_S = TypeVar("_S", bound=Structure)


def _declare(cls: type[_S], order: str) -> type[_S]:
    # Its methods stand above, once: to write and compile them for each class takes longer than to read a header.
    made = dataclasses.dataclass(init=False, repr=False, eq=False)(cls)
    fields = dataclasses.fields(made)  # type: ignore[arg-type]  # it is one since the line above
    made._struct = struct.Struct(order + "".join(field.metadata[_CODE] for field in fields))
    made._names = tuple(field.name for field in fields)
    made.SIZE = made._struct.size
    return made


@dataclass_transform(field_specifiers=(u8, u16, u32, u64, octets))
def big_endian(cls: type[_S]) -> type[_S]:
    """Makes the class a dataclass that packs without gaps, the most significant byte first."""
    return _declare(cls, ">")
