"""Handlers of FORMAT UNIT and SANITIZE (SBC-3 5.3, 5.24): the whole medium is given one content.

the default pattern              deallocated where the unit is thin, else zeroed
BLOCK ERASE                      deallocated; what keeps its room on the host nevertheless is zeroed there, too
a pattern, OVERWRITE             written to every block, in place where the image has one
CRYPTOGRAPHIC ERASE              encrypted with a key that is lost; then deallocated where the unit is thin, else noise
"""

from vstore.scsi.block_parameters import FormatHeaderLong, FormatHeaderShort, InitializationPattern, OverwriteParameters
from vstore.scsi.block_range import CHUNK
from vstore.scsi.cdb import unknown_service_action
from vstore.scsi.commands import (
    FormatUnit,
    SanitizeBlockErase,
    SanitizeCryptographicErase,
    SanitizeExitFailureMode,
    SanitizeOverwrite,
)
from vstore.scsi.device_server import Handlers
from vstore.scsi.direct_access import MIB, DirectAccessDevice
from vstore.scsi.field import Field, Position
from vstore.scsi.medium import ANCHORED, Medium
from vstore.scsi.operation import FORMAT_FAILED, Operation, sanitize_failed
from vstore.scsi.sense import AdditionalSense, CheckCondition, Sense
from vstore.scsi.task import Task

_ZEROED_AT_ONCE = 64 * MIB
_DEFAULT_PATTERN, _REPEATED_PATTERN = 0, 1
_FORMATTING = AdditionalSense.LOGICAL_UNIT_NOT_READY_FORMAT_IN_PROGRESS
_SANITIZING = AdditionalSense.LOGICAL_UNIT_NOT_READY_SANITIZE_IN_PROGRESS


def _invalid(field: Field, at: int = 0) -> CheckCondition:
    return CheckCondition(Sense.invalid_field(Position(at + field.byte, field.msb), in_cdb=False))


# ---- FORMAT UNIT ---------------------------------------------------------------------------------------


async def format_unit(unit: DirectAccessDevice, cdb: FormatUnit, task: Task) -> bytes:
    """Block length and capacity stay as they are; there is neither protection information nor a list of defects."""
    immed, pattern = False, b""
    if cdb.fmtdata:
        kind = FormatHeaderLong if cdb.longlist else FormatHeaderShort
        header = kind.parse(task.fetch(kind.length))
        _check_format(kind, task)
        immed = bool(header.immed)
        pattern = _initialization_pattern(unit, kind.length, task) if header.ip else b""
    length = unit.blocks * unit.logical_block_length
    operation = Operation(_FORMATTING, length, FORMAT_FAILED, cdb)
    work = _write(unit, operation, [pattern]) if pattern else _clear(unit, operation)
    await unit.operate(operation, work, immed=immed)
    return b""


def _check_format(kind: type[FormatHeaderShort] | type[FormatHeaderLong], task: Task) -> None:
    """Only a format without options that change what it makes: the first field that asks for more is pointed at."""
    data = task.fetch(kind.length)
    header = kind.parse(data)
    known = kind.mask_of(kind.immed.use)
    refused = header.value & ~known
    for name in ("protection_fields_usage", "p_i_information", "protection_interval_exponent", "defect_list_length"):
        if name in kind.fields:
            refused |= header.value & kind.fields[name].mask
    if not header.fov:  # the others are only valid with it
        refused |= header.value & sum(kind.fields[name].mask for name in ("dpry", "dcrt", "stpf", "ip"))
    if refused:
        raise CheckCondition(Sense.invalid_field(kind.position_of(refused), in_cdb=False))


def _initialization_pattern(unit: DirectAccessDevice, at: int, task: Task) -> bytes:
    """The bytes that fill a block, repeated; none: the default pattern."""
    kind = InitializationPattern
    header = kind.parse(task.fetch(kind.length, at))
    refused = header.value & (~kind.mask_of(kind.si.use) | kind.si.mask)
    if refused:
        position = kind.position_of(refused)
        raise CheckCondition(Sense.invalid_field(Position(at + position.byte, position.bit), in_cdb=False))
    length = header.initialization_pattern_length
    if header.initialization_pattern_type == _DEFAULT_PATTERN:
        if length:
            raise _invalid(kind.initialization_pattern_length, at)
        return b""
    if header.initialization_pattern_type != _REPEATED_PATTERN:
        raise _invalid(kind.initialization_pattern_type, at)
    if not 0 < length <= unit.logical_block_length:
        raise _invalid(kind.initialization_pattern_length, at)
    return task.fetch(length, at + kind.length)


# ---- SANITIZE ------------------------------------------------------------------------------------------


