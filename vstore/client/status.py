"""Commands that did not end well, as exceptions: CHECK CONDITION for PYSCSI, and one class per other status."""

# ruff: noqa: N818  (the names are the statuses'; PYSCSI's next release calls its own the same)

from pyscsi.pyscsi.scsi_sense import SCSICheckCondition, sense_key_dict

from vstore.client.errors import BackendFault, ClientError
from vstore.client.request import CommandResult
from vstore.client.virtio_scsi import Response

_GOOD = 0x00
_CHECK_CONDITION = 0x02
_DESCRIPTOR_SENSE = 0x72


class CheckCondition(SCSICheckCondition):  # type: ignore[misc]  # PYSCSI has no types
    """PYSCSI's exception, which decodes fixed-format sense data, taught the descriptor format (SPC-5 4.4.2)."""

    def __init__(self, sense: bytes) -> None:
        super().__init__(sense)
        if self.response_code == _DESCRIPTOR_SENSE:
            self.asc, self.ascq = sense[2], sense[3]
            self.data = {
                "response_code": self.response_code,
                "sense_key": sense[1] & 0x0F,
                "additional_sense_code": self.asc,
                "additional_sense_code_qualifier": self.ascq,
            }
        self.sense = bytes(sense)

    def __str__(self) -> str:
        try:
            return str(super().__str__())
        except KeyError:  # a code that PYSCSI's tables do not have
            key = self.data["sense_key"]
            return (
                f"Check Condition: {sense_key_dict.get(key, 'sense key')}(0x{key:02X}) {self.asc:02X}/{self.ascq:02X}"
            )


class StatusError(Exception):
    """A command ended with a status that is neither GOOD nor CHECK CONDITION; `result` has all of it."""

    def __init__(self, result: CommandResult) -> None:
        super().__init__(f"the command ended with status {result.status:#04x}")
        self.result = result


class ConditionsMet(StatusError):
    pass


class BusyStatus(StatusError):
    pass


class ReservationConflict(StatusError):
    pass


class TaskSetFull(StatusError):
    pass


class ACAActive(StatusError):
    pass


class TaskAborted(StatusError):
    pass


class TransportFailure(ClientError):
    """The request did not reach a logical unit that executed it; `result.response` says why."""

    def __init__(self, result: CommandResult) -> None:
        super().__init__(f"the back-end answered the request with {result.response.name}")
        self.result = result


STATUS_ERRORS: dict[int, type[StatusError]] = {
    0x04: ConditionsMet,
    0x08: BusyStatus,
    0x18: ReservationConflict,
    0x28: TaskSetFull,
    0x30: ACAActive,
    0x40: TaskAborted,
}


def raise_for(result: CommandResult) -> None:
    """Returns for GOOD, raises for everything else: TransportFailure, CheckCondition or a StatusError."""
    if result.response != Response.OK:
        raise TransportFailure(result)
    if result.status == _GOOD:
        return
    if result.status == _CHECK_CONDITION:
        if not result.sense:
            raise BackendFault("CHECK CONDITION came without sense data")
        raise CheckCondition(result.sense)
    raise STATUS_ERRORS.get(result.status, StatusError)(result)
