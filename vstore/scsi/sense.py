"""Sense data: why a command ended as it did, in fixed and in descriptor format (SPC-4 4.5).

A handler that cannot go on raises `CheckCondition(Sense(...))`; one place, the device server, turns it into a response.
"""

from enum import Enum, IntEnum
from typing import NamedTuple, Self

from vstore.scsi.field import Layout, Position, bit, bits, u8, u16, u32, u64


class SenseKey(IntEnum):
    NO_SENSE = 0x0
    RECOVERED_ERROR = 0x1
    NOT_READY = 0x2
    MEDIUM_ERROR = 0x3
    HARDWARE_ERROR = 0x4
    ILLEGAL_REQUEST = 0x5
    UNIT_ATTENTION = 0x6
    DATA_PROTECT = 0x7
    COPY_ABORTED = 0xA
    ABORTED_COMMAND = 0xB
    MISCOMPARE = 0xE


class AdditionalSense(Enum):
    """Additional sense code and qualifier as one number, each under the name SPC-4 annex F prints."""

    NO_ADDITIONAL_SENSE_INFORMATION = 0x0000
    OPERATION_IN_PROGRESS = 0x0016
    LOGICAL_UNIT_NOT_READY_INITIALIZING_COMMAND_REQUIRED = 0x0402
    LOGICAL_UNIT_NOT_READY_FORMAT_IN_PROGRESS = 0x0404
    LOGICAL_UNIT_NOT_READY_SELF_TEST_IN_PROGRESS = 0x0409
    LOGICAL_UNIT_NOT_READY_SANITIZE_IN_PROGRESS = 0x041B
    WRITE_ERROR = 0x0C00
    THIRD_PARTY_DEVICE_FAILURE = 0x0D01
    COPY_TARGET_DEVICE_NOT_REACHABLE = 0x0D02
    INVALID_FIELD_IN_COMMAND_INFORMATION_UNIT = 0x0E03
    UNRECOVERED_READ_ERROR = 0x1100
    PARAMETER_LIST_LENGTH_ERROR = 0x1A00
    MISCOMPARE_DURING_VERIFY_OPERATION = 0x1D00
    INVALID_COMMAND_OPERATION_CODE = 0x2000
    LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE = 0x2100
    INVALID_FIELD_IN_CDB = 0x2400
    LOGICAL_UNIT_NOT_SUPPORTED = 0x2500
    INVALID_FIELD_IN_PARAMETER_LIST = 0x2600
    INVALID_RELEASE_OF_PERSISTENT_RESERVATION = 0x2604
    TOO_MANY_TARGET_DESCRIPTORS = 0x2606
    UNSUPPORTED_TARGET_DESCRIPTOR_TYPE_CODE = 0x2607
    TOO_MANY_SEGMENT_DESCRIPTORS = 0x2608
    UNSUPPORTED_SEGMENT_DESCRIPTOR_TYPE_CODE = 0x2609
    UNEXPECTED_INEXACT_SEGMENT = 0x260A
    INLINE_DATA_LENGTH_EXCEEDED = 0x260B
    WRITE_PROTECTED = 0x2700
    LOGICAL_UNIT_SOFTWARE_WRITE_PROTECTED = 0x2702
    SPACE_ALLOCATION_FAILED_WRITE_PROTECT = 0x2707
    POWER_ON_OCCURRED = 0x2901
    SCSI_BUS_RESET_OCCURRED = 0x2902
    BUS_DEVICE_RESET_FUNCTION_OCCURRED = 0x2903
    I_T_NEXUS_LOSS_OCCURRED = 0x2907
    MODE_PARAMETERS_CHANGED = 0x2A01
    LOG_PARAMETERS_CHANGED = 0x2A02
    RESERVATIONS_PREEMPTED = 0x2A03
    RESERVATIONS_RELEASED = 0x2A04
    REGISTRATIONS_PREEMPTED = 0x2A05
    CAPACITY_DATA_HAS_CHANGED = 0x2A09
    TIMESTAMP_CHANGED = 0x2A10
    COMMAND_SEQUENCE_ERROR = 0x2C00
    COMMANDS_CLEARED_BY_ANOTHER_INITIATOR = 0x2F00
    MEDIUM_FORMAT_CORRUPTED = 0x3100
    FORMAT_COMMAND_FAILED = 0x3101
    SANITIZE_COMMAND_FAILED = 0x3103
    THIN_PROVISIONING_SOFT_THRESHOLD_REACHED = 0x3807
    SAVING_PARAMETERS_NOT_SUPPORTED = 0x3900
    LOGICAL_UNIT_FAILED_SELF_TEST = 0x3E03
    INQUIRY_DATA_HAS_CHANGED = 0x3F03
    DEVICE_IDENTIFIER_CHANGED = 0x3F05
    REPORTED_LUNS_DATA_HAS_CHANGED = 0x3F0E
    INTERNAL_TARGET_FAILURE = 0x4400
    PERSISTENT_RESERVATION_INFORMATION_LOST = 0x4401
    INVALID_MESSAGE_ERROR = 0x4900
    INSUFFICIENT_REGISTRATION_RESOURCES = 0x5504

    @property
    def asc(self) -> int:
        return self.value >> 8

    @property
    def ascq(self) -> int:
        return self.value & 0xFF


