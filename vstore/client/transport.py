"""A virtio device behind a vhost-user socket: guest memory, virtqueues with their eventfds, and one place to wait.

It knows no device type; `driver.py` makes a SCSI host of it, and a test makes a virtio-blk probe of it to hold it
against a back-end that is not ours. There are no threads: `poll` takes what has come back, and `fileno` is an epoll
descriptor that is readable when there is something to take, so an event loop may wait for many devices at once.
"""

import contextlib
import os
import select
import time
from collections.abc import Sequence
from dataclasses import dataclass

from vstore.client.errors import BackendFault, BackendGone, BackendRefused, ClientError
from vstore.client.frontend import KNOWN_PROTOCOL_FEATURES, Feature, Frontend, ProtocolFeature, Request
from vstore.client.memory import MIB, GuestMemory
from vstore.client.ring import Segment, Used, Vring


@dataclass(frozen=True, slots=True)
class TransportSettings:
    """How the front-end presents itself. Sizes in bytes; `queue_size` in descriptors, a power of two.

    `region_gap` 0 makes the regions contiguous for the guest; `mmap_offset` starts each region inside its file;
    `first_index` is the base from which every virtqueue's indexes run on, as after a migration.
    `protocol_features` limits what is acknowledged (without CONFIGURE_MEM_SLOTS memory goes by SET_MEM_TABLE).
    """

    queue_size: int = 128
    first_index: int = 0
    indirect: bool = True
    event_index: bool = True
    region_sizes: Sequence[int] = (64 * MIB,)
    region_gap: int = MIB
    mmap_offset: int = 0
    protocol_features: ProtocolFeature = KNOWN_PROTOCOL_FEATURES
    message_timeout: float = 10.0


class _Queue:
    """A virtqueue and its three eventfds."""

    def __init__(self, ring: Vring) -> None:
        self.ring = ring
        self.kick, self.call, self.error = (os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK) for _ in range(3))

    def close(self) -> None:
        for descriptor in (self.kick, self.call, self.error):
            os.close(descriptor)
        self.ring.close()


