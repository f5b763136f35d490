"""Handlers of the block commands (SBC-3 clause 5). Each takes the unit, the decoded CDB and the task; returns data-in.

Every LBA and length is checked against the capacity here, once, before any byte moves. Long operations go over the
medium in pieces of CHUNK bytes: memory stays bounded, and a task can be aborted between two of them.
"""

from collections.abc import Iterator

from vstore.scsi.cdb import Access, Cdb
from vstore.scsi.commands import (
    Read6,
    Read10,
    Read12,
    Read16,
    ReadCapacity10,
    ReadCapacity16,
    StartStopUnit,
    SynchronizeCache10,
    SynchronizeCache16,
    Unmap,
    Verify10,
    Verify12,
    Verify16,
    Write6,
    Write10,
    Write12,
    Write16,
    WriteSame10,
    WriteSame16,
)
from vstore.scsi.device_server import Handlers
from vstore.scsi.direct_access import MAXIMUM_UNMAP_DESCRIPTORS, MIB, DirectAccessDevice
from vstore.scsi.field import Position
from vstore.scsi.pages import Capacity10, Capacity16, UnmapBlockDescriptor, UnmapHeader
from vstore.scsi.sense import AdditionalSense, CheckCondition, Sense, SenseKey
from vstore.scsi.task import Task

CHUNK = MIB
_BLOCKS_OF_ZERO = 256  # TRANSFER LENGTH 0 in READ (6) and WRITE (6)


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


# ---- reading and writing -------------------------------------------------------------------------------


async def _read(unit: DirectAccessDevice, lba: int, count: int) -> bytes:
    if not count:
        return b""
    return await unit.medium.read(lba * unit.logical_block_length, count * unit.logical_block_length)


async def _write(unit: DirectAccessDevice, task: Task, lba: int, count: int, *, durable: bool) -> None:
    """Refused as a whole when data-out is short, so that nothing is half written for want of data."""
    task.require(count * unit.logical_block_length)
    start = lba * unit.logical_block_length
    for offset, length in pieces(unit, lba, count):
        await unit.medium.write(offset, task.fetch(length, offset - start))
    await _durable(unit, now=durable)


async def _durable(unit: DirectAccessDevice, *, now: bool = False) -> None:
    """FUA, or WCE = 0: what was written must be on stable storage before the command completes."""
    if now or unit.write_through:
        await unit.medium.flush()


async def read_6(unit: DirectAccessDevice, cdb: Read6, _: Task) -> bytes:
    count = cdb.transfer_length or _BLOCKS_OF_ZERO
    check_range(unit, cdb.lba, count)
    return await _read(unit, cdb.lba, count)


async def read(unit: DirectAccessDevice, cdb: Read10 | Read12 | Read16, _: Task) -> bytes:
    check_transfer(unit, cdb, "transfer_length", cdb.lba, cdb.transfer_length)
    if cdb.fua:
        # SBC-3 4.15.2: a read with FUA returns what is on the medium, so what the cache holds goes there first.
        await unit.medium.flush()
    return await _read(unit, cdb.lba, cdb.transfer_length)


async def write_6(unit: DirectAccessDevice, cdb: Write6, task: Task) -> bytes:
    count = cdb.transfer_length or _BLOCKS_OF_ZERO
    check_range(unit, cdb.lba, count)
    await _write(unit, task, cdb.lba, count, durable=False)
    return b""


async def write(unit: DirectAccessDevice, cdb: Write10 | Write12 | Write16, task: Task) -> bytes:
    check_transfer(unit, cdb, "transfer_length", cdb.lba, cdb.transfer_length)
    await _write(unit, task, cdb.lba, cdb.transfer_length, durable=bool(cdb.fua))
    return b""


# ---- capacity and state --------------------------------------------------------------------------------


async def read_capacity_10(unit: DirectAccessDevice, _: ReadCapacity10, __: Task) -> bytes:
    """More blocks than four bytes can count are FFFF_FFFFh: ask READ CAPACITY (16)."""
    return Capacity10.of(
        returned_lba=min(unit.blocks - 1, 0xFFFF_FFFF), logical_block_length=unit.logical_block_length
    ).encode()


