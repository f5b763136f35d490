"""REPORT and SET IDENTIFYING INFORMATION (SPC-4 6.34, 6.46): what an administrator calls the unit.

It is kept beside the image. A unit that has nowhere to keep it reports that it has none, and has no command to set it.
"""

from collections.abc import Mapping

from vstore.scsi.commands import ReportIdentifyingInformation, SetIdentifyingInformation
from vstore.scsi.device_server import Handlers
from vstore.scsi.direct_access import DirectAccessDevice
from vstore.scsi.field import Position
from vstore.scsi.report_parameters import IdentifyingInformationDescriptor, IdentifyingInformationHeader
from vstore.scsi.sense import AdditionalSense, CheckCondition, Sense
from vstore.scsi.task import Task

_PERIPHERAL, _TEXT, _SUPPORTED = 0b0000000, 0b0000010, 0b1111111  # IDENTIFYING INFORMATION TYPE
# The longest of each type (SPC-4 table 284), and the name under which it is kept.
_LONGEST: Mapping[int, int] = {_PERIPHERAL: 64, _TEXT: 256}
_NAMES: Mapping[int, str] = {_PERIPHERAL: "peripheral device", _TEXT: "text"}


async def report_identifying_information(unit: DirectAccessDevice, cdb: ReportIdentifyingInformation, _: Task) -> bytes:
    kind = cdb.identifying_information_type
    if kind == _SUPPORTED:
        information = b"".join(
            IdentifyingInformationDescriptor.of(
                identifying_information_type=each, maximum_identifying_information_length=longest
            ).encode()
            for each, longest in _LONGEST.items()
        )
    elif kind in _LONGEST:
        information = unit.identifying_information.values.get(_NAMES[kind], b"")
    else:
        raise cdb.invalid(ReportIdentifyingInformation.identifying_information_type)
    return IdentifyingInformationHeader.of(identifying_information_length=len(information)).encode() + information


async def set_identifying_information(unit: DirectAccessDevice, cdb: SetIdentifyingInformation, task: Task) -> bytes:
    """Of no bytes: there is none any more. The other nexuses are told."""
    kind, length = cdb.identifying_information_type, cdb.parameter_list_length
    if kind not in _LONGEST:
        raise cdb.invalid(SetIdentifyingInformation.identifying_information_type)
    if length > _LONGEST[kind]:
        raise cdb.invalid(SetIdentifyingInformation.parameter_list_length)
    information = task.fetch(length)
    if kind == _TEXT:
        _check_text(information)
    if information == unit.identifying_information.values.get(_NAMES[kind], b""):
        return b""  # nothing of which anybody was to be told
    await unit.identifying_information.save(**{_NAMES[kind]: information})
    unit.establish(AdditionalSense.DEVICE_IDENTIFIER_CHANGED, but=task.nexus)
    return b""


def _check_text(information: bytes) -> None:
    """It is UTF-8, and its last byte, and that alone, is null (SPC-4 4.3.2)."""
    try:
        information.decode()
        wrong = information.find(0) if information else -1
        good = not information or wrong == len(information) - 1
    except UnicodeDecodeError as error:
        wrong, good = error.start, False
    if not good:
        raise CheckCondition(Sense.invalid_field(Position(max(wrong, 0), 7), in_cdb=False))


HANDLERS: Handlers = {
    ReportIdentifyingInformation: report_identifying_information,
    SetIdentifyingInformation: set_identifying_information,
}
