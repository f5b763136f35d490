"""What every block command does with an LBA and a length, before and after it moves bytes.

Each is checked against the capacity once, before any byte moves. Long operations go over the medium in pieces of CHUNK
bytes: memory stays bounded, and a task can be aborted between two of them.
"""

from collections.abc import Iterator

from vstore.scsi.cdb import Cdb
from vstore.scsi.direct_access import MIB, DirectAccessDevice
from vstore.scsi.sense import AdditionalSense, CheckCondition, Sense

CHUNK = MIB


def check_range(unit: DirectAccessDevice, lba: int, count: int) -> None:
    """LBA OUT OF RANGE, with the first address past the end. No blocks at the very end are in range."""
    if lba + count > unit.blocks:
        raise CheckCondition(Sense.illegal(AdditionalSense.LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE, max(lba, unit.blocks)))


def check_transfer(unit: DirectAccessDevice, cdb: Cdb, name: str, lba: int, count: int) -> None:
    """Also MAXIMUM TRANSFER LENGTH of the block limits page (SBC-3 6.6.4)."""
    if count > unit.maximum_transfer:
        raise cdb.invalid_field(name)
    check_range(unit, lba, count)


def pieces(unit: DirectAccessDevice, lba: int, count: int) -> Iterator[tuple[int, int]]:
    """(offset, length) in bytes, each at most CHUNK long."""
    offset, end = lba * unit.logical_block_length, (lba + count) * unit.logical_block_length
    while offset < end:
        length = min(CHUNK, end - offset)
        yield offset, length
        offset += length


async def make_durable(unit: DirectAccessDevice, *, now: bool = False) -> None:
    """FUA, or WCE = 0: what was written must be on stable storage before the command completes."""
    if now or unit.write_through:
        await unit.medium.flush()
