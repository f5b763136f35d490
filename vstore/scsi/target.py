"""A SCSI target device: which logical unit a LUN means, who may ask, and what a task management function does."""

from collections.abc import Coroutine, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from vstore.scsi.device_server import DeviceServer
from vstore.scsi.logical_unit import LogicalUnit, NoLogicalUnit, ReportLunsWellKnown, ResetCause
from vstore.scsi.lun import MAXIMUM_LUN, WELL_KNOWN_REPORT_LUNS, InvalidLun, LunAddress, parse_lun
from vstore.scsi.sense import AdditionalSense
from vstore.scsi.task import ITNexus, Response, Task
from vstore.scsi.task_management import ServiceResponse, TaskManagementFunction, affects

__all__ = [
    "WELL_KNOWN_REPORT_LUNS",
    "InvalidLun",
    "LunAddress",
    "ServiceResponse",
    "Target",
    "TaskManagementFunction",
    "affects",
    "parse_lun",
]

_NO_LOGICAL_UNIT = NoLogicalUnit()


class Target:
    """A map of LUNs. A unit may stand in several targets; a nexus that is added is added to all units here."""

    def __init__(self) -> None:
        self._luns: dict[int, LogicalUnit] = {}
        self._nexuses: list[ITNexus] = []
        self._well_known = ReportLunsWellKnown()

    @property
    def luns(self) -> Mapping[int, LogicalUnit]:
        return MappingProxyType(self._luns)

    def add(self, lun: int, unit: LogicalUnit) -> None:
        """The others tell their nexuses of the change. ValueError when the LUN is taken or out of range."""
        if not 0 <= lun <= MAXIMUM_LUN:
            raise ValueError(f"LUN {lun} is out of range; it must be 0 to {MAXIMUM_LUN}")
        if lun in self._luns:
            raise ValueError(f"LUN {lun} is in use already")
        self._tell_of_change()
        self._luns[lun] = unit
        for nexus in self._nexuses:
            unit.add_nexus(nexus)

    def remove(self, lun: int) -> LogicalUnit:
        """KeyError when there is none."""
        unit = self._luns.pop(lun)
        for nexus in self._nexuses:
            unit.remove_nexus(nexus)
        self._tell_of_change()
        return unit

    def _tell_of_change(self) -> None:
        """SPC-4 6.33.1: every nexus, through every unit that it can reach here."""
        for unit in self._units():
            unit.attentions.establish(AdditionalSense.REPORTED_LUNS_DATA_HAS_CHANGED, self._nexuses)
            unit.changed()

    def _units(self) -> Iterable[DeviceServer]:
        return [*self._luns.values(), self._well_known]

    # ---- nexuses ----------------------------------------------------------------------------------------

    def add_nexus(self, nexus: ITNexus) -> None:
        if nexus not in self._nexuses:
            self._nexuses.append(nexus)
            for unit in self._units():
                unit.add_nexus(nexus)

    def remove_nexus(self, nexus: ITNexus) -> None:
        if nexus in self._nexuses:
            self._nexuses.remove(nexus)
            for unit in self._units():
                unit.remove_nexus(nexus)

    # ---- tasks ------------------------------------------------------------------------------------------

    def unit(self, lun: int) -> LogicalUnit | NoLogicalUnit | ReportLunsWellKnown:
        if lun == WELL_KNOWN_REPORT_LUNS:
            return self._well_known
        return self._luns.get(lun, _NO_LOGICAL_UNIT)

    def execute(self, task: Task) -> Coroutine[Any, Any, Response]:
        """Await it: the response. Never raises but CancelledError."""
        task.inventory = self
        return self.unit(task.lun).execute(task)

    def reported_luns(self) -> Sequence[int]:
        return sorted(self._luns)

    def luns_reported(self, nexus: ITNexus) -> None:
        for unit in self._units():
            unit.clear_attention(AdditionalSense.REPORTED_LUNS_DATA_HAS_CHANGED, nexus)

    # ---- task management --------------------------------------------------------------------------------

    def manage(
        self, function: TaskManagementFunction, nexus: ITNexus, lun: int, affected: Sequence[Task] = ()
    ) -> ServiceResponse:
        """What to do and to answer once the transport has ended (or, for a query, found) the affected tasks."""
        if function is TaskManagementFunction.I_T_NEXUS_RESET:
            for disk in self._luns.values():
                disk.reset(ResetCause.I_T_NEXUS_LOSS, nexus)
            return ServiceResponse.FUNCTION_COMPLETE
        unit = self.unit(lun)
        if isinstance(unit, NoLogicalUnit):
            return ServiceResponse.INCORRECT_LOGICAL_UNIT_NUMBER
        if function is TaskManagementFunction.CLEAR_ACA:
            return ServiceResponse.FUNCTION_REJECTED  # NormACA is 0
        if function.queries:
            return ServiceResponse.FUNCTION_SUCCEEDED if affected else ServiceResponse.FUNCTION_COMPLETE
        if function is TaskManagementFunction.CLEAR_TASK_SET:
            # SAM-5 7.5: those whose commands another one cleared are told.
            others = {task.nexus for task in affected} - {nexus}
            unit.attentions.establish(AdditionalSense.COMMANDS_CLEARED_BY_ANOTHER_INITIATOR, others)
            unit.changed()
        if function is TaskManagementFunction.LOGICAL_UNIT_RESET and isinstance(unit, LogicalUnit):
            unit.reset(ResetCause.LOGICAL_UNIT_RESET)
        return ServiceResponse.FUNCTION_COMPLETE