async def sanitize_overwrite(unit: DirectAccessDevice, cdb: SanitizeOverwrite, task: Task) -> bytes:
    """OVERWRITE COUNT passes, each durable before the next begins; with INVERT every other one inverted, so that the
    last one leaves the pattern itself."""
    kind, room = OverwriteParameters, cdb.parameter_list_length
    if not kind.length < room < unit.logical_block_length + kind.length + 1:
        raise cdb.invalid(SanitizeOverwrite.parameter_list_length)
    data = task.fetch(room)
    header = kind.parse(data)
    count, length = header.overwrite_count, header.initialization_pattern_length
    refused = header.value & (~kind.mask_of(kind.invert.use) | kind.test.mask)
    if refused:
        raise CheckCondition(Sense.invalid_field(kind.position_of(refused), in_cdb=False))
    if not count:
        raise _invalid(kind.overwrite_count)
    if not length or length > room - kind.length:
        raise _invalid(kind.initialization_pattern_length)
    pattern = data[kind.length : kind.length + length]
    inverted = bytes(byte ^ 0xFF for byte in pattern)
    passes = [inverted if header.invert and number % 2 else pattern for number in reversed(range(count))]
    operation = _sanitize(unit, cdb, count, data)
    await unit.operate(operation, _write(unit, operation, passes), immed=bool(cdb.immed))
    return b""


async def sanitize_block_erase(unit: DirectAccessDevice, cdb: SanitizeBlockErase, _: Task) -> bytes:
    """Every block is deallocated, and reads as zeros; nobody finds in the image what it was."""
    operation = _sanitize(unit, cdb, 2 if unit.anchors else 1)
    await unit.operate(operation, _erase(unit, operation), immed=bool(cdb.immed))
    return b""


async def sanitize_cryptographic_erase(unit: DirectAccessDevice, cdb: SanitizeCryptographicErase, _: Task) -> bytes:
    """The key is replaced by another, and nobody has the old one any more."""
    operation = _sanitize(unit, cdb, 1)
    await unit.operate(operation, _replace_key(unit, operation), immed=bool(cdb.immed))
    return b""


async def _replace_key(unit: DirectAccessDevice, operation: Operation) -> None:
    await unit.medium.replace_key()
    if unit.thin:
        await _clear(unit, operation)


_Sanitize = SanitizeOverwrite | SanitizeBlockErase | SanitizeCryptographicErase


def _sanitize(unit: DirectAccessDevice, cdb: _Sanitize, passes: int, data_out: bytes = b"") -> Operation:
    """SBC-4 4.11.1: a failure that may not be left is not followed by a SANITIZE that could make one that may."""
    failure = unit.failure
    if cdb.ause and failure is not None and failure is not FORMAT_FAILED and not failure.may_exit:
        raise cdb.invalid_field("ause")
    length = unit.blocks * unit.logical_block_length
    return Operation(_SANITIZING, length * passes, sanitize_failed(may_exit=bool(cdb.ause)), cdb, data_out)


async def exit_failure_mode(unit: DirectAccessDevice, _: SanitizeExitFailureMode, __: Task) -> bytes:
    """Only after a SANITIZE that had AUSE set; where none has failed there is nothing to do."""
    failure = unit.failure
    if failure is not None and failure is not FORMAT_FAILED:
        if not failure.may_exit:
            raise unknown_service_action()
        await unit.forget_failure()
    return b""


# ---- the medium ----------------------------------------------------------------------------------------


async def _clear(unit: DirectAccessDevice, operation: Operation) -> None:
    for offset, length in operation.over(unit.blocks * unit.logical_block_length, _ZEROED_AT_ONCE):
        await unit.medium.write_zeroes(offset, length, deallocate=unit.thin)


async def _erase(unit: DirectAccessDevice, operation: Operation) -> None:
    """A block that is deallocated and keeps its room has its old bytes there: it is written, and deallocated again."""
    await _clear(unit, operation)
    if not unit.anchors:
        return
    await unit.medium.flush()
    for offset, length in operation.over(unit.blocks * unit.logical_block_length, _ZEROED_AT_ONCE):
        if await _zero_rooms(unit.medium, offset, length):
            await unit.medium.flush()
            await unit.medium.write_zeroes(offset, length, deallocate=True)


async def _zero_rooms(medium: Medium, offset: int, length: int) -> bool:
    """Whether there were any. All are found before the first is written: a block is told of anew as soon as a part of
    it is written."""
    rooms, end = [], offset + length
    while offset < end:
        for count, status in await medium.status(offset, end - offset):
            if status == ANCHORED:
                rooms += [(at, min(CHUNK, offset + count - at)) for at in range(offset, offset + count, CHUNK)]
            offset += count
    for at, count in rooms:
        await medium.write(at, bytes(count))
    return bool(rooms)


async def _write(unit: DirectAccessDevice, operation: Operation, passes: list[bytes]) -> None:
    size = unit.logical_block_length
    for pattern in passes:
        block = (pattern * (size // len(pattern) + 1))[:size]
        filled = block * (CHUNK // size)
        for offset, length in operation.over(unit.blocks * size, CHUNK):
            await unit.medium.write(offset, filled[:length])
        await unit.medium.flush()


HANDLERS: Handlers = {
    FormatUnit: format_unit,
    SanitizeOverwrite: sanitize_overwrite,
    SanitizeBlockErase: sanitize_block_erase,
    SanitizeCryptographicErase: sanitize_cryptographic_erase,
    SanitizeExitFailureMode: exit_failure_mode,
}
