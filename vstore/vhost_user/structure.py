"""Structures of the wire as declarations: a field is a name and a width, in the order that the standard prints.

`class VringState(Structure): index: U32; num: U32` is all: length, unpack() and pack() follow. Byte order is the
host's, as vhost-user has it, unless the class says `byte_order="<"`, as virtio 1.x has it. Nothing is padded silently.
"""

import struct
from typing import Annotated, ClassVar, Self, dataclass_transform

from vstore.record import Record

U8 = Annotated[int, "B"]
U16 = Annotated[int, "H"]
U32 = Annotated[int, "I"]
U64 = Annotated[int, "Q"]
Octets8 = Annotated[bytes, "8s"]
Octets32 = Annotated[bytes, "32s"]
Octets96 = Annotated[bytes, "96s"]


class StructureError(ValueError):
    """Bytes that cannot be the structure they are said to be."""


@dataclass_transform(frozen_default=True)
class Structure(Record):
    """Base of every declaration; a subclass is a record whose fields are `U8` .. `U64` or `Octets*`."""

    codec: ClassVar[struct.Struct]
    octets: ClassVar[int]

    def __init_subclass__(cls, *, byte_order: str = "=") -> None:
        super().__init_subclass__()
        cls.codec = struct.Struct(
            byte_order + "".join(cls.__annotations__[name].__metadata__[0] for name in cls._names)
        )
        cls.octets = cls.codec.size

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """Raises StructureError unless `data` has exactly the structure's size."""
        if len(data) != cls.octets:
            raise StructureError(f"{len(data)} bytes where {cls.__name__} has {cls.octets}")
        return cls(*cls.codec.unpack(data))

    def pack(self) -> bytes:
        """Raises struct.error for a value that does not fit its field: those are ours, so it is our fault."""
        return self.codec.pack(*vars(self).values())