class Transport:
    """Connects to `path`, negotiates, and starts `queues` virtqueues.

    `wanted` and `required` are device-type feature bits. Raises BackendGone, BackendRefused, BackendTimeout or
    BackendFault; so does every method.
    """

    def __init__(
        self, path: str | os.PathLike[str], queues: int, settings: TransportSettings, *, wanted: int, required: int = 0
    ) -> None:
        self.memory = GuestMemory(settings.region_sizes, gap=settings.region_gap, mmap_offset=settings.mmap_offset)
        self._queues: list[_Queue] = []
        self._epoll = select.epoll()
        self._failure: ClientError | None = None
        self._closed = False
        self._frontend: Frontend | None = None
        try:
            self._frontend = Frontend(path, settings.message_timeout)
            self._negotiate(queues, settings, wanted, required)
            self._start(queues, settings)
        except BaseException:
            self._release()
            raise

    @property
    def frontend(self) -> Frontend:
        assert self._frontend is not None, "the transport is closed"
        return self._frontend

    def fileno(self) -> int:
        """Readable when `poll` has something to do."""
        return self._epoll.fileno()

    def ring(self, queue: int) -> Vring:
        return self._queues[queue].ring

    def check_usable(self) -> None:
        """Raises what made the connection unusable, if anything did."""
        self._check_open()
        if self._failure is not None:
            raise self._failure

    def add(self, queue: int, segments: Sequence[Segment]) -> int:
        """Adds a chain that the device does not see before `publish`; returns its head. Raises RingFull."""
        self.check_usable()
        return self._queues[queue].ring.add(segments)

    def publish(self, queue: int) -> None:
        self.check_usable()
        if self._queues[queue].ring.publish():
            os.eventfd_write(self._queues[queue].kick, 1)

    def poll(self, timeout: float = 0.0) -> list[tuple[int, Used]]:
        """Chains that came back, by queue; waits up to `timeout` seconds for the first one, and may return none."""
        self._check_open()
        deadline = time.monotonic() + timeout
        while not (found := self._collect()):
            self.check_usable()  # Only now: what was completed before a failure still counts.
            if not self._wait(max(deadline - time.monotonic(), 0.0)) and time.monotonic() >= deadline:
                break
        return found

    def stop(self) -> list[int]:
        """Stops all virtqueues as a VMM does; returns the base of each. Completions can still be polled."""
        for index in range(len(self._queues)):
            self.frontend.set_vring_enable(index, enabled=False)
        return [self.frontend.get_vring_base(index) for index in range(len(self._queues))]

    def close(self) -> None:
        """Stops the virtqueues if the back-end still answers, and releases everything. May be called again."""
        if self._closed:
            return
        try:
            if self._failure is None:
                self.stop()
        except ClientError:
            pass  # A back-end that cannot stop in order is left without order; its memory is ours to take back.
        finally:
            self._release()

    def _negotiate(self, queues: int, settings: TransportSettings, wanted: int, required: int) -> None:
        wanted |= Feature.RING_INDIRECT_DESC if settings.indirect else 0
        wanted |= Feature.RING_EVENT_IDX if settings.event_index else 0
        required |= Feature.VERSION_1 | Feature.PROTOCOL_FEATURES
        self.frontend.negotiate(wanted, required, settings.protocol_features)
        if self.frontend.protocol_features & ProtocolFeature.MQ and (served := self.frontend.queue_num()) < queues:
            raise BackendRefused(f"the back-end serves {served} virtqueues and {queues} are needed")

    def _start(self, queues: int, settings: TransportSettings) -> None:
        features = self.frontend.features
        for index in range(queues):
            ring = Vring(
                self.memory,
                settings.queue_size,
                event_index=bool(features & Feature.RING_EVENT_IDX),
                indirect=bool(features & Feature.RING_INDIRECT_DESC),
                first_index=settings.first_index,
            )
            self._queues.append(_Queue(ring))
            self.frontend.set_vring_descriptor(Request.SET_VRING_CALL, index, self._queues[index].call)
            self.frontend.set_vring_descriptor(Request.SET_VRING_ERR, index, self._queues[index].error)
        self.frontend.set_memory(self.memory.regions)
        for index, queue in enumerate(self._queues):
            self._start_queue(index, queue)
        for index in range(queues):
            self.frontend.set_vring_enable(index, enabled=True)
        self._epoll.register(self.frontend.fileno(), select.EPOLLIN | select.EPOLLRDHUP)

    def _start_queue(self, index: int, queue: _Queue) -> None:
        ring = queue.ring
        self.frontend.set_vring_num(index, ring.size)
        self.frontend.set_vring_base(index, ring.base)
        self.frontend.set_vring_addresses(index, ring.descriptors_at, ring.used_at, ring.available_at)
        self.frontend.set_vring_descriptor(Request.SET_VRING_KICK, index, queue.kick)
        self._epoll.register(queue.call, select.EPOLLIN)
        self._epoll.register(queue.error, select.EPOLLIN)

    def _collect(self) -> list[tuple[int, Used]]:
        """Everything that is there now; afterwards every ring is armed for the next."""
        found: list[tuple[int, Used]] = []
        try:
            for index, queue in enumerate(self._queues):
                found += [(index, used) for used in queue.ring.collect()]
                while not queue.ring.arm():
                    found += [(index, used) for used in queue.ring.collect()]
        except BackendFault as fault:
            self._failure = fault
            raise
        return found

    def _wait(self, timeout: float) -> bool:
        ready = {descriptor for descriptor, _ in self._epoll.poll(timeout)}
        for index, queue in enumerate(self._queues):
            if queue.call in ready:
                _drain(queue.call)
            if queue.error in ready:
                _drain(queue.error)
                self._failure = BackendFault(f"the back-end says that vring {index} is broken")
        if self.frontend.fileno() in ready:
            self._hear()
        return bool(ready)

    def _hear(self) -> None:
        """The socket is readable with nothing asked. What was completed before is still taken, so nothing is raised."""
        try:
            self.frontend.check_alive()
        except ClientError as error:
            self._failure = error

    def _check_open(self) -> None:
        if self._closed:
            raise BackendGone("the connection is closed")

    def _release(self) -> None:
        self._closed = True
        if self._frontend is not None:
            self._frontend.close()
        self._epoll.close()
        for queue in self._queues:
            queue.close()
        self.memory.close()


def _drain(eventfd: int) -> None:
    with contextlib.suppress(BlockingIOError):
        os.eventfd_read(eventfd)
