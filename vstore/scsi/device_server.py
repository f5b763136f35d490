"""The device server of SAM-5: takes a task, finds its row in the command table, and always ends it with a status.

                task
                 |  row of the operation code        unknown: INVALID COMMAND OPERATION CODE
                 |  unit attention of this nexus     pending: CHECK CONDITION, unless the row passes it
                 |  decode                           reserved bits: INVALID FIELD IN CDB, with pointers
                 |  ready, writable                  by the row's access
                 v  handler (spc.py, modes.py, sbc.py)
              data-in, cut here and nowhere else to the allocation length and to the initiator's room

Handlers raise `CheckCondition`; an OSError of the medium becomes sense data by the table below. Anything else is a
defect of vstore: it is logged, and told to the initiator as INTERNAL TARGET FAILURE.
"""

import contextlib
import errno
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any, ClassVar

from vstore.scsi.attention import Attentions
from vstore.scsi.cdb import SERVICE_ACTION_MASK, Access, Cdb, unknown_service_action
from vstore.scsi.commands import BY_OPERATION_CODE
from vstore.scsi.sense import WRITE_PROTECTED, AdditionalSense, CheckCondition, Sense, SenseKey
from vstore.scsi.task import ITNexus, ReservationConflict, Response, Status, Task, TaskAttribute

# The answer is data-in, or a status other than GOOD that is no error: CONDITION MET.
Handler = Callable[[Any, Any, Task], Awaitable[bytes | Status]]
Handlers = Mapping[type[Cdb], Handler]

_log = logging.getLogger(__name__)

READ_ERROR = Sense(SenseKey.MEDIUM_ERROR, AdditionalSense.UNRECOVERED_READ_ERROR)
WRITE_ERROR = Sense(SenseKey.MEDIUM_ERROR, AdditionalSense.WRITE_ERROR)
_SPACE = Sense(SenseKey.DATA_PROTECT, AdditionalSense.SPACE_ALLOCATION_FAILED_WRITE_PROTECT)
# Of the medium itself; ENODATA and EILSEQ are how some block devices say that a block is bad.
ILLNESSES = (errno.EIO, errno.ENODATA, errno.EILSEQ)
ERRORS = {errno.ENOSPC: _SPACE, errno.EDQUOT: _SPACE, errno.EFBIG: _SPACE, errno.EROFS: WRITE_PROTECTED}
_FAILURE = Sense(SenseKey.HARDWARE_ERROR, AdditionalSense.INTERNAL_TARGET_FAILURE)


def sense_of(error: OSError, access: Access) -> Sense:
    """What an initiator is told of an error of the medium. Commands that do not read meet one only when they flush."""
    if error.errno in ILLNESSES:
        return READ_ERROR if access is Access.READ else WRITE_ERROR
    return ERRORS.get(error.errno or 0, _FAILURE)


@contextlib.contextmanager
def reading() -> Iterator[None]:
    """Inside a command that also writes, and whose errors of the medium are those of a write otherwise."""
    try:
        yield
    except OSError as error:
        if error.errno in ILLNESSES:
            raise CheckCondition(READ_ERROR) from error
        raise


