"""The three kinds of logical unit that a task can meet, each told by the commands that it answers.

LogicalUnit           a disk
ReportLunsWellKnown   the REPORT LUNS well known logical unit of a target
NoLogicalUnit         what answers at an address where nothing is: it is a device server too, not a special case
"""

from typing import ClassVar

from vstore.scsi import (
    atomic,
    diagnostics,
    erasure,
    extended_copy,
    identifying_information,
    logs,
    modes,
    persistent_reserve_in,
    persistent_reserve_out,
    provisioning,
    sbc,
    spc,
    target_ports,
    timestamp,
    verify,
)
from vstore.scsi.commands import Inquiry, ReportLuns, RequestSense
from vstore.scsi.device_server import DeviceServer, Handlers
from vstore.scsi.direct_access import DirectAccessDevice, ResetCause
from vstore.scsi.fast_path import FastPath
from vstore.scsi.identity import Identity
from vstore.scsi.sense import NO_SENSE, AdditionalSense, CheckCondition, Sense
from vstore.scsi.task import Task
from vstore.scsi.vpd import WELL_KNOWN_VPD_PAGES

__all__ = ["FastPath", "Identity", "LogicalUnit", "NoLogicalUnit", "ReportLunsWellKnown", "ResetCause"]


class LogicalUnit(DirectAccessDevice):
    """A disk."""

    handlers: ClassVar[Handlers] = {
        **spc.HANDLERS,
        **modes.HANDLERS,
        **sbc.HANDLERS,
        **verify.HANDLERS,
        **atomic.HANDLERS,
        **provisioning.HANDLERS,
        **erasure.HANDLERS,
        **diagnostics.HANDLERS,
        **timestamp.HANDLERS,
        **logs.HANDLERS,
        **persistent_reserve_in.HANDLERS,
        **persistent_reserve_out.HANDLERS,
        **identifying_information.HANDLERS,
        **target_ports.HANDLERS,
        **extended_copy.HANDLERS,
    }


# ---- the well known logical unit -----------------------------------------------------------------------


_NOBODY = Identity("0")


async def _well_known_inquiry(unit: DeviceServer, cdb: Inquiry, task: Task) -> bytes:
    return spc.inquiry_data(unit, cdb, task, spc.WELL_KNOWN_LOGICAL_UNIT, identity=_NOBODY, pages=WELL_KNOWN_VPD_PAGES)


async def _well_known_sense(unit: DeviceServer, cdb: RequestSense, task: Task) -> bytes:
    return (unit.attention_of(task) or NO_SENSE).encode(descriptor=bool(cdb.desc))


class ReportLunsWellKnown(DeviceServer):
    """SPC-4 8.2."""

    handlers: ClassVar[Handlers] = {
        **spc.EVERY_UNIT,
        Inquiry: _well_known_inquiry,
        RequestSense: _well_known_sense,
    }


# ---- no logical unit -----------------------------------------------------------------------------------

_NOT_SUPPORTED = Sense.illegal(AdditionalSense.LOGICAL_UNIT_NOT_SUPPORTED)


async def _absent_inquiry(unit: DeviceServer, cdb: Inquiry, task: Task) -> bytes:
    return spc.inquiry_data(unit, cdb, task, spc.NOT_CAPABLE, identity=_NOBODY, pages={})


async def _absent_sense(_: DeviceServer, cdb: RequestSense, __: Task) -> bytes:
    return _NOT_SUPPORTED.encode(descriptor=bool(cdb.desc))


class NoLogicalUnit(DeviceServer):
    """SAM-5 5.11, SPC-4 6.6.2: INQUIRY, REQUEST SENSE and REPORT LUNS; all else is LOGICAL UNIT NOT SUPPORTED."""

    handlers: ClassVar[Handlers] = {Inquiry: _absent_inquiry, RequestSense: _absent_sense, ReportLuns: spc.report_luns}

    def unknown(self) -> CheckCondition:
        return CheckCondition(_NOT_SUPPORTED)

    def attention_of(self, task: Task) -> None:
        """Who is not there has nothing to tell, and remembers no nexus."""