async def read_capacity_16(unit: DirectAccessDevice, _: ReadCapacity16, __: Task) -> bytes:
    return Capacity16.of(
        returned_lba=unit.blocks - 1,
        logical_block_length=unit.logical_block_length,
        logical_blocks_per_physical_block_exponent=unit.physical_block_exponent,
        lbpme=int(unit.thin),
        lbprz=int(unit.thin),
    ).encode()


async def start_stop_unit(unit: DirectAccessDevice, cdb: StartStopUnit, task: Task) -> bytes:
    """Stopping makes the cache durable first, unless NO_FLUSH says otherwise (SBC-3 5.25)."""
    if cdb.start:
        unit.stopped = False
    else:
        if not cdb.no_flush:
            await _flush(unit, task, immed=bool(cdb.immed))
        unit.stopped = True
    unit.changed()
    return b""


async def synchronize_cache(
    unit: DirectAccessDevice, cdb: SynchronizeCache10 | SynchronizeCache16, task: Task
) -> bytes:
    """The whole cache, whatever range is named: SBC-3 5.26 allows more than was asked."""
    check_range(unit, cdb.lba, cdb.number_of_logical_blocks)
    await _flush(unit, task, immed=bool(cdb.immed))
    return b""


async def _flush(unit: DirectAccessDevice, task: Task, *, immed: bool) -> None:
    if immed:
        await unit.later(task.nexus, Access.FLUSH, unit.medium.flush())
    else:
        await unit.medium.flush()


# ---- VERIFY --------------------------------------------------------------------------------------------

_BYTCHK_MEDIUM, _BYTCHK_COMPARE, _BYTCHK_ONE_BLOCK = 0b00, 0b01, 0b11


async def verify(unit: DirectAccessDevice, cdb: Verify10 | Verify12 | Verify16, task: Task) -> bytes:
    """SBC-3 5.30. BYTCHK: 00b reads; 01b compares with data-out; 11b compares each block with the one of data-out."""
    lba, count = cdb.lba, cdb.verification_length
    check_range(unit, lba, count)
    if cdb.bytchk == _BYTCHK_MEDIUM:
        for offset, length in pieces(unit, lba, count):
            await unit.medium.read(offset, length)
    elif cdb.bytchk == _BYTCHK_COMPARE:
        check_transfer(unit, cdb, "verification_length", lba, count)
        await _compare(unit, task, lba, count)
    elif cdb.bytchk == _BYTCHK_ONE_BLOCK:
        await _compare_one_block(unit, task, lba, count)
    else:
        raise cdb.invalid_field("bytchk")
    return b""


async def _compare(unit: DirectAccessDevice, task: Task, lba: int, count: int) -> None:
    task.require(count * unit.logical_block_length)
    start = lba * unit.logical_block_length
    for offset, length in pieces(unit, lba, count):
        expected = task.fetch(length, offset - start)
        found = await unit.medium.read(offset, length)
        if found != expected:
            raise miscompare(offset - start + first_difference(found, expected))


