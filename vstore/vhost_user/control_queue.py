"""The control queue: task management functions and asynchronous notifications (virtio 1.2, 5.6.6.2).

A task management function concerns commands of both paths, so it first brings them to a stand:

    gate held        the data plane starts nothing more on these units
    fetch all        what the driver made available before the function is now in flight, here or there
    end              slow commands are asked to end; fast ones do so by themselves, in a moment
    reset            the unit hears of it
    answer           after every answer above is on the used ring (5.6.6.2: that order is required)
"""

import asyncio
import functools
import logging
from collections.abc import Callable, Collection, Coroutine
from typing import Any

from vstore.dataplane import Device, Notice
from vstore.record import Record
from vstore.scsi.logical_unit import ResetCause
from vstore.scsi.lun import WELL_KNOWN_REPORT_LUNS, LunAddress, parse_lun
from vstore.scsi.task import ITNexus, Task
from vstore.scsi.task_management import TaskManagementFunction, affects
from vstore.scsi.transport_id import NexusName
from vstore.vhost_user.completions import Completions
from vstore.vhost_user.layout import (
    Code,
    ControlType,
    NotificationRequest,
    NotificationResponse,
    TaskManagementRequest,
    TaskManagementResponse,
)
from vstore.vhost_user.lun_map import LunMap, Mapped
from vstore.vhost_user.request_queue import Command, RequestQueue
from vstore.vhost_user.structure import Structure, StructureError

log = logging.getLogger(__name__)


_F = TaskManagementFunction

# How the commands are answered that a function ends (5.6.6.1.1). The others end none.
ENDED_BY = {
    _F.ABORT_TASK: Code.ABORTED,
    _F.ABORT_TASK_SET: Code.ABORTED,
    _F.CLEAR_TASK_SET: Code.ABORTED,
    _F.I_T_NEXUS_RESET: Code.RESET,
    _F.LOGICAL_UNIT_RESET: Code.RESET,
}
RESETS = {_F.I_T_NEXUS_RESET: ResetCause.I_T_NEXUS_LOSS, _F.LOGICAL_UNIT_RESET: ResetCause.LOGICAL_UNIT_RESET}
REACHES_ALL = (_F.CLEAR_TASK_SET, _F.LOGICAL_UNIT_RESET)  # one task set for all nexuses, whatever port they come by
TAGGED = (_F.ABORT_TASK, _F.QUERY_TASK)


class Order(Record):
    """A task management function with all that it names."""

    function: TaskManagementFunction
    nexus: ITNexus
    address: LunAddress
    tag: int

    def concerns(self, command: Command) -> bool:
        return command.target == self.address.target and affects(
            self.function, self.nexus, self.address.lun, self.tag, command.task
        )


