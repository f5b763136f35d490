"""A SCSI target device: which logical unit a LUN means, and which there are."""

from collections.abc import Coroutine, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from vstore.scsi.device_server import DeviceServer
from vstore.scsi.logical_unit import LogicalUnit, NoLogicalUnit, ReportLunsWellKnown
from vstore.scsi.lun import MAXIMUM_LUN, WELL_KNOWN_REPORT_LUNS, InvalidLun, LunAddress, parse_lun
from vstore.scsi.sense import AdditionalSense
from vstore.scsi.task import ITNexus, Response, Task
from vstore.scsi.task_management import TaskManagementFunction, affects

__all__ = [
    "WELL_KNOWN_REPORT_LUNS",
    "InvalidLun",
    "LunAddress",
    "Target",
    "TaskManagementFunction",
    "affects",
    "parse_lun",
]

_NO_LOGICAL_UNIT = NoLogicalUnit()


class Target:
    """A map of LUNs. A unit may stand in several targets, and its nexuses are its own affair."""

    def __init__(self, port: int = 1) -> None:
        """`port`: relative identifier of the target port that it is reached by."""
        self._port = port
        self._luns: dict[int, LogicalUnit] = {}
        self._well_known = ReportLunsWellKnown()

    @property
    def luns(self) -> Mapping[int, LogicalUnit]:
        return MappingProxyType(self._luns)

    def add(self, lun: int, unit: LogicalUnit) -> None:
        """The others tell of the change. ValueError when the LUN is taken or out of range."""
        if not 0 <= lun <= MAXIMUM_LUN:
            raise ValueError(f"LUN {lun} is out of range; it must be 0 to {MAXIMUM_LUN}")
        if lun in self._luns:
            raise ValueError(f"LUN {lun} is in use already")
        self._tell_of_change()
        self._luns[lun] = unit

    def remove(self, lun: int) -> LogicalUnit:
        """The others tell of the change. KeyError when there is none."""
        unit = self._luns.pop(lun)
        self._tell_of_change()
        return unit

    def unit(self, lun: int) -> LogicalUnit | NoLogicalUnit | ReportLunsWellKnown:
        """What answers at this LUN; something always does."""
        if lun == WELL_KNOWN_REPORT_LUNS:
            return self._well_known
        return self._luns.get(lun, _NO_LOGICAL_UNIT)

    def execute(self, task: Task) -> Coroutine[Any, Any, Response]:
        """Await it: the response. Raises nothing but CancelledError."""
        task.inventory = self
        return self.unit(task.lun).execute(task)

    def _units(self) -> Iterable[DeviceServer]:
        return [*self._luns.values(), self._well_known]

    def _tell_of_change(self) -> None:
        """SPC-4 6.33.1: through every unit, whichever the initiator asks first."""
        for unit in self._units():
            unit.report_luns_changed(self._port)

    # ---- what REPORT LUNS asks (LunInventory) -----------------------------------------------------------

    def reported_luns(self) -> Sequence[int]:
        return sorted(self._luns)

    def logical_units(self) -> Sequence[LogicalUnit]:
        return [self._luns[lun] for lun in sorted(self._luns)]

    def luns_reported(self, nexus: ITNexus) -> None:
        for unit in self._units():
            unit.clear_attention(AdditionalSense.REPORTED_LUNS_DATA_HAS_CHANGED, nexus)