class FixedSense(Layout, length=18):
    """SPC-4 4.5.3."""

    valid = bit(0, 7)
    response_code = bits(0, 6, 0)
    sense_key = bits(2, 3, 0)
    information = u32(3)
    additional_sense_length = u8(7)
    command_specific_information = u32(8)
    additional_sense_code = u16(12)  # with its qualifier
    sense_key_specific = bits(15, 7, 0)
    field_pointer = u16(16)


class DescriptorSense(Layout, length=8):
    """The header of SPC-4 4.5.2."""

    response_code = bits(0, 6, 0)
    sense_key = bits(1, 3, 0)
    additional_sense_code = u16(2)
    additional_sense_length = u8(7)


class InformationDescriptor(Layout, length=12):
    """SPC-4 4.5.2.2."""

    descriptor_type = u8(0)
    additional_length = u8(1)
    valid = bit(2, 7)
    information = u64(4)


class CommandSpecificDescriptor(Layout, length=12):
    """SPC-4 4.5.2.3, as EXTENDED COPY fills it (5.16.7.4): the third and fourth byte of its field."""

    descriptor_type = u8(0)
    additional_length = u8(1)
    segment_number = u16(6)


class ForwardedSenseHeader(Layout, length=4):
    """SPC-4 4.5.2.7; the sense data follow."""

    descriptor_type = u8(0)
    additional_length = u8(1)
    fsdt = bit(2, 7)
    sense_data_source = bits(2, 3, 0)
    forwarded_status = u8(3)


class SenseKeySpecificDescriptor(Layout, length=8):
    """SPC-4 4.5.2.4."""

    descriptor_type = u8(0)
    additional_length = u8(1)
    sense_key_specific = u8(4)
    field_pointer = u16(5)


class FieldPointer(NamedTuple):
    """The field in error, of the CDB or of the parameter list (SPC-4 4.5.2.4.2)."""

    position: Position
    in_cdb: bool

    @property
    def flags(self) -> int:
        """SKSV, C/D, BPV and BIT POINTER."""
        return 0x80 | self.in_cdb << 6 | 0x08 | self.position.bit

    @property
    def word(self) -> int:
        return self.position.byte


class Progress(NamedTuple):
    """How much of a long operation is done, in 65536ths (SPC-4 4.5.2.4.4)."""

    word: int

    @property
    def flags(self) -> int:
        """SKSV."""
        return 0x80


class SenseDataSource(IntEnum):
    """Of an EXTENDED COPY: which unit has answered (SPC-4 4.5.2.7)."""

    COPY_SOURCE = 1
    COPY_DESTINATION = 2


class Forwarded(NamedTuple):
    """What a unit of an EXTENDED COPY answered to the copy manager instead of GOOD; no sense data with a conflict."""

    source: SenseDataSource
    status: int
    sense: bytes


