"""The device clock and its commands (SPC-4 5.2, 6.37, 6.49): the host's clock, until an initiator sets another."""

from vstore.scsi.commands import ReportTimestamp, SetTimestamp
from vstore.scsi.device_server import Handlers
from vstore.scsi.direct_access import DirectAccessDevice
from vstore.scsi.pages import Timestamp
from vstore.scsi.sense import AdditionalSense, CheckCondition, Sense
from vstore.scsi.task import Task


async def report_timestamp(unit: DirectAccessDevice, _: ReportTimestamp, __: Task) -> bytes:
    return Timestamp.of(
        timestamp_parameter_data_length=Timestamp.length - 2,
        timestamp_origin=unit.clock.origin,
        timestamp=unit.clock.now() & Timestamp.timestamp.limit,
    ).encode()


async def set_timestamp(unit: DirectAccessDevice, cdb: SetTimestamp, task: Task) -> bytes:
    """The other nexuses are told. What follows the timestamp is of no meaning."""
    if not cdb.parameter_list_length:
        return b""
    if cdb.parameter_list_length < Timestamp.length:
        raise CheckCondition(Sense.illegal(AdditionalSense.PARAMETER_LIST_LENGTH_ERROR))
    unit.clock.set(Timestamp.parse(task.fetch(Timestamp.length)).timestamp)
    unit.establish(AdditionalSense.TIMESTAMP_CHANGED, but=task.nexus)
    return b""


HANDLERS: Handlers = {ReportTimestamp: report_timestamp, SetTimestamp: set_timestamp}
