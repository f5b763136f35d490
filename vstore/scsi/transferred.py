"""Which structures a command sends or receives, for the pages of the reference; by its name, or its family's."""

from collections.abc import Mapping

from vstore.scsi import block_parameters as blocks
from vstore.scsi import copy_parameters as copies
from vstore.scsi import pages
from vstore.scsi import persistent_reserve as reserve
from vstore.scsi import report_parameters as reports
from vstore.scsi.field import Layout
from vstore.scsi.log_parameters import LogPageHeader, LogParameterHeader

Structures = tuple[type[Layout], ...]

_BLOCK_DESCRIPTORS = (pages.ShortBlockDescriptor, pages.LongBlockDescriptor)
_MODE_6: Structures = (pages.ModeParameterHeader6, *_BLOCK_DESCRIPTORS)
_MODE_10: Structures = (pages.ModeParameterHeader10, *_BLOCK_DESCRIPTORS)
_IDENTIFYING: Structures = (reports.IdentifyingInformationHeader, reports.IdentifyingInformationDescriptor)

TRANSFERRED: Mapping[str, Structures] = {
    "FORMAT UNIT": (blocks.FormatHeaderShort, blocks.FormatHeaderLong, blocks.InitializationPattern),
    "INQUIRY": (pages.StandardInquiry,),
    "MODE SELECT (6)": _MODE_6,
    "MODE SELECT (10)": _MODE_10,
    "MODE SENSE (6)": _MODE_6,
    "MODE SENSE (10)": _MODE_10,
    "READ CAPACITY (10)": (blocks.Capacity10,),
    "READ CAPACITY (16)": (blocks.Capacity16,),
    "READ DEFECT DATA (10)": (blocks.DefectDataHeader10,),
    "READ DEFECT DATA (12)": (blocks.DefectDataHeader12,),
    "UNMAP": (blocks.UnmapHeader, blocks.UnmapBlockDescriptor),
    "SANITIZE (OVERWRITE)": (blocks.OverwriteParameters,),
    "GET LBA STATUS (16)": (blocks.LbaStatusHeader, blocks.LbaStatusDescriptor),
    "LOG SELECT": (LogPageHeader, LogParameterHeader),
    "LOG SENSE": (LogPageHeader, LogParameterHeader),
    "PERSISTENT RESERVE IN (READ KEYS)": (reserve.KeysHeader,),
    "PERSISTENT RESERVE IN (READ RESERVATION)": (reserve.KeysHeader, reserve.ReservationDescriptor),
    "PERSISTENT RESERVE IN (REPORT CAPABILITIES)": (reserve.Capabilities,),
    "PERSISTENT RESERVE IN (READ FULL STATUS)": (reserve.KeysHeader, reserve.FullStatusDescriptor),
    "PERSISTENT RESERVE OUT": (reserve.BasicParameters,),
    "PERSISTENT RESERVE OUT (REGISTER AND MOVE)": (reserve.MoveParameters,),
    "EXTENDED COPY": (copies.CopyHeader, copies.IdentificationCscd, copies.BlockToBlockSegment),
    "RECEIVE COPY STATUS": (copies.CopyStatus,),
    "RECEIVE COPY OPERATING PARAMETERS": (copies.CopyOperatingParameters,),
    "RECEIVE COPY FAILURE DETAILS": (copies.CopyFailureDetails,),
    "REPORT LUNS": (pages.ReportLunsHeader,),
    "REPORT IDENTIFYING INFORMATION": _IDENTIFYING,
    "REPORT TARGET PORT GROUPS": (
        reports.TargetPortGroupsExtendedHeader,
        reports.TargetPortGroup,
        reports.TargetPortDescriptor,
    ),
    "REPORT SUPPORTED OPERATION CODES": (pages.CommandDescriptor, pages.OneCommand, pages.CommandTimeouts),
    "REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS": (pages.SupportedTaskManagement,),
    "REPORT TIMESTAMP": (pages.Timestamp,),
    "SET TIMESTAMP": (pages.Timestamp,),
    "READ BUFFER (10)": (pages.BufferDescriptor, pages.EchoBufferDescriptor),
}
