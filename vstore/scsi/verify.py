"""Handlers of VERIFY and WRITE AND VERIFY (SBC-3 5.30 to 5.37): the medium is read, or compared with data-out."""

from vstore.scsi.block_range import CHUNK, check_range, check_transfer, pieces
from vstore.scsi.commands import (
    Verify10,
    Verify12,
    Verify16,
    WriteAndVerify10,
    WriteAndVerify12,
    WriteAndVerify16,
)
from vstore.scsi.device_server import Handlers
from vstore.scsi.direct_access import DirectAccessDevice
from vstore.scsi.medium import Held
from vstore.scsi.sense import AdditionalSense, CheckCondition, Sense, SenseKey
from vstore.scsi.task import Task

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


async def write_and_verify(
    unit: DirectAccessDevice, cdb: WriteAndVerify10 | WriteAndVerify12 | WriteAndVerify16, task: Task
) -> bytes:
    """Written, made durable, and read again. BYTCHK: 00b reads; 01b compares what was read with data-out."""
    lba, count, size = cdb.lba, cdb.transfer_length, unit.logical_block_length
    if cdb.bytchk not in (_BYTCHK_MEDIUM, _BYTCHK_COMPARE):
        raise cdb.invalid_field("bytchk")
    check_transfer(unit, cdb, "transfer_length", lba, count)
    task.require(count * size)
    for offset, length in pieces(unit, lba, count):
        at = offset - lba * size
        await _write_and_read(unit, offset, task.fetch(length, at), None if cdb.bytchk == _BYTCHK_MEDIUM else at)
    return b""


async def _write_and_read(unit: DirectAccessDevice, offset: int, data: bytes, compare_at: int | None) -> None:
    """In one step, so that a write of somebody else is not taken for a fault of the medium."""

    def step(medium: Held) -> None:
        medium.write(offset, data)
        medium.flush()
        found = medium.read(offset, len(data))
        if compare_at is not None and found != data:
            raise miscompare(compare_at + first_difference(found, data))

    await unit.medium.alone(offset, len(data), step)


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


HANDLERS: Handlers = {
    WriteAndVerify10: write_and_verify,
    Verify10: verify,
    WriteAndVerify16: write_and_verify,
    Verify16: verify,
    WriteAndVerify12: write_and_verify,
    Verify12: verify,
}
