"""EXTENDED COPY (LID1) and RECEIVE COPY (SPC-4 5.16, 6.4, 6.20 to 6.23): blocks are copied past the initiator.

    parameter list --> CSCD descriptors: which logical units     --> segments: which blocks from where to where
                       each a unit that this nexus can see,
                       ready, and not reserved by another

A designator is looked for among the logical units of the target that the command came through, and nowhere else: what
REPORT LUNS does not list to the nexus cannot be named (CVE-2020-28374 of another target was just that). What has no
room on the host is not read but deallocated, where the destination is thin.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vstore.scsi.block_range import check_range, make_durable, pieces
from vstore.scsi.cdb import Access
from vstore.scsi.commands import (
    ExtendedCopy,
    Read16,
    ReceiveCopyFailureDetails,
    ReceiveCopyOperatingParameters,
    ReceiveCopyStatus,
    Write16,
)
from vstore.scsi.copy_parameters import (
    BlockToBlockSegment,
    CopyFailureDetails,
    CopyHeader,
    CopyOperatingParameters,
    CopyStatus,
    IdentificationCscd,
)
from vstore.scsi.device_server import Handlers, sense_of
from vstore.scsi.direct_access import DirectAccessDevice
from vstore.scsi.field import Field, Position
from vstore.scsi.held_copies import MOST_HELD, Copy
from vstore.scsi.medium import DEALLOCATED
from vstore.scsi.sense import AdditionalSense, CheckCondition, Forwarded, Sense, SenseDataSource, SenseKey
from vstore.scsi.task import ReservationConflict, Status, Task
from vstore.scsi.vpd import designators

MOST_CSCDS, MOST_SEGMENTS = 64, 64
MAXIMUM_SEGMENT_BYTES = 64 << 20
_IDENTIFICATION, _BLOCK_TO_BLOCK = 0xE4, 0x02  # descriptor type codes
_HELD, _NO_IDENTIFIER = (0b00, 0b10), 0b11  # LIST ID USAGE
_GRANULARITY = 9  # log2 of bytes
_LIST_MOST = CopyHeader.length + MOST_CSCDS * IdentificationCscd.length + MOST_SEGMENTS * BlockToBlockSegment.length

_FAILED = Sense(SenseKey.COPY_ABORTED, AdditionalSense.THIRD_PARTY_DEVICE_FAILURE)
_INEXACT = Sense(SenseKey.COPY_ABORTED, AdditionalSense.UNEXPECTED_INEXACT_SEGMENT)


@dataclass(frozen=True, slots=True)
class _Segment:
    """In bytes."""

    source: DirectAccessDevice
    source_at: int
    destination: DirectAccessDevice
    destination_at: int
    length: int


class _Answered(Exception):  # noqa: N818
    """A unit of a segment has answered something other than GOOD. `sense`: none with RESERVATION CONFLICT."""

    def __init__(self, forwarded: Forwarded, sense: Sense | None) -> None:
        super().__init__()
        self.forwarded, self.sense = forwarded, sense

    @property
    def told(self) -> Sense:
        """To the initiator, which can do something about a lack of room or a protection: these say it by their own
        name, all else is a failure of the third party (SPC-4 5.16.7.4)."""
        protected = self.sense if self.sense and self.sense.key is SenseKey.DATA_PROTECT else None
        return (protected or _FAILED)._replace(forwarded=self.forwarded)


def _illegal(code: AdditionalSense) -> CheckCondition:
    return CheckCondition(Sense.illegal(code))


def _invalid(at: int, field: Field) -> CheckCondition:
    return CheckCondition(Sense.invalid_field(Position(at + field.byte, field.msb), in_cdb=False))


# ---- EXTENDED COPY -------------------------------------------------------------------------------------


async def extended_copy(unit: DirectAccessDevice, cdb: ExtendedCopy, task: Task) -> bytes:
    """Everything is checked before the first block is moved."""
    if not cdb.parameter_list_length:
        return b""
    if cdb.parameter_list_length < CopyHeader.length:
        raise _illegal(AdditionalSense.PARAMETER_LIST_LENGTH_ERROR)
    data = task.fetch(min(cdb.parameter_list_length, _LIST_MOST))
    header = CopyHeader.parse(data)
    segments_at = _check_header(header, cdb.parameter_list_length)
    _check_identifier(unit, header, task)
    units = [_cscd(data, at, task) for at in range(CopyHeader.length, segments_at, IdentificationCscd.length)]
    end = segments_at + header.segment_descriptor_list_length
    places = range(segments_at, end, BlockToBlockSegment.length)
    segments = [_segment(data, at, number, units, task) for number, at in enumerate(places)]
    copy = Copy()
    if header.list_id_usage in _HELD:
        copy = unit.copies.begin(task.nexus, header.list_identifier)
    try:
        await _copy(segments, copy, task)
    except BaseException:  # aborted, too
        copy.failure = copy.failure or _FAILED._replace(segment=copy.segments)
        raise
    finally:
        copy.running = False
    return b""


def _check_header(header: CopyHeader, length: int) -> int:
    """Where the segment descriptors begin."""
    cscds, segments = header.cscd_descriptor_list_length, header.segment_descriptor_list_length
    if cscds > MOST_CSCDS * IdentificationCscd.length:
        raise _illegal(AdditionalSense.TOO_MANY_TARGET_DESCRIPTORS)
    if segments > MOST_SEGMENTS * BlockToBlockSegment.length:
        raise _illegal(AdditionalSense.TOO_MANY_SEGMENT_DESCRIPTORS)
    if header.inline_data_length:
        raise _illegal(AdditionalSense.INLINE_DATA_LENGTH_EXCEEDED)
    if cscds % IdentificationCscd.length:
        raise _invalid(0, CopyHeader.cscd_descriptor_list_length)
    if segments % BlockToBlockSegment.length:
        raise _invalid(0, CopyHeader.segment_descriptor_list_length)
    if CopyHeader.length + cscds + segments > length:
        raise _illegal(AdditionalSense.PARAMETER_LIST_LENGTH_ERROR)
    return CopyHeader.length + cscds


def _check_identifier(unit: DirectAccessDevice, header: CopyHeader, task: Task) -> None:
    """SPC-4 table 105: an identifier is zero where there is none, and is not that of a copy that goes on."""
    if header.list_id_usage == _NO_IDENTIFIER:
        if header.list_identifier:
            raise _invalid(0, CopyHeader.list_identifier)
    elif header.list_id_usage not in _HELD:
        raise _invalid(0, CopyHeader.list_id_usage)
    else:
        before = unit.copies.find(task.nexus, header.list_identifier)
        if before and before.running:
            raise _illegal(AdditionalSense.OPERATION_IN_PROGRESS)


def _cscd(data: bytes, at: int, task: Task) -> DirectAccessDevice:
    """The logical unit that a descriptor means, if the nexus can see it."""
    kind = IdentificationCscd
    cscd = kind.parse(data[at:])
    if cscd.descriptor_type_code != _IDENTIFICATION:
        raise _illegal(AdditionalSense.UNSUPPORTED_TARGET_DESCRIPTOR_TYPE_CODE)
    for name in ("lu_id_type", "nul", "peripheral_device_type", "association"):
        if dict(cscd.items())[name]:
            raise _invalid(at, kind.fields[name])
    if cscd.designator_length > 20:
        raise _invalid(at, kind.designator_length)
    wanted = (cscd.code_set, cscd.designator_type, data[at + 8 : at + 8 + cscd.designator_length])
    units: Sequence[DirectAccessDevice] = task.inventory.logical_units() if task.inventory else []
    unit = next((unit for unit in units if wanted in designators(unit)), None)
    if unit is None:
        raise CheckCondition(Sense(SenseKey.COPY_ABORTED, AdditionalSense.COPY_TARGET_DEVICE_NOT_REACHABLE))
    if cscd.disk_block_length != unit.logical_block_length:
        raise _invalid(at, kind.disk_block_length)
    return unit


def _segment(data: bytes, at: int, number: int, units: Sequence[DirectAccessDevice], task: Task) -> _Segment:
    kind = BlockToBlockSegment
    segment = kind.parse(data[at:])
    if segment.descriptor_type_code != _BLOCK_TO_BLOCK:
        raise _illegal(AdditionalSense.UNSUPPORTED_SEGMENT_DESCRIPTOR_TYPE_CODE)
    if segment.descriptor_length != kind.length - 4:
        raise _invalid(at, kind.descriptor_length)
    if segment.source_cscd_descriptor_id >= len(units):
        raise _invalid(at, kind.source_cscd_descriptor_id)
    if segment.destination_cscd_descriptor_id >= len(units):
        raise _invalid(at, kind.destination_cscd_descriptor_id)
    source, destination = units[segment.source_cscd_descriptor_id], units[segment.destination_cscd_descriptor_id]
    counted = destination if segment.dc else source
    length = segment.block_device_number_of_blocks * counted.logical_block_length
    if length > MAXIMUM_SEGMENT_BYTES:
        raise _invalid(at, kind.block_device_number_of_blocks)
    if length % source.logical_block_length or length % destination.logical_block_length:
        raise CheckCondition(_INEXACT._replace(segment=number))
    check_range(source, segment.source_lba, length // source.logical_block_length)
    check_range(destination, segment.destination_lba, length // destination.logical_block_length)
    source.admit(Read16(), task)
    destination.admit(Write16(), task)
    return _Segment(
        source,
        segment.source_lba * source.logical_block_length,
        destination,
        segment.destination_lba * destination.logical_block_length,
        length,
    )


async def _copy(segments: Sequence[_Segment], copy: Copy, task: Task) -> None:
    """CheckCondition with COPY ABORTED when a unit fails; what was moved before stays."""
    try:
        for segment in segments:
            with segment.destination.writing():
                await _copy_segment(segment, copy, task)
                with _writing(segment):
                    await make_durable(segment.destination)
            copy.segments += 1
    except _Answered as error:
        copy.failure = error.told._replace(segment=copy.segments)
        raise CheckCondition(copy.failure) from error


@contextlib.contextmanager
def _answering(unit: DirectAccessDevice, source: SenseDataSource, access: Access) -> Iterator[None]:
    """Inside, this unit is used. Raises _Answered."""
    try:
        yield
    except ReservationConflict as error:
        raise _Answered(Forwarded(source, Status.RESERVATION_CONFLICT, b""), None) from error
    except (OSError, CheckCondition) as error:
        sense = error.sense if isinstance(error, CheckCondition) else sense_of(error, access)
        told = sense.encode(descriptor=unit.descriptor_sense)
        raise _Answered(Forwarded(source, Status.CHECK_CONDITION, told), sense) from error


def _reading(segment: _Segment) -> contextlib.AbstractContextManager[None]:
    return _answering(segment.source, SenseDataSource.COPY_SOURCE, Access.READ)


def _writing(segment: _Segment) -> contextlib.AbstractContextManager[None]:
    return _answering(segment.destination, SenseDataSource.COPY_DESTINATION, Access.WRITE)


async def _copy_segment(segment: _Segment, copy: Copy, task: Task) -> None:
    """Piece by piece; from the end, where the destination overlaps what is still to be read. Each is admitted anew: a
    nexus that lost its registration meanwhile must not go on writing to a unit that the command did not come to."""
    steps = list(
        pieces(
            segment.source,
            segment.source_at // segment.source.logical_block_length,
            segment.length // segment.source.logical_block_length,
        )
    )
    if segment.source is segment.destination and segment.source_at < segment.destination_at:
        steps.reverse()
    for offset, length in steps:
        with _reading(segment):
            segment.source.admit(Read16(), task)
        with _writing(segment):
            segment.destination.admit(Write16(), task)
        with segment.destination.receiving():
            await _copy_piece(segment, offset, length)
        copy.moved += length


async def _copy_piece(segment: _Segment, offset: int, length: int) -> None:
    source, destination = segment.source, segment.destination
    to = segment.destination_at + offset - segment.source_at
    data: bytes | None = None
    with _reading(segment):
        await source.mend(range(offset, offset + length), only_read=True)
        rows = await source.medium.status(offset, length) if destination.thin else []
        if rows[:1] != [(length, DEALLOCATED)]:
            data = await source.medium.read(offset, length)
    with _writing(segment):
        await destination.mend(range(to, to + length), only_read=False)
        if data is None:
            await destination.medium.write_zeroes(to, length, deallocate=True)
        else:
            await destination.medium.write(to, data)


# ---- RECEIVE COPY --------------------------------------------------------------------------------------

_IN_PROGRESS, _DONE, _DONE_WITH_ERRORS = 0x00, 0x01, 0x02  # COPY MANAGER STATUS
_KIBIBYTES = 0x01  # TRANSFER COUNT UNITS


async def receive_copy_status(unit: DirectAccessDevice, cdb: ReceiveCopyStatus, task: Task) -> bytes:
    """Of a copy that has ended it is told once."""
    copy = unit.copies.find(task.nexus, cdb.list_identifier)
    if copy is None:
        raise cdb.invalid(ReceiveCopyStatus.list_identifier)
    status = _IN_PROGRESS if copy.running else _DONE_WITH_ERRORS if copy.failure else _DONE
    if not copy.running and not copy.failure:
        unit.copies.discard(task.nexus, cdb.list_identifier)
    return CopyStatus.of(
        available_data=CopyStatus.length - 4,
        copy_manager_status=status,
        segments_processed=copy.segments,
        transfer_count_units=_KIBIBYTES,
        transfer_count=copy.moved >> 10,
    ).encode()


async def receive_copy_operating_parameters(
    _: DirectAccessDevice, __: ReceiveCopyOperatingParameters, ___: Task
) -> bytes:
    codes = bytes([_BLOCK_TO_BLOCK, _IDENTIFICATION])
    return (
        CopyOperatingParameters.of(
            available_data=CopyOperatingParameters.length - 4 + len(codes),
            snlid=1,
            maximum_cscd_descriptor_count=MOST_CSCDS,
            maximum_segment_descriptor_count=MOST_SEGMENTS,
            maximum_descriptor_list_length=_LIST_MOST - CopyHeader.length,
            maximum_segment_length=MAXIMUM_SEGMENT_BYTES,
            held_data_limit=MOST_HELD * CopyFailureDetails.length,
            total_concurrent_copies=MOST_HELD,
            maximum_concurrent_copies=MOST_HELD,
            data_segment_granularity=_GRANULARITY,
            implemented_descriptor_list_length=len(codes),
        ).encode()
        + codes
    )


async def receive_copy_failure_details(unit: DirectAccessDevice, cdb: ReceiveCopyFailureDetails, task: Task) -> bytes:
    """Of a copy that failed, once; no details, of any other."""
    copy = unit.copies.find(task.nexus, cdb.list_identifier)
    if copy is None or copy.failure is None:
        return bytes(4)
    unit.copies.discard(task.nexus, cdb.list_identifier)
    sense = copy.failure.encode(descriptor=unit.descriptor_sense)
    return (
        CopyFailureDetails.of(
            available_data=CopyFailureDetails.length - 4 + len(sense),
            extended_copy_command_status=Status.CHECK_CONDITION,
            sense_data_length=len(sense),
        ).encode()
        + sense
    )


HANDLERS: Handlers = {
    ExtendedCopy: extended_copy,
    ReceiveCopyStatus: receive_copy_status,
    ReceiveCopyOperatingParameters: receive_copy_operating_parameters,
    ReceiveCopyFailureDetails: receive_copy_failure_details,
}
