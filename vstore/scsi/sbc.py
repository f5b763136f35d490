"""Handlers of the block commands (SBC-3 clause 5): READ, WRITE, PRE-FETCH, SYNCHRONIZE CACHE, capacity, START STOP.

Each takes the unit, the decoded CDB and the task, and returns data-in. VERIFY stands in verify.py; COMPARE AND WRITE in
atomic.py; WRITE SAME and UNMAP in provisioning.py.
"""

from vstore.scsi.block_parameters import Capacity10, Capacity16, DefectDataHeader10, DefectDataHeader12
from vstore.scsi.block_range import check_range, check_transfer, make_durable, pieces
from vstore.scsi.cdb import Access
from vstore.scsi.commands import (
    PreFetch10,
    PreFetch16,
    PreventAllowMediumRemoval,
    Read6,
    Read10,
    Read12,
    Read16,
    ReadCapacity10,
    ReadCapacity16,
    ReadDefectData10,
    ReadDefectData12,
    StartStopUnit,
    SynchronizeCache10,
    SynchronizeCache16,
    Write6,
    Write10,
    Write12,
    Write16,
)
from vstore.scsi.device_server import Handlers
from vstore.scsi.direct_access import MAXIMUM_PREFETCH_BYTES, DirectAccessDevice
from vstore.scsi.task import Status, Task

_BLOCKS_OF_ZERO = 256  # TRANSFER LENGTH 0 in READ (6) and WRITE (6)


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
    await make_durable(unit, now=durable)


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


async def pre_fetch(unit: DirectAccessDevice, cdb: PreFetch10 | PreFetch16, task: Task) -> bytes | Status:
    """CONDITION MET: all of it is in the host's cache, or with IMMED will be. GOOD: it does not fit (SBC-3 5.10)."""
    # A length of zero reaches to the last block.
    count = cdb.prefetch_length or max(unit.blocks - cdb.lba, 0)
    check_range(unit, cdb.lba, count)
    if not unit.medium.caches:
        return Status.GOOD
    most = MAXIMUM_PREFETCH_BYTES // unit.logical_block_length
    reading = _fetch(unit, cdb.lba, min(count, most))
    if cdb.immed:
        await unit.later(task.nexus, Access.READ, reading)
    else:
        await reading
    return Status.CONDITION_MET if count <= most else Status.GOOD


async def _fetch(unit: DirectAccessDevice, lba: int, count: int) -> None:
    for offset, length in pieces(unit, lba, count):
        await unit.medium.read(offset, length)


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


_DEFECT_LIST_FORMATS = range(6)  # 110b is vendor specific, 111b is reserved


async def read_defect_data(unit: DirectAccessDevice, cdb: ReadDefectData10 | ReadDefectData12, _: Task) -> bytes:  # noqa: ARG001
    """Both lists are valid, in whichever format, and empty: bad blocks are the business of the host's storage."""
    if cdb.defect_list_format not in _DEFECT_LIST_FORMATS:
        raise cdb.invalid_field("defect_list_format")
    header = DefectDataHeader10 if isinstance(cdb, ReadDefectData10) else DefectDataHeader12
    return header.of(plistv=cdb.req_plist, glistv=cdb.req_glist, defect_list_format=cdb.defect_list_format).encode()


async def start_stop_unit(unit: DirectAccessDevice, cdb: StartStopUnit, task: Task) -> bytes:
    """Stopping makes the cache durable first, unless NO_FLUSH says otherwise (SBC-3 5.25)."""
    if cdb.start:
        unit.stopped = False
    else:
        if not cdb.no_flush:
            await _flush(unit, task, immed=bool(cdb.immed))
        unit.self_tests.abort()
        unit.statistics.stopped()
        unit.stopped = True
    unit.changed()
    return b""


async def prevent_allow_medium_removal(unit: DirectAccessDevice, cdb: PreventAllowMediumRemoval, _: Task) -> bytes:  # noqa: ARG001
    """There is no way to remove the medium, so it is always as the initiator wants it (SBC-3 5.10)."""
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


HANDLERS: Handlers = {
    Read6: read_6,
    Write6: write_6,
    StartStopUnit: start_stop_unit,
    PreventAllowMediumRemoval: prevent_allow_medium_removal,
    ReadCapacity10: read_capacity_10,
    Read10: read,
    Write10: write,
    PreFetch10: pre_fetch,
    SynchronizeCache10: synchronize_cache,
    Read16: read,
    Write16: write,
    PreFetch16: pre_fetch,
    SynchronizeCache16: synchronize_cache,
    ReadCapacity16: read_capacity_16,
    ReadDefectData10: read_defect_data,
    ReadDefectData12: read_defect_data,
    Read12: read,
    Write12: write,
}
