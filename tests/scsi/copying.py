"""Units whose blocks hold their numbers, and the parameter lists of EXTENDED COPY, byte by byte as SPC-4 6.4 prints
them."""

from tests.scsi.initiator import Initiator
from vstore.scsi.commands import ExtendedCopy
from vstore.scsi.identity import Identity
from vstore.scsi.logical_unit import LogicalUnit
from vstore.scsi.medium import MemoryMedium
from vstore.scsi.target import Target

BLOCKS = 2048


def block(number: int) -> bytes:
    return number.to_bytes(4) * 128


def unit(name: str, medium: MemoryMedium | None = None, **settings: int) -> LogicalUnit:
    """Block N holds its number."""
    medium = medium or MemoryMedium(BLOCKS * 512)
    medium.data[:] = b"".join(map(block, range(len(medium.data) // 512)))
    return LogicalUnit(medium, Identity(name), **settings)  # type: ignore[arg-type]


def initiator(*units: LogicalUnit) -> Initiator:
    target = Target()
    for lun, each in enumerate(units or (unit("one"), unit("two"))):
        target.add(lun, each)
    made = Initiator(target)
    for lun in range(len(target.luns)):
        made.send("00", lun=lun)
        made.send("00", lun=lun)
    return made


def naa(of: LogicalUnit) -> bytes:
    return of.identity.naa.to_bytes(8)


def cscd(of: LogicalUnit | bytes, *, kind: int = 3, code_set: int = 1, size: int = 512, head: str = "e4 00") -> bytes:
    """An identification descriptor."""
    designator = naa(of) if isinstance(of, LogicalUnit) else of
    return (
        bytes.fromhex(head)
        + bytes([0, 0, code_set, kind, 0, len(designator)])
        + designator.ljust(20, b"\0")
        + size.to_bytes(4)
    )


def segment(source: int, at: int, destination: int, to: int, blocks: int, *, head: str = "02 00 00 18") -> bytes:
    return (
        bytes.fromhex(head)
        + source.to_bytes(2)
        + destination.to_bytes(2)
        + bytes(2)
        + blocks.to_bytes(2)
        + at.to_bytes(8)
        + to.to_bytes(8)
    )


def listed(cscds: list[bytes], segments: list[bytes], *, identifier: int = 0, usage: int = 3, inline: int = 0) -> bytes:
    one, other = b"".join(cscds), b"".join(segments)
    head = bytes([identifier, usage << 3]) + len(one).to_bytes(2) + bytes(4) + len(other).to_bytes(4)
    return head + inline.to_bytes(4) + one + other


def command(data: bytes) -> tuple[bytes, bytes]:
    return ExtendedCopy.build(parameter_list_length=len(data)), data


def both(made: Initiator) -> list[bytes]:
    return [cscd(made.target.luns[lun]) for lun in sorted(made.target.luns)]


def numbers(of: LogicalUnit, first: int, count: int) -> list[int]:
    """What stands in these blocks."""
    assert isinstance(of.medium, MemoryMedium)
    data = of.medium.data
    found = [bytes(data[at * 512 : at * 512 + 512]) for at in range(first, first + count)]
    return [int.from_bytes(each[:4]) for each in found if each == each[:4] * 128]
