"""Handlers of WRITE SAME and UNMAP (SBC-3 5.28, 5.43, 5.44): many blocks with one value, or given back."""

from vstore.scsi.block_range import CHUNK, check_range, make_durable, pieces
from vstore.scsi.cdb import Cdb
from vstore.scsi.commands import Unmap, WriteSame10, WriteSame16
from vstore.scsi.device_server import Handlers
from vstore.scsi.direct_access import MAXIMUM_UNMAP_DESCRIPTORS, DirectAccessDevice
from vstore.scsi.field import Position
from vstore.scsi.pages import UnmapBlockDescriptor, UnmapHeader
from vstore.scsi.sense import AdditionalSense, CheckCondition, Sense
from vstore.scsi.task import Task


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
    await make_durable(unit)


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
    await make_durable(unit)
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


HANDLERS: Handlers = {WriteSame10: write_same_10, Unmap: unmap, WriteSame16: write_same_16}