class DeviceServer:
    """Decodes, checks and dispatches; subclasses say which commands they answer, and with what."""

    handlers: ClassVar[Handlers]

    def __init__(self) -> None:
        self.attentions = Attentions()

    @property
    def descriptor_sense(self) -> bool:
        """D_SENSE of the control mode page."""
        return False

    def supports(self, row: type[Cdb]) -> bool:
        return row in self.handlers

    def admit(self, cdb: Cdb, task: Task) -> None:  # noqa: ARG002
        """Raises CheckCondition when the unit is not in a state to serve this command now."""
        return

    async def serve(self, row: type[Cdb], cdb: Cdb, task: Task) -> bytes | Status:
        """Runs the handler of a command that was admitted."""
        return await self.handlers[row](self, cdb, task)

    def unknown(self) -> CheckCondition:
        """How a command that the unit does not have is refused."""
        return CheckCondition(Sense.illegal(AdditionalSense.INVALID_COMMAND_OPERATION_CODE))

    def changed(self) -> None:
        """Called whenever something waits for a nexus, or no longer does."""

    def add_nexus(self, nexus: ITNexus) -> None:
        """To a new nexus the unit has just been powered on; one that is already known stays as it is."""
        if self.attentions.add(nexus):
            self.changed()

    def remove_nexus(self, nexus: ITNexus) -> None:
        self.attentions.remove(nexus)
        self.changed()

    def attention_of(self, task: Task) -> Sense | None:
        """The unit attention or deferred error that this command must end with; it is thereby reported and over."""
        if self.attentions.none_wait(task.nexus):
            return None
        self.attentions.add(task.nexus)
        attention = self.attentions.take(task.nexus)
        self.changed()
        return attention

    def clear_attention(self, code: AdditionalSense, nexus: ITNexus) -> None:
        self.attentions.clear(code, nexus)
        self.changed()

    def establish(self, code: AdditionalSense, *, but: ITNexus | None = None) -> None:
        """A unit attention for every nexus, or for all but the one that caused it."""
        self.attentions.establish(code, [nexus for nexus in self.attentions.nexuses() if nexus is not but])
        self.changed()

    def report_luns_changed(self, port: int | None = None) -> None:
        """To those who come through this target port, for others have other LUNs; or to all."""
        told = [nexus for nexus in self.attentions.nexuses() if port in (None, nexus.identity.port)]
        self.attentions.establish(AdditionalSense.REPORTED_LUNS_DATA_HAS_CHANGED, told)
        self.changed()

    def row_of(self, cdb: bytes) -> type[Cdb] | CheckCondition:
        """The row that this CDB names, or how to refuse it."""
        actions = BY_OPERATION_CODE.get(cdb[0]) if cdb else None
        if actions is None:
            return self.unknown()
        row = actions.get(None)
        if row is None:
            if not any(self.supports(other) for other in actions.values()):
                return self.unknown()
            row = actions.get(cdb[1] & SERVICE_ACTION_MASK if len(cdb) > 1 else None)
            return row if row and self.supports(row) else unknown_service_action()
        return row if self.supports(row) else self.unknown()

    async def execute(self, task: Task) -> Response:
        """Ends every task with a response; nothing but cancellation escapes."""
        row = self.row_of(task.cdb)
        access = Access.NONE
        try:
            if isinstance(row, CheckCondition):
                self._report(task, None)
                raise row
            if not row.passes_attention:
                self._report(task, row)
            if task.attribute is TaskAttribute.ACA:
                # There is no ACA condition here to which this attribute could belong (NormACA is 0).
                raise CheckCondition(Sense.illegal(AdditionalSense.INVALID_MESSAGE_ERROR))
            access = row.access
            cdb = row.decode(task.cdb)
            self.admit(cdb, task)
            answer = await self.serve(row, cdb, task)
            if isinstance(answer, Status):
                return Response(answer, data_out_used=task.data_out_used)
            return self._good(task, cdb, answer)
        except CheckCondition as check:
            return self._check(task, check.sense)
        except ReservationConflict:
            return Response(Status.RESERVATION_CONFLICT)
        except (OSError, MemoryError) as error:
            return self._failed(task, error, access)
        except Exception:
            _log.exception("A defect of vstore: CDB %s ended in an exception", task.cdb.hex())
            return self._check(task, _FAILURE)

    def _report(self, task: Task, row: type[Cdb] | None) -> None:  # noqa: ARG002 - a unit that can be reserved asks
        """Raises CheckCondition when the nexus is to be told something first."""
        attention = self.attention_of(task)
        if attention is not None:
            raise CheckCondition(attention)

    def _good(self, task: Task, cdb: Cdb, data_in: bytes) -> Response:
        # SPC-4 4.2.5.6: data-in is truncated at the allocation length, which is not an error.
        wanted = cdb.fields.get("allocation_length")
        if wanted is not None:
            data_in = data_in[: (cdb.value >> wanted.shift) & wanted.limit]
        room = task.data_in_room
        return Response(Status.GOOD, data_in[:room], data_out_used=task.data_out_used, overrun=len(data_in) > room)

    def _check(self, task: Task, sense: Sense) -> Response:
        return Response(
            Status.CHECK_CONDITION,
            sense=sense.encode(descriptor=self.descriptor_sense),
            data_out_used=task.data_out_used,
            overrun=sense.code is AdditionalSense.INVALID_FIELD_IN_COMMAND_INFORMATION_UNIT,
        )

    def _failed(self, task: Task, error: OSError | MemoryError, access: Access) -> Response:
        if isinstance(error, MemoryError) or error.errno == errno.ENOMEM:
            return Response(Status.TASK_SET_FULL, data_out_used=task.data_out_used)
        return self._check(task, sense_of(error, access))
