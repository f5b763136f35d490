"""Handlers of WRITE SAME, UNMAP and GET LBA STATUS (SBC-3 5.28, 5.43, 5.44, 5.5): many blocks with one value, or given
back; and which of them are."""

import itertools
from collections.abc import Iterable, Iterator

from vstore.scsi.block_parameters import LbaStatusDescriptor, LbaStatusHeader, UnmapBlockDescriptor, UnmapHeader
from vstore.scsi.block_range import CHUNK, check_range, make_durable, pieces
from vstore.scsi.commands import GetLbaStatus16, Unmap, WriteSame10, WriteSame16
from vstore.scsi.device_server import Handlers
from vstore.scsi.direct_access import MAXIMUM_UNMAP_DESCRIPTORS, DirectAccessDevice
from vstore.scsi.field import Position
from vstore.scsi.medium import ANCHORED, DEALLOCATED, MAPPED
from vstore.scsi.sense import AdditionalSense, CheckCondition, Sense
from vstore.scsi.task import Task


async def write_same_10(unit: DirectAccessDevice, cdb: WriteSame10, task: Task) -> bytes:
    _check_write_same(unit, cdb)
    block = task.fetch(unit.logical_block_length)
    await _write_same(unit, cdb, block)
    return b""


async def write_same_16(unit: DirectAccessDevice, cdb: WriteSame16, task: Task) -> bytes:
    _check_write_same(unit, cdb)
    # SBC-3 5.43: with NDOB there is no data-out, and the block is all zeros.
    block = bytes(unit.logical_block_length) if cdb.ndob else task.fetch(unit.logical_block_length)
    await _write_same(unit, cdb, block)
    return b""


def _check_write_same(unit: DirectAccessDevice, cdb: WriteSame10 | WriteSame16) -> None:
    """Zero blocks are refused because WSNZ is set (SBC-3 6.6.4); UNMAP, on a unit that is not thin (SBC-3 5.43); and
    ANCHOR without it, or where nothing can be anchored."""
    if cdb.unmap and not unit.thin:
        raise cdb.invalid_field("unmap")
    if cdb.anchor and not (cdb.unmap and unit.anchors):
        raise cdb.invalid_field("anchor")
    if not 0 < cdb.number_of_logical_blocks <= unit.maximum_write_same:
        raise cdb.invalid_field("number_of_logical_blocks")
    check_range(unit, cdb.lba, cdb.number_of_logical_blocks)


async def _write_same(unit: DirectAccessDevice, cdb: WriteSame10 | WriteSame16, block: bytes) -> None:
    """Zeros are zeroed, not written, and deallocated or anchored if asked; other data is written even with UNMAP,
    because such blocks read as zeros (SBC-3 4.7.3.4.4)."""
    lba, count = cdb.lba, cdb.number_of_logical_blocks
    if any(block):
        pattern = block * (CHUNK // len(block))
        for offset, length in pieces(unit, lba, count):
            await unit.medium.write(offset, pattern[:length])
    else:
        await _clear(unit, lba, count, unmap=bool(cdb.unmap), anchor=bool(cdb.anchor))
    await make_durable(unit)


async def _clear(unit: DirectAccessDevice, lba: int, count: int, *, unmap: bool, anchor: bool) -> None:
    offset, length = lba * unit.logical_block_length, count * unit.logical_block_length
    if anchor:
        await unit.medium.anchor(offset, length)
    else:
        await unit.medium.write_zeroes(offset, length, deallocate=unmap)


async def unmap(unit: DirectAccessDevice, cdb: Unmap, task: Task) -> bytes:
    """SBC-3 5.28. Every descriptor is checked before the first is obeyed."""
    if cdb.anchor and not unit.anchors:
        raise cdb.invalid(Unmap.anchor)
    length = cdb.parameter_list_length
    if not length:
        return b""
    if length < UnmapHeader.length:
        raise CheckCondition(Sense.illegal(AdditionalSense.PARAMETER_LIST_LENGTH_ERROR))
    ranges = _unmap_ranges(task.fetch(length))
    for lba, count in ranges:
        check_range(unit, lba, count)
    for lba, count in ranges:
        if count:
            await _clear(unit, lba, count, unmap=True, anchor=bool(cdb.anchor))
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


_PROVISIONING_STATUS = {MAPPED: 0, DEALLOCATED: 1, ANCHORED: 2}
_MOST_DESCRIPTORS = 256


async def get_lba_status(unit: DirectAccessDevice, cdb: GetLbaStatus16, _: Task) -> bytes:
    """As many descriptors as the allocation length has room for, one at least. Of a unit that is not thin every block
    is mapped (SBC-3 4.7.2)."""
    count = unit.blocks - cdb.lba
    if count <= 0:
        raise CheckCondition(Sense.illegal(AdditionalSense.LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE, cdb.lba))
    size = unit.logical_block_length
    rows: Iterable[tuple[int, int]] = [(count * size, MAPPED)]
    if unit.thin:
        rows = await unit.medium.status(cdb.lba * size, count * size)
    room = (cdb.allocation_length - LbaStatusHeader.length) // LbaStatusDescriptor.length
    descriptors = b"".join(
        LbaStatusDescriptor.of(
            lba=lba, number_of_logical_blocks=blocks, provisioning_status=_PROVISIONING_STATUS[status]
        ).encode()
        for (lba, blocks, status), _ in zip(
            _in_blocks(rows, cdb.lba, size), range(min(max(room, 1), _MOST_DESCRIPTORS)), strict=False
        )
    )
    return LbaStatusHeader.of(parameter_data_length=len(descriptors) + 4).encode() + descriptors


def _in_blocks(rows: Iterable[tuple[int, int]], lba: int, size: int) -> Iterator[tuple[int, int, int]]:
    """(LBA, blocks, status), no two neighbours alike unless a descriptor cannot count that far."""
    for status, alike in itertools.groupby(_whole_blocks(rows, size), lambda row: row[1]):
        end = lba + sum(blocks for blocks, _ in alike)
        yield from _counted(lba, end, status)
        lba = end


def _whole_blocks(rows: Iterable[tuple[int, int]], size: int) -> Iterator[tuple[int, int]]:
    """(blocks, status). A block is mapped as soon as one byte of it is, or where one is anchored and another not."""
    part, status_of_part = 0, MAPPED
    for row, status in rows:
        length = row
        if part:
            taken = min(size - part, length)
            part, length = part + taken, length - taken
            status_of_part = status if status == status_of_part else MAPPED
            if part < size:
                continue
            yield 1, status_of_part
        if length >= size:
            yield length // size, status
        part, status_of_part = length % size, status
    if part and status_of_part == MAPPED:
        yield 1, MAPPED


def _counted(first: int, end: int, status: int) -> Iterator[tuple[int, int, int]]:
    """In descriptors whose NUMBER OF LOGICAL BLOCKS has four bytes."""
    while first < end:
        blocks = min(end - first, 0xFFFF_FFFF)
        yield first, blocks, status
        first += blocks


HANDLERS: Handlers = {
    WriteSame10: write_same_10,
    Unmap: unmap,
    WriteSame16: write_same_16,
    GetLbaStatus16: get_lba_status,
}
