"""A data plane without C: it remembers what it was told, and tests say what its rings fetch and when they go idle.

It judges arguments as dataplane.h promises, as far as the sessions depend on it, so that a session is tested alone.
"""

import contextlib
import errno
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from vstore.dataplane import (
    Completion,
    Counters,
    Device,
    FastRowLike,
    LunCounters,
    LunSettings,
    Notice,
    NoticeKind,
    Volume,
)


@dataclass
class FakeRing:
    size: int = 0
    base: int = 0
    addresses: tuple[int, ...] = ()
    kick: int = -1
    call: int = -1
    error: int = -1
    started: bool = False
    enabled: bool = False
    broken: bool = False
    in_flight: int = 0


@dataclass
class FakeRequest:
    """What a chain carried: data-out as it came, data-in as it was written, the response once there is one."""

    vring: int
    data_out: bytes = b""
    data_in: bytearray = field(default_factory=bytearray)
    response: bytes | None = None
    written: int = 0


class FakeDevice(Device):
    """Descriptors are duplicated as the real one does, so leaks and early closes show in /proc/self/fd."""

    def __init__(self, vrings: int = 4) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.rings = [FakeRing() for _ in range(vrings)]
        self.regions: dict[tuple[int, int, int], int] = {}
        self.features = 0
        self.log: int = -1
        self.inflight: tuple[int, ...] | None = None  # (size of the file, size, offset, vrings, entries)
        self.luns: dict[tuple[int, int], LunSettings] = {}
        self.counts: dict[tuple[int, int], LunCounters] = {}  # of the fast path
        self.busy: dict[tuple[int, int], list[int]] = {}  # tags that the fast path has in flight
        self.answered: list[FakeRequest] = []  # in the order in which they reach the used ring
        self.events: list[bytes] = []
        self.event_room = 0
        self.unfetched: list[tuple[FakeRequest, bytes, int]] = []  # available, but the loop has not looked yet
        self.memory_gone = False  # guest memory faults
        self.in_python = [0] * vrings  # of each ring's requests in flight, those handed over
        self._notices: list[Notice] = []
        self._notice_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def close(self) -> None:
        for ring in self.rings:
            for descriptor in (ring.kick, ring.call, ring.error):
                if descriptor >= 0:
                    os.close(descriptor)
        for descriptor in self.regions.values():
            os.close(descriptor)
        self.set_log(-1, 0, 0)
        os.close(self._notice_fd)

    # ---- what tests do ----

    def make_available(
        self, vring: int, header: bytes, data_out: bytes = b"", room: int = 0, response: int = 108
    ) -> Any:
        """The driver makes a chain available; the loop has not seen it yet."""
        request = FakeRequest(vring, data_out, bytearray(room))
        self.unfetched.append((request, header, response))
        return request

    def fetch(self, *arguments: Any, **options: Any) -> FakeRequest:
        """The same, and the loop finds it and hands it to Python; others stay unseen."""
        request = self.make_available(*arguments, **options)
        self._hand_over(*self.unfetched.pop())
        return request

    def notify(self, kind: NoticeKind, vring: int) -> None:
        self._post(Notice(kind, vring))

    def finish(self, vring: int, count: int = 1) -> None:
        """The fast path completes this many of the ring's requests."""
        ring = self.rings[vring]
        ring.in_flight -= count
        if not ring.in_flight and not ring.started:
            self.notify(NoticeKind.IDLE, vring)

    # ---- the device ----

    def set_inflight(self, fd: int, size: int, offset: int, vrings: int, entries: int) -> None:
        if any(ring.started or ring.in_flight for ring in self.rings):
            raise OSError(errno.EBUSY, "a ring is started")
        if fd >= 0 and offset + size > os.fstat(fd).st_size:
            raise OSError(errno.EFBIG, "the file is too small")
        self.inflight = (os.fstat(fd).st_size, size, offset, vrings, entries) if fd >= 0 else None

    def memory_add(self, guest_address: int, size: int, user_address: int, fd: int, mmap_offset: int) -> None:
        self.calls.append(("memory_add", guest_address, size, user_address, mmap_offset))
        if guest_address + size > 1 << 64 or user_address + size > 1 << 64:
            raise OSError(errno.EOVERFLOW, "wraps")
        for other, length, user in self.regions:
            if _overlap(guest_address, other, size, length) or _overlap(user_address, user, size, length):
                raise OSError(errno.EEXIST, "overlaps")
        if os.fstat(fd).st_size < mmap_offset + size:
            raise OSError(errno.EFBIG, "file is too short")
        self.regions[guest_address, size, user_address] = os.dup(fd)

    def memory_remove(self, guest_address: int, size: int, user_address: int) -> None:
        self.calls.append(("memory_remove", guest_address, size, user_address))
        if any(ring.started or ring.in_flight for ring in self.rings):
            raise OSError(errno.EBUSY, "rings run")
        os.close(self.regions.pop((guest_address, size, user_address)))

    def set_features(self, features: int) -> None:
        self.features = features

    def set_log(self, fd: int, size: int, offset: int) -> None:
        self.calls.append(("set_log", fd >= 0, size, offset))
        if self.log >= 0:
            os.close(self.log)
        self.log = -1 if fd < 0 else os.dup(fd)

    def vring_set_size(self, vring: int, size: int) -> None:
        if not 0 < size <= 32768 or size & (size - 1):
            raise OSError(errno.EINVAL, "no size of a ring")
        self._idle_ring(vring).size = size

    def vring_set_base(self, vring: int, base: int) -> None:
        self._idle_ring(vring).base = base

    def vring_set_addresses(self, vring: int, flags: int, *addresses: int) -> None:  # desc, used, avail, log
        self.calls.append(("vring_set_addresses", vring, flags))
        self.rings[vring].addresses = addresses

    def vring_set_kick(self, vring: int, fd: int) -> None:
        self.rings[vring].kick = _replace(self.rings[vring].kick, fd)

    def vring_set_call(self, vring: int, fd: int) -> None:
        self.calls.append(("vring_set_call", vring))
        self.rings[vring].call = _replace(self.rings[vring].call, fd)

    def vring_set_error(self, vring: int, fd: int) -> None:
        self.rings[vring].error = _replace(self.rings[vring].error, fd)

    def vring_start(self, vring: int) -> None:
        self.calls.append(("vring_start", vring))
        ring = self.rings[vring]
        for address in ring.addresses[:3]:
            if not any(user <= address < user + size for _, size, user in self.regions):
                raise OSError(errno.EFAULT, "not in guest memory")
        ring.started, ring.broken = True, False

    def vring_enable(self, vring: int, enabled: bool) -> None:
        self.rings[vring].enabled = enabled

    def vring_stop(self, vring: int) -> None:
        self.calls.append(("vring_stop", vring))
        ring = self.rings[vring]
        ring.started = False
        if not ring.in_flight:
            self.notify(NoticeKind.IDLE, vring)

    def vring_base(self, vring: int) -> int:
        return self.rings[vring].base

    def vring_in_flight(self, vring: int) -> int:
        return self.rings[vring].in_flight

    def vring_break(self, vring: int) -> None:
        self.calls.append(("vring_break", vring))
        self.rings[vring].broken = True
        self.notify(NoticeKind.BROKEN, vring)

    def vring_count(self, vring: int) -> Counters:
        ring = self.rings[vring]
        return Counters(0, 0, 0, 0, 0, 0, 0, 0, 0, ring.started, ring.enabled, ring.broken, ring.in_flight)

    def set_fast_rows(self, rows: Sequence[FastRowLike]) -> None:
        self.calls.append(("set_fast_rows", len(rows)))

    def lun_set(self, target: int, lun: int, volume: Volume, settings: LunSettings) -> None:
        del volume
        self.luns[target, lun] = settings

    def lun_remove(self, target: int, lun: int) -> None:
        if self.busy.get((target, lun)):
            raise OSError(errno.EBUSY, "commands are in flight")
        del self.luns[target, lun]

    def lun_in_flight(self, target: int, lun: int, tag: int | None = None) -> int:
        tags = self.busy.get((target, lun), [])
        return len(tags) if tag is None else tags.count(tag)

    def lun_count(self, target: int, lun: int) -> LunCounters:
        return self.counts.get((target, lun), LunCounters(0, 0, 0, 0))

    def fetch_all(self) -> None:
        self.calls.append(("fetch_all",))
        unfetched, self.unfetched = self.unfetched, []
        for chain in unfetched:
            self._hand_over(*chain)

    def notice_fd(self) -> int:
        return self._notice_fd

    def take(self) -> list[Notice]:
        taken, self._notices = self._notices[:64], self._notices[64:]
        if not self._notices:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._notice_fd)
        return taken

    def request_read(self, request: FakeRequest, offset: int, length: int) -> bytes:
        if self.memory_gone:
            raise OSError(errno.EFAULT, "guest memory went away")
        if offset + length > len(request.data_out):
            raise OSError(errno.EINVAL, "beyond data-out")
        return request.data_out[offset : offset + length]

    def request_write(self, request: FakeRequest, offset: int, data: Any) -> None:
        if self.memory_gone:
            raise OSError(errno.EFAULT, "guest memory went away")
        if offset + len(data) > len(request.data_in):
            raise OSError(errno.EINVAL, "beyond data-in")
        request.data_in[offset : offset + len(data)] = data

    def complete(self, completions: Iterable[Completion]) -> None:
        for completion in list(completions):
            request: FakeRequest = completion.request
            assert request.response is None, "answered twice"
            request.response, request.written = completion.response, completion.data_in_length
            if not self.rings[request.vring].broken:
                self.answered.append(request)
            self.in_python[request.vring] -= 1
            self.finish(request.vring)

    def event_send(self, event: bytes) -> bool:
        if not self.event_room:
            return False
        self.event_room -= 1
        self.events.append(event)
        return True

    def _idle_ring(self, vring: int) -> FakeRing:
        if self.rings[vring].started:
            raise OSError(errno.EBUSY, "the ring runs")
        return self.rings[vring]

    def _hand_over(self, request: FakeRequest, header: bytes, response: int) -> None:
        self.rings[request.vring].in_flight += 1
        self.in_python[request.vring] += 1
        data_out, data_in = len(request.data_out), len(request.data_in)
        self._post(Notice(NoticeKind.REQUEST, request.vring, request, data_out, data_in, header, response))

    def _post(self, notice: Notice) -> None:
        self._notices.append(notice)
        os.eventfd_write(self._notice_fd, 1)


def _replace(old: int, new: int) -> int:
    if old >= 0:
        os.close(old)
    return -1 if new < 0 else os.dup(new)


def _overlap(first: int, second: int, first_size: int, second_size: int) -> bool:
    return first < second + second_size and second < first + first_size
