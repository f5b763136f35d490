"""Handlers of COMPARE AND WRITE, ORWRITE (SBC-3 5.2, 5.9) and WRITE ATOMIC (SBC-4 5.48): blocks change in one step.

What must not happen in between is a write of anyone else: of another task, of another I_T nexus, or of the data plane,
which does not ask this model. So the step is the medium's (`alone`), which keeps all of them out of the range. What
WRITE ATOMIC promises beyond that, atomic_writes.py keeps.
"""

from vstore.scsi.block_range import check_range, check_transfer, make_durable, pieces
from vstore.scsi.commands import CompareAndWrite, OrWrite16, WriteAtomic16
from vstore.scsi.device_server import Handlers, reading
from vstore.scsi.direct_access import DirectAccessDevice
from vstore.scsi.medium import Held
from vstore.scsi.task import Task
from vstore.scsi.verify import first_difference, miscompare


async def compare_and_write(unit: DirectAccessDevice, cdb: CompareAndWrite, task: Task) -> bytes:
    """The first half of data-out is compared; only if all of it is equal the second half is written."""
    count, size = cdb.number_of_logical_blocks, unit.logical_block_length
    check_range(unit, cdb.lba, count)
    if not count:
        return b""
    length, offset = count * size, cdb.lba * size
    expected, new = task.fetch(length), task.fetch(length, length)

    def step(medium: Held) -> None:
        with reading():
            found = medium.read(offset, length)
        if found != expected:
            raise miscompare(first_difference(found, expected))
        medium.write(offset, new)

    await unit.medium.alone(offset, length, step)
    await make_durable(unit, now=bool(cdb.fua))
    return b""


async def or_write(unit: DirectAccessDevice, cdb: OrWrite16, task: Task) -> bytes:
    """Each block becomes itself OR its block of data-out. Each piece is one step: which blocks another command meets
    before and which after it, no standard says of different blocks."""
    lba, count, size = cdb.lba, cdb.transfer_length, unit.logical_block_length
    check_transfer(unit, cdb, "transfer_length", lba, count)
    task.require(count * size)
    for offset, length in pieces(unit, lba, count):
        await _or(unit, offset, task.fetch(length, offset - lba * size))
    await make_durable(unit, now=bool(cdb.fua))
    return b""


async def _or(unit: DirectAccessDevice, offset: int, mask: bytes) -> None:
    def step(medium: Held) -> None:
        with reading():
            found = int.from_bytes(medium.read(offset, len(mask)))
        medium.write(offset, (found | int.from_bytes(mask)).to_bytes(len(mask)))

    await unit.medium.alone(offset, len(mask), step)


async def write_atomic(unit: DirectAccessDevice, cdb: WriteAtomic16, task: Task) -> bytes:
    """With an ATOMIC BOUNDARY several atomic writes would do; all of it is one, which is more."""
    count, size = cdb.transfer_length, unit.logical_block_length
    if cdb.atomic_boundary > unit.maximum_atomic:
        raise cdb.invalid_field("atomic_boundary")
    if count > unit.maximum_atomic:
        raise cdb.invalid_field("transfer_length")
    check_range(unit, cdb.lba, count)
    if count:
        await unit.write_atomically(cdb.lba * size, task.fetch(count * size))
    return b""


HANDLERS: Handlers = {CompareAndWrite: compare_and_write, OrWrite16: or_write, WriteAtomic16: write_atomic}
