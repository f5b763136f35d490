"""A device server whose unit can be reserved, by RESERVE (SPC-2) or persistently: who is shut out, what changes that.

The two ways exclude each other: while a nexus holds the unit by RESERVE every PERSISTENT RESERVE command conflicts, and
while one is registered RESERVE and RELEASE do, with the exceptions of SPC-4 5.12.3 (spc.py).

    change_reservations(plan) --> plan(state) --> record.save --> state is true --> unit attentions, gates
                                  one at a time    APTPL only      never half
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Collection

from vstore.scsi.background import Background
from vstore.scsi.cdb import Beside, Cdb
from vstore.scsi.device_server import DeviceServer
from vstore.scsi.kept_state import State
from vstore.scsi.persistent_reservations import Change, PersistentReservations
from vstore.scsi.reservation import Reservation
from vstore.scsi.reservation_record import encoded, restored
from vstore.scsi.sense import AdditionalSense, CheckCondition, Sense, SenseKey
from vstore.scsi.task import ITNexus, ReservationConflict, Task
from vstore.scsi.transport_id import NexusName

# Ends the commands of these nexuses, all but the task, and returns the nexuses that lost some.
Abort = Callable[[Collection[NexusName], Task | None], Awaitable[Collection[ITNexus]]]

SECTION = "persistent reservations"
LOST = Sense(SenseKey.DATA_PROTECT, AdditionalSense.PERSISTENT_RESERVATION_INFORMATION_LOST)


class Reservable(DeviceServer):
    """`ports`: relative identifiers of the target ports that lead to the unit."""

    def __init__(self, state: State | None = None) -> None:
        super().__init__()
        self.record = record = state.section(SECTION) if state else None
        self.reservation = Reservation()
        self.persistent: PersistentReservations = restored(record)
        self.background = Background()
        self.ports: set[int] = set()
        self._aborts: list[Abort] = []
        self._changing = asyncio.Lock()

    def add_port(self, port: int) -> None:
        """One more target port leads to the unit, as VPD page 88h and MULTIP say: those who know it are told."""
        if port not in self.ports:
            self.ports.add(port)
            self.establish(AdditionalSense.INQUIRY_DATA_HAS_CHANGED)

    def remove_port(self, port: int) -> None:
        if port in self.ports:
            self.ports.remove(port)
            self.establish(AdditionalSense.INQUIRY_DATA_HAS_CHANGED)

    def check_reservations(self, cdb: Cdb, nexus: ITNexus) -> None:
        """Raises ReservationConflict, and CheckCondition while nobody knows what is reserved."""
        if self._conflicts(cdb, nexus):
            raise ReservationConflict
        if self.persistent.withholds(cdb.beside_reservation()):
            raise CheckCondition(LOST)

    def _conflicts(self, cdb: Cdb, nexus: ITNexus) -> bool:
        if not cdb.passes_reservation and self.reservation.excludes(nexus):
            return True
        return self.persistent.conflicts(nexus.identity, cdb.beside_reservation())

    def _report(self, task: Task, row: type[Cdb] | None) -> None:
        """RESERVATION CONFLICT goes before all unit attentions but those of resets, and they stay (SAM-5 5.3.3)."""
        if row and not self.attentions.none_wait(task.nexus) and not self.attentions.reset_waits(task.nexus):
            with contextlib.suppress(CheckCondition):  # what cannot be decoded is refused after the unit attention
                if self._conflicts(row.decode(task.cdb), task.nexus):
                    raise ReservationConflict
        super()._report(task, row)

    def known_persistent(self) -> PersistentReservations:
        """Raises CheckCondition where the state is lost."""
        if self.persistent.lost:
            raise CheckCondition(LOST)
        return self.persistent

    def shuts_out(self, nexus: ITNexus, beside: Beside) -> bool:
        """Whether such a command of this nexus is not to be served now; for the data plane's gates."""
        state = self.persistent
        return self.reservation.excludes(nexus) or state.withholds(beside) or state.conflicts(nexus.identity, beside)

    async def change_reservations(self, plan: Callable[[PersistentReservations], Change]) -> Change:
        """Makes true what `plan` makes of the state. Raises what `plan` does, and OSError: then nothing has changed."""
        work = self._change(plan)
        return await (self.background.finish(work) if self.record else work)

    async def _change(self, plan: Callable[[PersistentReservations], Change]) -> Change:
        async with self._changing:
            change = plan(self.persistent)
            if self.record and (self.persistent.kept or change.state.kept):
                await self.record.save(encoded(change.state))
            self.persistent = change.state
            for nexus in self.attentions.nexuses():
                for name, code in change.told:
                    if nexus.identity == name:
                        self.attentions.establish(code, [nexus])
            self.changed()
            return change

    def on_abort(self, abort: Abort) -> None:
        """For those who have tasks of this unit under way: how PREEMPT AND ABORT ends them."""
        self._aborts.append(abort)

    def forget_abort(self, abort: Abort) -> None:
        self._aborts.remove(abort)

    async def abort(self, nexuses: Collection[NexusName], but: Task | None) -> None:
        """Returns when no command of these nexuses is under way any more, `but` that of the task."""
        for abort in list(self._aborts):
            cleared = await abort(nexuses, but)
            others = [nexus for nexus in cleared if but is None or nexus is not but.nexus]
            self.attentions.establish(AdditionalSense.COMMANDS_CLEARED_BY_ANOTHER_INITIATOR, others)
        self.changed()
