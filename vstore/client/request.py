"""Requests in guest memory: how a command or task management function is laid out, and what its response says.

Each request is one allocation: request header, response, and for commands the data buffer behind them. Nothing is read
from it before the device has given the chain back, and it is read once.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from vstore.client.errors import BackendFault, ClientError
from vstore.client.memory import GuestMemory, Span
from vstore.client.ring import Segment
from vstore.client.virtio_scsi import RESPONSE_BYTES, SENSE_BYTES, Response, ResponseHeader

R_co = TypeVar("R_co", covariant=True)
T = TypeVar("T")

# Data-in buffers are filled with this before the device sees them, so bytes that it did not write show.
POISON = 0xA5


@dataclass(frozen=True, slots=True)
class CommandResult:
    """What became of a command. Lengths in bytes.

    `response` is the transport's answer; `status`, `sense` and `status_qualifier` count only when it is Response.OK.
    `data_in`: the bytes that the device wrote, by its residual and by its used length (the smaller of both).
    `residual`: bytes of the data-out or data-in buffer that were not transferred.
    `used_length`: as the used ring says it: bytes of response and data-in.
    `untouched`: what stands in the data-in buffer behind `data_in`; a device that keeps its word leaves it POISON.
    """

    status: int
    response: Response
    sense: bytes
    data_in: bytes
    residual: int
    status_qualifier: int = 0
    used_length: int = 0
    untouched: bytes = field(default=b"", repr=False)


class Request(Protocol[R_co]):
    """A request laid out in guest memory: `buffer` is released once `result` was taken."""

    buffer: Span

    @property
    def segments(self) -> Sequence[Segment]: ...

    def result(self, used_length: int) -> R_co: ...


class Command:
    """struct virtio_scsi_req_cmd with its data buffer; `header` as encoded, data-out or room for data-in."""

    def __init__(
        self, memory: GuestMemory, header: bytes, data_out: bytes | bytearray | memoryview, data_in_length: int
    ) -> None:
        self._memory = memory
        self.buffer = memory.allocate(len(header) + RESPONSE_BYTES + len(data_out) + data_in_length)
        self._header = Span(self.buffer.address, len(header))
        self._response = Span(self._header.end, RESPONSE_BYTES)
        self._data_out = Span(self._response.end, len(data_out))
        self._data_in = Span(self._data_out.end, data_in_length)
        memory.write(self._header.address, header)
        memory.write(self._data_out.address, data_out)
        memory.write(self._data_in.address, bytes((POISON,)) * data_in_length)

    @property
    def segments(self) -> list[Segment]:
        """What the device reads before what it writes (virtio 1.2 2.7.4.2)."""
        return [
            Segment(self._header.address, self._header.length, device_writes=False),
            Segment(self._data_out.address, self._data_out.length, device_writes=False),
            Segment(self._response.address, self._response.length, device_writes=True),
            Segment(self._data_in.address, self._data_in.length, device_writes=True),
        ]

    def result(self, used_length: int) -> CommandResult:
        header = ResponseHeader.decode(self._memory.read(self._response.address, self._response.length))
        if header.sense_length > SENSE_BYTES:
            raise BackendFault(f"a response has {header.sense_length} bytes of sense data in a field of {SENSE_BYTES}")
        data_in = self._memory.read(self._data_in.address, self._data_in.length)
        written = max(min(len(data_in) - header.residual, used_length - RESPONSE_BYTES), 0)
        return CommandResult(
            status=header.status,
            response=_response(header.response),
            sense=header.sense,
            data_in=data_in[:written],
            residual=header.residual,
            status_qualifier=header.status_qualifier,
            used_length=used_length,
            untouched=data_in[written:],
        )


class TaskManagement:
    """struct virtio_scsi_ctrl_tmf, encoded in `header`, and its one byte of response."""

    def __init__(self, memory: GuestMemory, header: bytes) -> None:
        self._memory = memory
        self.buffer = memory.allocate(len(header) + 1)
        self._response_at = self.buffer.end - 1
        memory.write(self.buffer.address, header)

    @property
    def segments(self) -> list[Segment]:
        length = self.buffer.length - 1
        return [
            Segment(self.buffer.address, length, device_writes=False),
            Segment(self._response_at, 1, device_writes=True),
        ]

    def result(self, used_length: int) -> Response:
        if used_length != 1:
            raise BackendFault(f"a task management response has {used_length} bytes instead of 1")
        return _response(self._memory.read(self._response_at, 1)[0])


class Pending(Generic[T]):
    """A request in flight. `tag` names it to task management functions; `used_order` numbers completions in order."""

    def __init__(self, what: str, tag: int, request: Request[T]) -> None:
        self.what = what
        self.tag = tag
        self.request = request
        self.used_order: int | None = None
        self._result: T | None = None

    @property
    def done(self) -> bool:
        return self.used_order is not None

    @property
    def result(self) -> T:
        if self._result is None:
            raise ClientError(f"{self.what} has not completed")
        return self._result

    def finish(self, used_length: int, used_order: int) -> None:
        self._result = self.request.result(used_length)
        self.used_order = used_order


def _response(code: int) -> Response:
    try:
        return Response(code)
    except ValueError as error:
        raise BackendFault(f"a response has code {code}, which virtio-scsi does not define") from error