class Sense(NamedTuple):
    """One condition. `information` is an LBA, or a byte offset after MISCOMPARE; None: INFORMATION is not valid.
    `segment`: of an EXTENDED COPY, the one at which it ended, from zero on; `forwarded`: what ended it there."""

    key: SenseKey
    code: AdditionalSense
    information: int | None = None
    pointer: FieldPointer | Progress | None = None
    deferred: bool = False
    segment: int | None = None
    forwarded: Forwarded | None = None

    @classmethod
    def illegal(cls, code: AdditionalSense, information: int | None = None) -> Self:
        return cls(SenseKey.ILLEGAL_REQUEST, code, information)

    @classmethod
    def attention(cls, code: AdditionalSense) -> Self:
        return cls(SenseKey.UNIT_ATTENTION, code)

    @classmethod
    def invalid_field(cls, position: Position, *, in_cdb: bool) -> Self:
        code = AdditionalSense.INVALID_FIELD_IN_CDB if in_cdb else AdditionalSense.INVALID_FIELD_IN_PARAMETER_LIST
        return cls(SenseKey.ILLEGAL_REQUEST, code, pointer=FieldPointer(position, in_cdb))

    def as_deferred(self) -> "Sense":
        return self._replace(deferred=True)

    def encode(self, *, descriptor: bool) -> bytes:
        return self._descriptor() if descriptor else self._fixed()

    def _fixed(self) -> bytes:
        # INFORMATION holds four bytes here; a value that does not fit is not valid (SPC-4 4.5.3).
        fits = self.information is not None and self.information <= 0xFFFF_FFFF
        answered = bytes([self.forwarded.status]) + self.forwarded.sense if self.forwarded else b""
        head = FixedSense.of(
            valid=int(fits),
            response_code=0x70 | self.deferred,
            sense_key=self.key,
            information=self.information if self.information is not None and fits else 0,
            additional_sense_length=FixedSense.length - 8 + len(answered),
            command_specific_information=self._of_copy(),
            additional_sense_code=self.code.value,
            sense_key_specific=self.pointer.flags if self.pointer else 0,
            field_pointer=self.pointer.word if self.pointer else 0,
        ).encode()
        return head + answered

    def _of_copy(self) -> int:
        """SPC-4 5.16.7.4: where in these sense data stands what the source answered, in one byte, and the destination,
        in another; then the segment, in two."""
        places = 0
        if self.forwarded:
            places = FixedSense.length << (24 if self.forwarded.source is SenseDataSource.COPY_SOURCE else 16)
        return places | (self.segment or 0)

    def _descriptor(self) -> bytes:
        descriptors = self._information() + self._command_specific() + self._sense_key_specific() + self._forwarded()
        header = DescriptorSense.of(
            response_code=0x72 | self.deferred,
            sense_key=self.key,
            additional_sense_code=self.code.value,
            additional_sense_length=len(descriptors),
        )
        return header.encode() + descriptors

    def _information(self) -> bytes:
        if self.information is None:
            return b""
        return InformationDescriptor.of(
            descriptor_type=0, additional_length=0x0A, valid=1, information=self.information
        ).encode()

    def _command_specific(self) -> bytes:
        if self.segment is None:
            return b""
        return CommandSpecificDescriptor.of(
            descriptor_type=1, additional_length=0x0A, segment_number=self.segment
        ).encode()

    def _sense_key_specific(self) -> bytes:
        if self.pointer is None:
            return b""
        return SenseKeySpecificDescriptor.of(
            descriptor_type=2,
            additional_length=6,
            sense_key_specific=self.pointer.flags,
            field_pointer=self.pointer.word,
        ).encode()

    def _forwarded(self) -> bytes:
        if self.forwarded is None:
            return b""
        header = ForwardedSenseHeader.of(
            descriptor_type=0x0C,
            additional_length=ForwardedSenseHeader.length - 2 + len(self.forwarded.sense),
            sense_data_source=self.forwarded.source,
            forwarded_status=self.forwarded.status,
        )
        return header.encode() + self.forwarded.sense


NO_SENSE = Sense(SenseKey.NO_SENSE, AdditionalSense.NO_ADDITIONAL_SENSE_INFORMATION)
NOT_STARTED = Sense(SenseKey.NOT_READY, AdditionalSense.LOGICAL_UNIT_NOT_READY_INITIALIZING_COMMAND_REQUIRED)
WRITE_PROTECTED = Sense(SenseKey.DATA_PROTECT, AdditionalSense.WRITE_PROTECTED)
SOFTWARE_WRITE_PROTECTED = Sense(SenseKey.DATA_PROTECT, AdditionalSense.LOGICAL_UNIT_SOFTWARE_WRITE_PROTECTED)


class CheckCondition(Exception):  # noqa: N818
    """The command ends with CHECK CONDITION status and this sense data."""

    def __init__(self, sense: Sense) -> None:
        super().__init__(f"{sense.key.name} {sense.code.name}")
        self.sense = sense
