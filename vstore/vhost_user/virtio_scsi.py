"""The virtio-scsi device behind one vhost-user socket: requests from the data plane meet the SCSI model.

    data plane --notices--> ScsiEndpoint --+--> RequestQueue   commands that the fast path left  --> Target.execute
                                           +--> ControlQueue   task management, notifications
                                           +--> EventQueue     what the driver is told unasked
    LunMap: which unit is where, and whether the data plane may serve it alone          answers --> Completions

One virtual machine is one I_T nexus, from its connection to the end of that.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping

from vstore.dataplane import Counters, Device, Notice, NoticeKind, Volume
from vstore.scsi.commands import fast_rows
from vstore.scsi.handover import handed_over
from vstore.scsi.logical_unit import LogicalUnit
from vstore.scsi.target import Target
from vstore.scsi.task import ITNexus
from vstore.vhost_user.complaints import Complaints
from vstore.vhost_user.completions import Completions
from vstore.vhost_user.control_queue import ControlQueue
from vstore.vhost_user.errors import RefusalError
from vstore.vhost_user.event_queue import EventQueue
from vstore.vhost_user.keeping import UNIT, Keeping, Kept
from vstore.vhost_user.layout import (
    CONTROL_QUEUE,
    FIRST_REQUEST_QUEUE,
    Code,
    Configuration,
    TransportResetReason,
)
from vstore.vhost_user.lun_map import LunMap
from vstore.vhost_user.messages import Feature, ProtocolFeature
from vstore.vhost_user.request_queue import RequestQueue

log = logging.getLogger(__name__)

MAX_REQUEST_QUEUES = 64
POLL_NS = 100_000  # longest adaptive polling where nobody says otherwise
MEMORY_SLOTS = 509  # VS_MAX_REGIONS of dataplane.h

# ANY_LAYOUT is true: headers may be scattered over descriptors as the driver likes. NOTIFY_ON_EMPTY would not be.
FEATURES = (
    Feature.VERSION_1
    | Feature.RING_INDIRECT_DESC
    | Feature.RING_EVENT_IDX
    | Feature.ANY_LAYOUT
    | Feature.LOG_ALL
    | Feature.PROTOCOL_FEATURES
    | Feature.HOTPLUG
    | Feature.CHANGE
)
# QEMU acknowledges whatever is offered, also what it does not implement: offer only what works and is wanted.
PROTOCOL_FEATURES = (
    ProtocolFeature.MQ
    | ProtocolFeature.LOG_SHMFD
    | ProtocolFeature.REPLY_ACK
    | ProtocolFeature.INFLIGHT_SHMFD
    | ProtocolFeature.RESET_DEVICE
    | ProtocolFeature.CONFIGURE_MEM_SLOTS
)


class ScsiEndpoint:
    """A session.Endpoint.

    request_queues: 1..64, more than the front-end uses does no harm where `config_space` is off. threads: loop threads
    that serve them. poll_ns: upper bound of adaptive polling. config_space: Cloud Hypervisor, crosvm and libkrun fetch
    the device's configuration from here; QEMU has its own, and QEMU 7.2.0 crashes when it is offered. name: of the
    virtual machine too, as others know it. port: relative target port identifier.
    """

    def __init__(
        self,
        *,
        request_queues: int = MAX_REQUEST_QUEUES,
        threads: int = 1,
        poll_ns: int = POLL_NS,
        config_space: bool = False,
        name: str = "vhost-user-scsi",
        port: int = 1,
        device: Device | None = None,
        keeping: Keeping | None = None,
    ) -> None:
        if not 1 <= request_queues <= MAX_REQUEST_QUEUES:
            raise ValueError(f"{request_queues} request queues: 1..{MAX_REQUEST_QUEUES} are possible")
        self.name = name
        self.features = FEATURES
        self.protocol_features = PROTOCOL_FEATURES | (ProtocolFeature.CONFIG if config_space else ProtocolFeature(0))
        self.vrings = FIRST_REQUEST_QUEUE + request_queues
        self.memory_slots = MEMORY_SLOTS
        self.device = device or Device(self.vrings, threads=threads, poll_ns=poll_ns)
        self.device.set_fast_rows(fast_rows())
        self._configuration = Configuration(num_queues=request_queues).pack()
        self._complaints = Complaints(log, name)
        self._keeping = keeping
        self._completions = Completions(self.device, self._complaints, self._keep_units)
        self._port = port
        self._luns = LunMap(self.device, port)
        self._requests = RequestQueue(self.device, self._luns.targets, self._completions)
        self._control = ControlQueue(self.device, self._luns, self._requests, self._completions, self._take_all)
        self._events = EventQueue(self.device)
        self._idle = asyncio.Event()
        self._ending = False  # the nexus is being lost: what still comes from the rings is not executed
        self._loop: asyncio.AbstractEventLoop | None = None
        self._broken_listeners: list[Callable[[int], None]] = []

    # ---- logical units ----

    @property
    def targets(self) -> Mapping[int, Target]:
        return self._luns.targets

    def map_lun(self, target: int, lun: int, unit: LogicalUnit, volume: Volume | None) -> None:
        """Hot: a running driver is told. Without a volume every command goes to the unit. Raises ValueError."""
        self._luns.add(target, lun, unit, volume)
        self._control.heed_aborts(self._luns[target, lun])
        self._events.transport_reset(target, lun, TransportResetReason.RESCAN)

    async def unmap_lun(self, target: int, lun: int) -> None:
        """Hot: returns when nothing uses the unit and its volume any more. Raises LookupError."""
        mapped = self._luns[target, lun]
        with self._luns.held([mapped]):
            self._luns.hide(mapped)
            if mapped.alone:
                mapped.unit.give_up()  # a SANITIZE may take for days, and its command waits for it
            await self._requests.left(target, lun)
            await self._luns.drained([mapped])
            if mapped.aborts:
                mapped.unit.forget_abort(mapped.aborts)
            self._luns.remove(mapped)
        if not mapped.unit.ports:
            await mapped.unit.settle()
        self._events.transport_reset(target, lun, TransportResetReason.REMOVED)
        if self._keeping:
            self._keeping.drop(f"{UNIT}/{target}/{lun}")

    async def settled(self, target: int, lun: int) -> None:
        """Returns when every command for the unit that came before has ended; the unit stays. Raises LookupError."""
        mapped = self._luns[target, lun]
        with self._luns.held([mapped]):
            await self._requests.left(target, lun)
            await self._luns.drained([mapped])

    def capacity_changed(self, target: int, lun: int) -> None:
        """Call it when the unit's medium has another length. Raises LookupError, ValueError when it is too short."""
        self._luns[target, lun].unit.capacity_changed()
        self._events.capacity_changed(target, lun)

    def in_flight(self, target: int, lun: int) -> int:
        """Commands of one unit that the data plane or the unit itself is busy with. Raises LookupError."""
        mapped = self._luns[target, lun]
        return len(self._requests.of(target, lun)) + self._luns.in_flight(mapped)

    def on_ring_broken(self, listener: Callable[[int], None]) -> None:
        """Calls it with the number of a vring that its driver broke."""
        self._broken_listeners.append(listener)

    def counters(self) -> list[Counters]:
        """Of every vring: control, event, request queues."""
        return [self.device.vring_count(vring) for vring in range(self.vrings)]

    async def close(self) -> None:
        """Call it when no session is left: ends the loop threads."""
        for mapped in self._luns.all():
            await mapped.unit.settle()
        if self._loop:
            self._loop.remove_reader(self.device.notice_fd())
        self.device.close()

    # ---- what a session says ----

    def connected(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self.device.notice_fd(), self._take)
        self._ending = False
        self._complaints.renew()
        self._luns.nexus = ITNexus(self.name, self._port)
        self._keep_units()

    def resumed(self, kept: Kept, *, connected: bool) -> None:
        """Units and nexus go on as another process left them; without a front-end only units."""
        states = {}
        for name, message in kept.beneath(UNIT):
            target, lun = map(int, name.removeprefix(f"{UNIT}/").split("/"))
            states[target, lun] = message.payload
        self._luns.resume(ITNexus(self.name, self._port) if connected else None, states)
        self._luns.changed.update(self._luns.all())
        self._keep_units()

    def serve_notices(self) -> None:
        """From now on, of a connection that was resumed."""
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self.device.notice_fd(), self._take)

    def _keep_units(self) -> None:
        """Before anybody is answered out of it, what a unit knows is kept."""
        while self._luns.changed:
            mapped = self._luns.changed.pop()
            if self._keeping:
                self._keeping.put(f"{UNIT}/{mapped.target}/{mapped.lun}", handed_over(mapped.unit))

    def negotiated(self, features: Feature) -> None:
        self._events.features = features

    def read_config(self, offset: int, length: int) -> bytes:
        """The bytes behind the last field read as zeros, as those of any virtio device do."""
        return self._configuration[offset : offset + length].ljust(length, b"\0")

    def write_config(self, offset: int, data: bytes) -> None:
        """Drivers write the sizes of CDB and sense data that are the default anyway; other sizes are not served."""
        if data != self.read_config(offset, len(data)):
            raise RefusalError(f"configuration bytes {offset}..+{len(data)} are fixed: cdb_size is 32, sense_size 96")

    async def idle(self, vring: int) -> None:
        while self.device.vring_in_flight(vring):
            self._idle.clear()
            await self._idle.wait()

    async def abort(self) -> None:
        self._ending = True
        self._take_all()
        await self._requests.end(self._requests.waiting, Code.RESET)

    def reset(self) -> None:
        self._ending = False
        self._events.clear()
        self._luns.reset()

    def disconnected(self) -> None:
        self._events.clear()
        self._events.features = Feature(0)
        self._luns.nexus = None

    # ---- what the data plane says ----

    def _take_all(self) -> None:
        """Serves everything that the data plane has fetched up to now."""
        fetched = sum(self.device.vring_in_flight(vring) for vring in range(self.vrings))
        while fetched > 0 and (taken := self._take()):
            fetched -= taken

    def _take(self) -> int:
        notices = self.device.take()
        for notice in notices:
            try:
                self._serve(notice)
            except Exception:
                log.exception("%s: notice of vring %d", self.name, notice.vring)
        self._completions.flush()
        return len(notices)

    def _serve(self, notice: Notice) -> None:
        if notice.kind == NoticeKind.REQUEST:
            self._request(notice)
        elif notice.kind == NoticeKind.IDLE:
            self._idle.set()
        elif notice.kind == NoticeKind.EVENTS:
            self._events.send_waiting()
        else:
            self._complaints.tell("vring %d was broken by its driver and is served no more", notice.vring)
            for listener in self._broken_listeners:
                listener(notice.vring)

    def _request(self, notice: Notice) -> None:
        nexus = self._luns.nexus
        if notice.vring == CONTROL_QUEUE and nexus:
            self._control.serve(notice, nexus)
        elif nexus and not self._ending:
            self._requests.serve(notice, nexus)
        else:
            self._requests.refuse(notice, Code.RESET)
