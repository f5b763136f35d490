"""A virtio-scsi driver: commands, task management functions and events over a Transport, many in flight.

`submit` and `manage` return a Pending at once; `wait` drives the rings until it has its result, taking whatever else
completes on the way. Nothing here runs by itself: no thread, no timer. One ScsiDriver belongs to one thread.
"""

import os
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar

from vstore.client.errors import BackendFault, BackendTimeout, ClientError
from vstore.client.memory import Span
from vstore.client.request import Command, CommandResult, Pending, TaskManagement
from vstore.client.ring import Segment, Used
from vstore.client.transport import Transport, TransportSettings
from vstore.client.virtio_scsi import (
    CDB_BYTES,
    CONTROL_QUEUE,
    EVENT_BYTES,
    EVENT_QUEUE,
    FIRST_REQUEST_QUEUE,
    Event,
    Feature,
    Response,
    TaskAttribute,
    TaskManagementFunction,
    encode_command,
    encode_task_management,
)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class DriverSettings:
    """`segment_bytes`: no descriptor covers more than this. `event_buffers`: how many events the device can leave.

    `features`: the virtio-scsi feature bits to acknowledge where they are offered.
    """

    request_queues: int = 1
    segment_bytes: int = 1 << 20
    event_buffers: int = 16
    features: Feature = Feature.HOTPLUG | Feature.CHANGE
    transport: TransportSettings = field(default_factory=TransportSettings)


class ScsiDriver:
    """Drives the virtio-scsi device behind the vhost-user socket at `path`.

    All methods raise BackendGone, BackendRefused, BackendTimeout or BackendFault; `submit` and `manage` also RingFull,
    and ClientError when guest memory is full.
    """

    def __init__(self, path: str | os.PathLike[str], settings: DriverSettings | None = None) -> None:
        self.settings = settings or DriverSettings()
        queues = FIRST_REQUEST_QUEUE + self.settings.request_queues
        self.transport = Transport(path, queues, self.settings.transport, wanted=self.settings.features)
        self.events: deque[Event] = deque()
        self._pending: dict[tuple[int, int], Pending[Any]] = {}
        self._event_buffers: dict[int, Span] = {}
        self._last_tag = 0
        self._completions = 0
        for _ in range(min(self.settings.event_buffers, self.settings.transport.queue_size)):
            self._offer_event_buffer(self.transport.memory.allocate(EVENT_BYTES))
        self.transport.publish(EVENT_QUEUE)

    @property
    def in_flight(self) -> int:
        return len(self._pending)

    def submit(
        self,
        lun: bytes,
        cdb: bytes | bytearray,
        data_out: bytes | bytearray | memoryview = b"",
        data_in_length: int = 0,
        *,
        attribute: int = TaskAttribute.SIMPLE,
        queue: int = 0,
        tag: int | None = None,
        publish: bool = True,
        segment_bytes: int | None = None,
    ) -> Pending[CommandResult]:
        """Puts a command on request queue `queue`; with `publish` False the device sees it at the next `kick`.

        `segment_bytes` stands in for that of the settings. Raises ValueError for a CDB longer than 32 bytes.
        """
        if len(cdb) > CDB_BYTES:
            raise ValueError(f"a CDB has at most {CDB_BYTES} bytes here, not {len(cdb)}")
        self.transport.check_usable()
        tag = self._new_tag() if tag is None else tag
        request = Command(
            self.transport.memory, encode_command(lun, tag, attribute, bytes(cdb)), data_out, data_in_length
        )
        pending = Pending(f"the command {bytes(cdb[:16]).hex()}", tag, request)
        self._send(FIRST_REQUEST_QUEUE + queue, pending, publish=publish, segment_bytes=segment_bytes)
        return pending

    def kick(self, queue: int = 0) -> None:
        """Shows the commands that were submitted with `publish` False."""
        self.transport.publish(FIRST_REQUEST_QUEUE + queue)

    def manage(self, function: TaskManagementFunction, lun: bytes, tag: int = 0) -> Pending[Response]:
        """Puts a task management function on the control queue."""
        self.transport.check_usable()
        request = TaskManagement(self.transport.memory, encode_task_management(function, lun, tag))
        pending = Pending(function.name, tag, request)
        self._send(CONTROL_QUEUE, pending, publish=True)
        return pending

    def poll(self, timeout: float = 0.0) -> int:
        """Takes completions and events, waiting up to `timeout` seconds for the first; returns how many came."""
        used = self.transport.poll(timeout)
        # All buffers of this poll first: a buffer that is offered again may take the place of one that came back too.
        events = [(self._event_buffers.pop(each.head), each) for queue, each in used if queue == EVENT_QUEUE]
        for queue, element in used:
            if queue != EVENT_QUEUE:
                self._complete(queue, element)
        for buffer, element in events:
            self._take_event(buffer, element)
        return len(used)

    def wait(self, pending: Pending[T], timeout: float) -> T:
        """The result of `pending`. After BackendTimeout it is still in flight, and its buffer the device's."""
        deadline = time.monotonic() + timeout
        while not pending.done:
            if not self.poll(max(deadline - time.monotonic(), 0.0)) and time.monotonic() >= deadline:
                raise BackendTimeout(f"{pending.what} did not complete within {timeout} s")
        return pending.result

    def wait_event(self, timeout: float) -> Event:
        """The oldest event that was not yet taken."""
        deadline = time.monotonic() + timeout
        while not self.events:
            if not self.poll(max(deadline - time.monotonic(), 0.0)) and time.monotonic() >= deadline:
                raise BackendTimeout(f"no event came within {timeout} s")
        return self.events.popleft()

    def close(self) -> None:
        """Stops and disconnects. What is still in flight never completes."""
        self._pending.clear()
        self.transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _send(self, queue: int, pending: Pending[Any], *, publish: bool, segment_bytes: int | None = None) -> None:
        limit = segment_bytes or self.settings.segment_bytes
        segments = [piece for part in pending.request.segments for piece in _cut(part, limit)]
        try:
            head = self.transport.add(queue, segments)
        except ClientError:
            self.transport.memory.release(pending.request.buffer)
            raise
        self._pending[queue, head] = pending
        if publish:
            self.transport.publish(queue)

    def _complete(self, queue: int, used: Used) -> None:
        pending = self._pending.pop((queue, used.head))
        self._completions += 1
        pending.finish(used.length, self._completions)
        self.transport.memory.release(pending.request.buffer)

    def _take_event(self, buffer: Span, used: Used) -> None:
        if used.length != EVENT_BYTES:
            raise BackendFault(f"an event has {used.length} bytes instead of {EVENT_BYTES}")
        self.events.append(Event.decode(self.transport.memory.read(buffer.address, EVENT_BYTES)))
        self._offer_event_buffer(buffer)
        self.transport.publish(EVENT_QUEUE)

    def _offer_event_buffer(self, buffer: Span) -> None:
        head = self.transport.add(EVENT_QUEUE, [Segment(buffer.address, buffer.length, True)])
        self._event_buffers[head] = buffer

    def _new_tag(self) -> int:
        self._last_tag += 1
        return self._last_tag


def _cut(part: Segment, limit: int) -> Iterator[Segment]:
    """A buffer as descriptors of at most `limit` bytes."""
    for done in range(0, part.length, limit):
        yield Segment(part.address + done, min(limit, part.length - done), part.device_writes)