async def _compare_one_block(unit: DirectAccessDevice, task: Task, lba: int, count: int) -> None:
    if not count:
        return
    block = task.fetch(unit.logical_block_length)
    pattern = block * (CHUNK // len(block))
    for offset, length in pieces(unit, lba, count):
        found = await unit.medium.read(offset, length)
        if found != pattern[:length]:
            raise miscompare(first_difference(found, pattern[:length]) % len(block))


def miscompare(offset: int) -> CheckCondition:
    """INFORMATION says at which byte of data-out the first difference lies (SBC-3 4.18.1)."""
    return CheckCondition(
        Sense(SenseKey.MISCOMPARE, AdditionalSense.MISCOMPARE_DURING_VERIFY_OPERATION, information=offset)
    )


def first_difference(one: bytes, other: bytes) -> int:
    """Of two unequal strings of one length, by halving: as fast as comparing them."""
    low, high = 0, len(one)
    while high - low > 1:
        middle = (low + high) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle
    return low


# ---- WRITE SAME and UNMAP ------------------------------------------------------------------------------


async def write_same_10(unit: DirectAccessDevice, cdb: WriteSame10, task: Task) -> bytes:
    _check_write_same(unit, cdb, cdb.lba, cdb.number_of_logical_blocks, unmap=cdb.unmap)
    block = task.fetch(unit.logical_block_length)
    await _write_same(unit, cdb.lba, cdb.number_of_logical_blocks, block, unmap=cdb.unmap)
    return b""


async def write_same_16(unit: DirectAccessDevice, cdb: WriteSame16, task: Task) -> bytes:
    _check_write_same(unit, cdb, cdb.lba, cdb.number_of_logical_blocks, unmap=cdb.unmap)
    # SBC-3 5.43: with NDOB there is no data-out, and the block is all zeros.
    block = bytes(unit.logical_block_length) if cdb.ndob else task.fetch(unit.logical_block_length)
    await _write_same(unit, cdb.lba, cdb.number_of_logical_blocks, block, unmap=cdb.unmap)
    return b""


def _check_write_same(unit: DirectAccessDevice, cdb: Cdb, lba: int, count: int, *, unmap: int) -> None:
    """Zero blocks are refused because WSNZ is set (SBC-3 6.6.4); UNMAP, on a unit that is not thin (SBC-3 5.43)."""
    if unmap and not unit.thin:
        raise cdb.invalid_field("unmap")
    if not 0 < count <= unit.maximum_write_same:
        raise cdb.invalid_field("number_of_logical_blocks")
    check_range(unit, lba, count)


async def _write_same(unit: DirectAccessDevice, lba: int, count: int, block: bytes, *, unmap: int) -> None:
    """Zeros are zeroed, not written, and deallocated if asked; other data is written even with UNMAP, because
    deallocated blocks read as zeros (SBC-3 4.7.3.4.4)."""
    if any(block):
        pattern = block * (CHUNK // len(block))
        for offset, length in pieces(unit, lba, count):
            await unit.medium.write(offset, pattern[:length])
    else:
        size = unit.logical_block_length
        await unit.medium.write_zeroes(lba * size, count * size, deallocate=bool(unmap))
    await _durable(unit)


async def unmap(unit: DirectAccessDevice, cdb: Unmap, task: Task) -> bytes:
    """SBC-3 5.28. Every descriptor is checked before the first is obeyed."""
    length = cdb.parameter_list_length
    if not length:
        return b""
    if length < UnmapHeader.length:
        raise CheckCondition(Sense.illegal(AdditionalSense.PARAMETER_LIST_LENGTH_ERROR))
    ranges = _unmap_ranges(task.fetch(length))
    for lba, count in ranges:
        check_range(unit, lba, count)
    size = unit.logical_block_length
    for lba, count in ranges:
        if count:
            await unit.medium.write_zeroes(lba * size, count * size, deallocate=True)
    await _durable(unit)
    return b""


def _unmap_ranges(parameters: bytes) -> list[tuple[int, int]]:
    """The complete descriptors; what is cut off at the end is ignored (SBC-3 5.28.2)."""
    told = UnmapHeader.parse(parameters).unmap_block_descriptor_data_length
    count = min(told, len(parameters) - UnmapHeader.length) // UnmapBlockDescriptor.length
    if count > MAXIMUM_UNMAP_DESCRIPTORS:
        raise CheckCondition(Sense.invalid_field(Position(2, 7), in_cdb=False))
    first, step = UnmapHeader.length, UnmapBlockDescriptor.length
    descriptors = (
        UnmapBlockDescriptor.parse(parameters[at : at + step]) for at in range(first, first + count * step, step)
    )
    return [(descriptor.lba, descriptor.number_of_logical_blocks) for descriptor in descriptors]


HANDLERS: Handlers = {
    Read6: read_6,
    Write6: write_6,
    StartStopUnit: start_stop_unit,
    ReadCapacity10: read_capacity_10,
    Read10: read,
    Write10: write,
    Verify10: verify,
    SynchronizeCache10: synchronize_cache,
    WriteSame10: write_same_10,
    Unmap: unmap,
    Read16: read,
    Write16: write,
    Verify16: verify,
    SynchronizeCache16: synchronize_cache,
    WriteSame16: write_same_16,
    ReadCapacity16: read_capacity_16,
    Read12: read,
    Write12: write,
    Verify12: verify,
}
