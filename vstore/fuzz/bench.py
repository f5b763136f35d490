"""Executes a case and holds every response to the rules.

A status, never an exception; data-in within the allocation length and the room; data-out never read beyond its end;
well-formed sense data whose field pointer lies in the CDB; no unit attention where the data plane's gate stood open;
and after every command the bytes of the disk as the model says.
"""

import collections
import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from vstore.fuzz.byte_model import MISCOMPARE, cdb_length, most_data_in
from vstore.fuzz.disks import Disk, WatchedDataOut, make_disk
from vstore.fuzz.draws import ATTRIBUTES, ERRNOS, ROOMS, Draws, draw_cdb, draw_data_out, draw_parameters, shortened
from vstore.fuzz.rules import RuleBroken, require
from vstore.fuzz.sense_data import ParsedSense, parse_sense
from vstore.scsi.commands import BY_OPERATION_CODE, COMMANDS
from vstore.scsi.logical_unit import ResetCause
from vstore.scsi.refusals import CODES
from vstore.scsi.sense import SenseKey
from vstore.scsi.target import WELL_KNOWN_REPORT_LUNS, Target
from vstore.scsi.task import ITNexus, Response, Status, Task, TaskAttribute

MOST_STEPS = 24
_INTERNAL_FAILURE = (4, 0x44, 0x00)


@dataclass
class Bench:
    """A target with four units and two initiators; executes one case."""

    outcomes: "collections.Counter[tuple[str, str]]" = field(default_factory=collections.Counter)
    explain: Callable[[str], None] | None = None

    def run(self, data: bytes) -> None:
        """RuleBroken, or whatever the model raised, is a finding."""
        draws = Draws(data)
        self.disks = {
            0: make_disk(0),
            1: make_disk(1, logical_block_length=4096, write_cache=False),
            300: make_disk(2, physical_block_exponent=0),
            3: make_disk(3, read_only=True),
        }
        self.target = Target()
        for lun, disk in self.disks.items():
            self.target.add(lun, disk.unit)
        self.nexuses = [ITNexus("one"), ITNexus("other")]
        # Most cases begin where a guest's driver would: the power on has been told.
        if not draws.chance(8):
            for disk in self.disks.values():
                for nexus in self.nexuses:
                    disk.unit.add_nexus(nexus)
                    disk.unit.attentions.take(nexus)
        steps = 0
        while draws.left and steps < MOST_STEPS:
            self._step(draws)
            steps += 1
        for disk in self.disks.values():
            require(disk.medium.data == disk.model.data, "bytes changed on a unit that was not addressed")

    # ---- one step ---------------------------------------------------------------------------------------

    def _step(self, draws: Draws) -> None:
        if draws.chance(24):
            self._event(draws)
        lun = self._lun(draws)
        disk = self.disks.get(lun)
        row = COMMANDS[draws.pick(len(COMMANDS))]
        parameters = draw_parameters(draws, row, disk)
        cdb = draw_cdb(draws, row, disk, len(parameters))
        data_out = shortened(draws, parameters or draw_data_out(draws, cdb, disk))
        room = ROOMS[draws.pick(len(ROOMS))]
        attribute = TaskAttribute(ATTRIBUTES[draws.pick(len(ATTRIBUTES))])
        nexus = self.nexuses[draws.pick(2)]
        task = Task(nexus, lun, draws.number(1), attribute, cdb, WatchedDataOut(data_out), room)
        broken = disk is not None and bool(disk.medium.error)
        ready = disk.unit.fast_path(nexus) if disk else None
        response = self._execute(task)
        if self.explain:
            self.explain(f"LUN {lun} {nexus.name} {cdb.hex(' ')} out {len(data_out)} room {room} -> {_told(response)}")
        self._check(task, response, disk, data_out)
        if disk and not broken:
            _check_refusal(task, response, disk)
        if ready and response.status is Status.CHECK_CONDITION:
            attention = ready.read and response.sense and _key(response) == 6
            require(not attention, "the gate was open, yet an attention was due")
        if disk and broken:
            disk.model.data[:] = disk.medium.data  # how far a failed write got is not the model's to say
        if disk:
            require(disk.medium.data == disk.model.data, f"{row.name} left other bytes than the model says")

    def _lun(self, draws: Draws) -> int:
        kind = draws.pick(16)
        luns = list(self.disks)
        return luns[kind % len(luns)] if kind < 13 else [9, 0x3FFF, WELL_KNOWN_REPORT_LUNS][kind - 13]

    def _event(self, draws: Draws) -> None:
        disk = list(self.disks.values())[draws.pick(len(self.disks))]
        kind = draws.pick(6)
        if kind == 0:
            disk.unit.reset(list(ResetCause)[draws.pick(len(ResetCause))], self.nexuses[draws.pick(2)])
        elif kind == 1:
            disk.unit.report_luns_changed()
        elif kind == 2:
            self._resize(disk, 4096 * (1 + draws.pick(16)))
        elif kind == 3:
            disk.medium.error = ERRNOS[draws.pick(len(ERRNOS))]
        elif kind == 4:
            disk.unit.remove_nexus(self.nexuses[draws.pick(2)])
        else:
            lun = next(lun for lun, other in self.disks.items() if other is disk)
            self.target.remove(lun)
            self.target.add(lun, disk.unit)

    @staticmethod
    def _resize(disk: Disk, length: int) -> None:
        for data in (disk.medium.data, disk.model.data):
            data[length:] = bytes(max(length - len(data), 0))
        disk.unit.capacity_changed()

    # ---- what must hold ---------------------------------------------------------------------------------

    def _execute(self, task: Task) -> Response:
        work = self.target.execute(task)
        try:
            work.send(None)
        except StopIteration as end:
            if isinstance(end.value, Response):
                return end.value
            raise RuleBroken("the model answered without a response") from None
        raise RuleBroken("the model waited although its medium never does")

    def _check(self, task: Task, response: Response, disk: Disk | None, data_out: bytes) -> None:
        require(isinstance(response.status, Status), "an answer without a status")
        require(0 <= response.data_out_used <= len(data_out), "more data-out used than there was")
        require(len(response.data_in) <= task.data_in_room, "more data-in than room")
        name = _name(task.cdb)
        if response.status is Status.GOOD:
            require(not response.sense, "GOOD with sense data")
            block = disk.unit.logical_block_length if disk else 512
            require(len(response.data_in) <= most_data_in(task.cdb, block), "more data-in than the CDB allows")
            if disk:
                disk.model.good(task.cdb, data_out, response.data_in, task.data_in_room)
            self.outcomes[name, "GOOD"] += 1
            return
        require(not response.data_in, "data-in beside an error")
        if response.status is Status.CONDITION_MET:
            require(not response.sense, "CONDITION MET with sense data")
            assert disk, "only a disk pre-fetches"
            disk.model.condition_met(task.cdb)
            self.outcomes[name, "CONDITION MET"] += 1
            return
        if response.status in (Status.TASK_SET_FULL, Status.RESERVATION_CONFLICT):
            require(not response.sense, f"{response.status.name} with sense data")
            self.outcomes[name, response.status.name.replace("_", " ")] += 1
            return
        require(response.status is Status.CHECK_CONDITION, f"nothing is answered with {response.status.name}")
        sense = parse_sense(response.sense)
        self.outcomes[name, "{:X}/{:02X}/{:02X}".format(*sense.code)] += 1
        self._check_sense(task, sense, disk, data_out)

    @staticmethod
    def _check_sense(task: Task, sense: ParsedSense, disk: Disk | None, data_out: bytes) -> None:
        require(sense.code != _INTERNAL_FAILURE or _defects.last is None, f"a defect: {_defects.last}")
        if sense.in_cdb and sense.byte is not None:
            require(sense.byte < max(cdb_length(task.cdb), 1), "the field pointer points past the CDB")
        if sense.code == MISCOMPARE:
            assert disk, "only a disk compares"
            disk.model.miscompare(task.cdb, data_out, sense.information)


