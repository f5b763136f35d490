"""The event queue: what the device tells unasked (virtio 1.2, 5.6.6.3).

The driver keeps buffers there for events. While it has none, events wait here, at most as many as below; what does
not fit is lost, and the next event says so (EVENTS_MISSED), upon which drivers rescan. Nothing is told of what the
driver did not ask for by its features, and nothing before there is a driver: it scans when it starts.
"""

import logging
from collections import deque

from vstore.dataplane import Device
from vstore.vhost_user.layout import EVENTS_MISSED, Event, EventKind, TransportResetReason, lun_octets
from vstore.vhost_user.messages import Feature

log = logging.getLogger(__name__)

MOST_WAITING = 64

CAPACITY_DATA_HAS_CHANGED = 0x2A, 0x09


class EventQueue:
    def __init__(self, device: Device) -> None:
        self._device = device
        self._waiting: deque[Event] = deque()
        self._missed = False
        self.features = Feature(0)

    def transport_reset(self, target: int, lun: int, reason: TransportResetReason) -> None:
        if Feature.HOTPLUG in self.features:
            self._tell(Event(EventKind.TRANSPORT_RESET, lun_octets(target, lun), reason))

    def capacity_changed(self, target: int, lun: int) -> None:
        if Feature.CHANGE in self.features:
            asc, ascq = CAPACITY_DATA_HAS_CHANGED
            self._tell(Event(EventKind.PARAM_CHANGE, lun_octets(target, lun), asc | ascq << 8))

    def send_waiting(self) -> None:
        """Call when the driver has given buffers again."""
        if self._missed and not self._waiting:
            self._waiting.append(Event(EventKind.NO_EVENT, bytes(8), 0))
        while self._waiting and self._send(self._waiting[0]):
            self._waiting.popleft()

    def clear(self) -> None:
        """The driver is gone, or begins anew."""
        self._waiting.clear()
        self._missed = False

    def _tell(self, event: Event) -> None:
        if event in self._waiting:
            return
        if len(self._waiting) >= MOST_WAITING:
            self._missed = True
            return
        self._waiting.append(event)
        self.send_waiting()

    def _send(self, event: Event) -> bool:
        told = Event(event.event | (EVENTS_MISSED if self._missed else 0), event.lun, event.reason)
        try:
            sent = self._device.event_send(told.pack())
        except OSError as error:
            log.warning("event queue: %s", error)
            return False
        self._missed = self._missed and not sent
        return sent