class ControlQueue:
    """`take_notices`: serves at once what the data plane has handed over."""

    def __init__(
        self,
        device: Device,
        luns: LunMap,
        requests: RequestQueue,
        completions: Completions,
        take_notices: Callable[[], None],
    ) -> None:
        self._device = device
        self._luns = luns
        self._requests = requests
        self._completions = completions
        self._take_notices = take_notices
        self._running: set[asyncio.Task[None]] = set()

    def serve(self, notice: Notice, nexus: ITNexus) -> None:
        """Answers the request, now or when it has taken effect."""
        kind = int.from_bytes(notice.header[:4], "little")
        request, response = _FORMS.get(kind, (None, None))
        if request is None or response is None or notice.response_room < response.octets:
            self._completions.break_ring(notice, f"control request {kind} with room for {notice.response_room} bytes")
            return
        try:
            parsed = request.unpack(notice.header[: min(notice.header_length, request.octets)])
        except StructureError as error:
            self._completions.break_ring(notice, error)
            return
        if isinstance(parsed, TaskManagementRequest):
            self._run(self._manage(notice, parsed, nexus))
        elif isinstance(parsed, NotificationRequest):
            # No unit here has asynchronous events: none to tell of, none to subscribe to.
            code, _ = self._find(parsed.lun)
            self._completions.add(notice, NotificationResponse(0, code).pack())

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        running = asyncio.get_running_loop().create_task(work)
        self._running.add(running)
        running.add_done_callback(self._running.discard)

    async def _manage(self, notice: Notice, request: TaskManagementRequest, nexus: ITNexus) -> None:
        code = Code.FAILURE
        try:
            code = await self._perform(request, nexus)
        except Exception:
            log.exception("task management function %d failed", request.function)
        self._completions.add(notice, TaskManagementResponse(code).pack())
        self._completions.flush()

    async def _perform(self, request: TaskManagementRequest, nexus: ITNexus) -> Code:
        code, address = self._find(request.lun)
        if address is None:
            return code
        # SAM-5 7.4: without ACA (NormACA is 0) CLEAR ACA is not supported.
        if request.function not in list(_F) or request.function == _F.CLEAR_ACA:
            return Code.FUNCTION_REJECTED
        order = Order(_F(request.function), nexus, address, request.tag)
        if code is not Code.OK and order.function is not _F.I_T_NEXUS_RESET:
            return code
        units = self._units(order)
        with self._luns.held(units):
            self._device.fetch_all()
            self._take_notices()
            if order.function.queries:
                present = self._busy(order, units) or self._concerned(order)
                return Code.FUNCTION_SUCCEEDED if present else Code.OK
            await self._end(order, units)
            if order.function in REACHES_ALL:
                await self._end_elsewhere(units, nexus)
            for mapped in units if order.function in RESETS else []:
                mapped.unit.reset(RESETS[order.function], nexus)
        return Code.OK

    async def _end(self, order: Order, units: list[Mapped]) -> None:
        code = ENDED_BY[order.function]
        await self._requests.end(self._concerned(order), code)
        while self._busy(order, units):
            await self._luns.drained(units, order.tag if order.function in TAGGED else None)
            # A fast command that failed has come to Python for its sense data.
            self._take_notices()
            await self._requests.end(self._concerned(order), code)

    async def _end_elsewhere(self, units: list[Mapped], nexus: ITNexus) -> None:
        """The commands that have come to these units through other target ports."""
        for mapped in units:
            others = [other.identity for other in mapped.unit.attentions.nexuses() if other is not nexus]
            await mapped.unit.abort(others, None)

    def heed_aborts(self, mapped: Mapped) -> None:
        """What another nexus ends of this unit's commands is ended here too."""
        mapped.aborts = functools.partial(self._abort, mapped)
        mapped.unit.on_abort(mapped.aborts)

    async def _abort(self, mapped: Mapped, nexuses: Collection[NexusName], but: Task | None) -> list[ITNexus]:
        """A vstore.scsi.reservable.Abort."""
        nexus = self._luns.nexus
        if nexus is None or nexus.identity not in nexuses:
            return []
        await asyncio.sleep(0)  # who asks for it may be a command that is being served: first it is put where it waits
        with self._luns.held([mapped]):
            self._device.fetch_all()
            self._take_notices()
            lost = False
            while (commands := self._others(mapped, but)) or self._luns.busy([mapped]):
                lost = True
                await self._requests.end(commands, Code.ABORTED)
                await self._luns.drained([mapped])
                self._take_notices()
        return [nexus] if lost else []

    def _others(self, mapped: Mapped, but: Task | None) -> list[Command]:
        return [command for command in self._requests.of(mapped.target, mapped.lun) if command.task is not but]

    def _busy(self, order: Order, units: list[Mapped]) -> bool:
        return self._luns.busy(units, order.tag if order.function in TAGGED else None)

    def _concerned(self, order: Order) -> list[Command]:
        return [command for command in self._requests.waiting if order.concerns(command)]

    def _units(self, order: Order) -> list[Mapped]:
        if order.function is _F.I_T_NEXUS_RESET:
            return self._luns.of_target(order.address.target)
        if order.address.lun == WELL_KNOWN_REPORT_LUNS:
            return []
        return [self._luns[order.address.target, order.address.lun]]

    def _find(self, lun: bytes) -> tuple[Code, LunAddress | None]:
        """Whom a control request names, and what to answer if there is nobody."""
        try:
            address = parse_lun(lun)
        except ValueError:
            return Code.BAD_TARGET, None
        target = self._luns.targets.get(address.target)
        if target is None:
            return Code.BAD_TARGET, None
        known = address.lun in target.luns or address.lun == WELL_KNOWN_REPORT_LUNS
        return Code.OK if known else Code.INCORRECT_LUN, address


_FORMS: dict[int, tuple[type[Structure], type[Structure]]] = {
    ControlType.TASK_MANAGEMENT: (TaskManagementRequest, TaskManagementResponse),
    ControlType.ASYNCHRONOUS_NOTIFICATION_QUERY: (NotificationRequest, NotificationResponse),
    ControlType.ASYNCHRONOUS_NOTIFICATION_SUBSCRIBE: (NotificationRequest, NotificationResponse),
}