def _check_refusal(task: Task, response: Response, disk: Disk) -> None:
    """The reference says so; a unit attention and a deferred error are not the command's."""
    row = disk.unit.row_of(task.cdb)
    if response.status is Status.CHECK_CONDITION and isinstance(row, type):
        sense = parse_sense(response.sense)
        told = sense.deferred or sense.key == SenseKey.UNIT_ATTENTION or sense.code in CODES[row]
        require(told, f"no reason is known why {row.name} should be refused with {sense}")


def _name(cdb: bytes) -> str:
    actions = BY_OPERATION_CODE.get(cdb[0], {}) if cdb else {}
    row = actions.get(None) or actions.get(cdb[1] & 0x1F if len(cdb) > 1 else None)
    return row.name if row else "(not a command)"


def _key(response: Response) -> int:
    return parse_sense(response.sense).key


def _told(response: Response) -> str:
    if response.status is not Status.CHECK_CONDITION:
        return f"{response.status.name} in {len(response.data_in)}"
    return str(parse_sense(response.sense))


class _Defects(logging.Handler):
    """Keeps the last exception that the device server turned into INTERNAL TARGET FAILURE."""

    last: str | None = None

    def emit(self, record: logging.LogRecord) -> None:
        self.last = self.format(record)


_defects = _Defects()
_log = logging.getLogger("vstore.scsi.device_server")


def attempt(bench: Bench, data: bytes) -> Exception | None:
    """The finding, if this case is one."""
    _defects.last = None
    _log.addHandler(_defects)
    propagate, _log.propagate = _log.propagate, False
    try:
        bench.run(data)
    except Exception as error:
        return error
    finally:
        _log.removeHandler(_defects)
        _log.propagate = propagate
    return None
