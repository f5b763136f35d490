"""The request queues' slow path: a command that the fast path left becomes a Task, and its Response the answer.

Most such commands (INQUIRY, MODE SENSE, a unit attention told) end without waiting for anything. So a coroutine is
first driven by hand; only one that really waits becomes an asyncio task, and goes on from where it is.
"""

import asyncio
import functools
import logging
import types
from collections.abc import Coroutine, Generator, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from vstore.dataplane import Device, Notice
from vstore.scsi.lun import parse_lun
from vstore.scsi.target import Target
from vstore.scsi.task import ITNexus, Response, Task, TaskAttribute
from vstore.vhost_user.completions import Completions, went_away
from vstore.vhost_user.layout import Code, CommandHeader, CommandResponse

log = logging.getLogger(__name__)

# Fields by position, without a record for each: this is done fifty thousand times a second.
_pack = CommandResponse.codec.pack
_ATTRIBUTES = {attribute.value: attribute for attribute in TaskAttribute}

PATIENCE = 10.0  # seconds, for commands to end by themselves before somebody who waits for their unit ends them

Running = Coroutine[Any, Any, Response]


class GuestDataOut:
    """scsi.DataOut over the descriptors of one request."""

    def __init__(self, device: Device, notice: Notice) -> None:
        self._device = device
        self._notice = notice

    @property
    def length(self) -> int:
        return self._notice.data_out

    def read(self, offset: int, length: int) -> bytes:
        """Raises OSError; guest memory that went away costs the driver this ring."""
        try:
            return self._device.request_read(self._notice.request, offset, length)
        except OSError as error:
            if went_away(error):
                self._device.vring_break(self._notice.vring)
            raise


@dataclass(eq=False)
class Command:
    """A command that waits for something. `ended_by`: what task management, or loss of the nexus, made of it."""

    notice: Notice
    target: int
    task: Task
    started: bool = False
    ended_by: Code | None = None
    future: asyncio.Task[None] | None = field(default=None, repr=False)

    def end(self, code: Code) -> None:
        """Asks the command to end; it does so when its I/O under way allows."""
        self.ended_by = code
        if self.started and self.future:
            self.future.cancel()


class RequestQueue:
    """Serves the requests of all request queues."""

    def __init__(self, device: Device, targets: Mapping[int, Target], completions: Completions) -> None:
        self._device = device
        self._targets = targets
        self._completions = completions
        self.waiting: set[Command] = set()

    def serve(self, notice: Notice, nexus: ITNexus) -> None:
        """Answers the request, now or when what it waits for is there."""
        if notice.header_length != CommandHeader.octets or notice.response_room != CommandResponse.octets:
            self._completions.break_ring(notice, f"a command of {notice.header_length} bytes")
            return
        address_bytes, tag, attribute, _, _, cdb = CommandHeader.codec.unpack_from(notice.header)
        try:
            address = parse_lun(address_bytes)
            target = self._targets[address.target]
        except (ValueError, KeyError):
            self.refuse(notice, Code.BAD_TARGET)
            return
        if attribute not in _ATTRIBUTES or (notice.data_out and notice.data_in):
            self.refuse(notice, Code.FAILURE)  # 5.6.6.1.1: both buffers need VIRTIO_SCSI_F_INOUT, which is not offered
            return
        data_out = GuestDataOut(self._device, notice)
        task = Task(nexus, address.lun, tag, _ATTRIBUTES[attribute], cdb, data_out, notice.data_in)
        self._start(notice, address.target, task, target)

    async def end(self, commands: Iterable[Command], code: Code) -> None:
        """Returns when these commands have been answered, with `code` unless they had ended by themselves."""
        ending = [command for command in commands if command in self.waiting]
        for command in ending:
            command.end(code)
        await self.ended(ending)

    async def ended(self, commands: Iterable[Command]) -> None:
        """Returns when these commands have been answered."""
        futures = [command.future for command in commands if command.future]
        if futures:
            await asyncio.wait(futures)
        self._completions.flush()

    async def left(self, target: int, lun: int) -> None:
        """Returns when every command for this address has been answered; those that take long end with BUSY, so
        that an initiator tries them again."""
        commands = self.of(target, lun)
        if futures := [command.future for command in commands if command.future]:
            await asyncio.wait(futures, timeout=PATIENCE)
        await self.end(commands, Code.BUSY)

    def of(self, target: int, lun: int) -> list[Command]:
        """Commands for this address that are not answered yet."""
        return [command for command in self.waiting if (command.target, command.task.lun) == (target, lun)]

    def _start(self, notice: Notice, number: int, task: Task, target: Target) -> None:
        try:
            running = target.execute(task)
            waited = running.send(None)
        except StopIteration as end:
            self._respond(notice, end.value)
        except Exception:
            self._fail(Command(notice, number, task))
        else:
            command = Command(notice, number, task)
            self.waiting.add(command)
            command.future = asyncio.get_running_loop().create_task(self._go_on(command, running, waited))

    async def _go_on(self, command: Command, running: Running, waited: object) -> None:
        command.started = True
        try:
            response = await _resumed(running, waited, cancelled=command.ended_by is not None)
        except asyncio.CancelledError:
            self.refuse(command.notice, command.ended_by or Code.ABORTED)
        except Exception:
            self._fail(command)
        else:
            self._respond(command.notice, response)
        finally:
            self.waiting.discard(command)

    def _respond(self, notice: Notice, response: Response) -> None:
        if response.overrun:
            self.refuse(notice, Code.OVERRUN)
            return
        moved = len(response.data_in) if notice.data_in else response.data_out_used
        residual, sense = (notice.data_in or notice.data_out) - moved, response.sense
        answer = _pack(len(sense), residual, response.status_qualifier, response.status, Code.OK, sense)
        self._completions.add(notice, answer, response.data_in)

    def refuse(self, notice: Notice, code: Code) -> None:
        """Answers a command that no status describes."""
        residual = notice.data_in or notice.data_out
        self._completions.add(notice, CommandResponse(0, residual, 0, 0, code, b"").pack())

    def _fail(self, command: Command) -> None:
        log.exception("target %d, LUN %s: command %s failed", command.target, command.task.lun, command.task.cdb.hex())
        self.refuse(command.notice, Code.FAILURE)


@types.coroutine
def _resumed(running: Running, waited: object, *, cancelled: bool) -> Generator[Any, None, Response]:
    """Awaits a coroutine that has been driven by hand up to its first wait."""
    while True:
        try:
            if cancelled:
                raise asyncio.CancelledError
            yield waited
        except BaseException as error:  # whatever it is, it is the coroutine's
            step = functools.partial(running.throw, error)
        else:
            step = functools.partial(running.send, None)
        try:
            waited, cancelled = step(), False
        except StopIteration as end:
            response: Response = end.value
            return response
