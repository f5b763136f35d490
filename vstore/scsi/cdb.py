"""What a row of the command table yields: decoder, refusals, CDB usage data and random CDBs.

A command is a subclass of `Cdb`; its fields are the row. Every bit that is neither of the operation code, nor of the
service action, nor of a field that is evaluated, accepted or ignored must be zero, and is refused with a field pointer.
"""

from enum import Enum, IntEnum
from typing import TYPE_CHECKING, Any, ClassVar, Self

from vstore.scsi.field import EVALUATED, HINT, IGNORED, Field, Layout, Position
from vstore.scsi.sense import CheckCondition, Sense

if TYPE_CHECKING:
    from random import Random


class Access(Enum):
    """What a command does with the medium: decides readiness, write protection and what an I/O error is called."""

    NONE = "-"
    READ = "reads"
    WRITE = "writes"
    ERASE = "erases"  # all of it; nothing else is served meanwhile
    FLUSH = "flushes"


class Beside(Enum):
    """What becomes of a command beside a persistent reservation that shuts its nexus out (SPC-4 table 66, SBC-3 table
    13)."""

    SERVED = "served"
    SERVED_AS_READ = "conflict with exclusive access"
    CONFLICT = "conflict"


class Fast(IntEnum):
    """Which loop of the data plane may serve a command (VS_READ and its sisters in dataplane.h)."""

    READ = 1
    WRITE = 2
    SYNCHRONIZE = 3
    WRITE_SAME = 4
    UNMAP = 5


_BESIDE = {Access.READ: Beside.SERVED_AS_READ}  # where the row does not say


class Cdb(Layout, length=0):
    """A decoded command descriptor block. Class attributes are the facts of its row."""

    __slots__ = ()
    name: ClassVar[str]
    opcode: ClassVar[int]
    service_action: ClassVar[int | None]
    access: ClassVar[Access]
    passes_attention: ClassVar[bool]
    passes_reservation: ClassVar[bool]
    beside: ClassVar[Beside]
    beside_if: ClassVar[tuple[str, int] | None]
    fast: ClassVar[Fast | None]
    fixed: ClassVar[int]
    accepted: ClassVar[int]
    refused: ClassVar[int]

    def __init_subclass__(
        cls,
        *,
        name: str,
        opcode: int,
        length: int,
        service_action: int | None = None,
        access: Access = Access.NONE,
        passes_attention: bool = False,
        passes_reservation: bool = False,
        beside: Beside | None = None,
        beside_if: tuple[str, int] | None = None,
        fast: Fast | None = None,
        **rest: Any,
    ) -> None:
        super().__init_subclass__(length=length, **rest)
        cls.name, cls.opcode, cls.service_action = name, opcode, service_action
        cls.access, cls.passes_attention, cls.fast = access, passes_attention, fast
        cls.passes_reservation = passes_attention or passes_reservation  # of another nexus
        cls.beside = beside or (Beside.SERVED if passes_attention else _BESIDE.get(access, Beside.CONFLICT))
        cls.beside_if = beside_if  # a field and its value, with which the command is served
        cls.fixed = 0xFF << (length - 1) * 8
        if service_action is not None:
            cls.fixed |= SERVICE_ACTION_MASK << (length - 2) * 8
        cls.accepted = cls.mask_of(EVALUATED, HINT, IGNORED)
        cls.refused = ~(cls.fixed | cls.accepted) & ((1 << length * 8) - 1)

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """CheckCondition for a CDB too short, or with a bit set that must be zero. Bytes past its end are padding."""
        if len(data) < cls.length:
            raise CheckCondition(Sense.invalid_field(Position(len(data), 7), in_cdb=True))
        value = int.from_bytes(data[: cls.length])
        refused = value & cls.refused
        if refused:
            raise CheckCondition(Sense.invalid_field(cls.position_of(refused), in_cdb=True))
        return cls(value)

    def beside_reservation(self) -> Beside:
        """This one, with the values of its fields."""
        if self.beside_if:
            name, value = self.beside_if
            if dict(self.items())[name] == value:
                return Beside.SERVED
        return self.beside

    @classmethod
    def invalid(cls, field: Field) -> CheckCondition:
        """INVALID FIELD IN CDB that points at one of this command's fields."""
        return CheckCondition(Sense.invalid_field(field.position, in_cdb=True))

    def invalid_field(self, name: str) -> CheckCondition:
        """The same, for handlers that serve several commands with a field of this name."""
        return self.invalid(self.fields[name])

    @classmethod
    def usage_data(cls) -> bytes:
        """CDB USAGE DATA (SPC-4 6.35.3): the operation code, the service action, and a one for every evaluated bit."""
        value = cls.opcode << (cls.length - 1) * 8 | cls.mask_of(EVALUATED, HINT)
        if cls.service_action is not None:
            value |= cls.service_action << (cls.length - 2) * 8
        return value.to_bytes(cls.length)

    @classmethod
    def build(cls, **values: int) -> bytes:
        """The bytes of a CDB with these fields."""
        cdb = cls.of(**values).value | cls.opcode << (cls.length - 1) * 8
        if cls.service_action is not None:
            cdb |= cls.service_action << (cls.length - 2) * 8
        return cdb.to_bytes(cls.length)

    @classmethod
    def random(cls, rng: "Random", **given: int) -> bytes:
        """A CDB that passes the decoder: likely values in every accepted field, those of `given` where told."""
        values = {
            name: _likely(rng, member.limit)
            for name, member in cls.fields.items()
            if member.use in (EVALUATED, HINT, IGNORED)
        }
        values |= {name: value & cls.fields[name].limit for name, value in given.items() if name in cls.fields}
        return cls.build(**values)


SERVICE_ACTION_MASK = 0x1F  # byte 1, bits 4 to 0


def _likely(rng: "Random", limit: int) -> int:
    """Small numbers and the edges of a field find more than evenly spread ones."""
    kind = rng.randrange(8)
    if kind < 3:
        return 0
    if kind < 6:
        return rng.randint(0, min(limit, 64))
    return limit - rng.randint(0, min(limit, 2)) if kind == 6 else rng.randint(0, limit)


def unknown_service_action() -> CheckCondition:
    return CheckCondition(Sense.invalid_field(Position(1, 4), in_cdb=True))
