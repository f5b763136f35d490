"""One virtio-scsi endpoint: its rings, guest memory and LUN table, and the slow path's notices and completions."""

import errno
import logging
from collections.abc import Iterable, Sequence
from enum import IntEnum
from typing import Any, NamedTuple, Protocol

from vstore.dataplane.native import checked, ffi, lent, lib, made
from vstore.dataplane.volume import Bytes, Volume

log = logging.getLogger(__name__)

GATE_READ: int = lib.VS_GATE_READ
GATE_WRITE: int = lib.VS_GATE_WRITE
GATE_FLUSH: int = lib.VS_GATE_FLUSH
TAKE_AT_ONCE = 64
NO_IO_URING = (errno.EPERM, errno.ENOSYS, errno.EACCES, errno.ENOMEM)


class NoticeKind(IntEnum):
    """dataplane.h, VS_NOTICE_*."""

    REQUEST = lib.VS_NOTICE_REQUEST
    IDLE = lib.VS_NOTICE_IDLE
    BROKEN = lib.VS_NOTICE_BROKEN
    EVENTS = lib.VS_NOTICE_EVENTS


class LunSettings(NamedTuple):
    """dataplane.h, vs_lun_settings: lengths in logical blocks."""

    block_shift: int
    gate: int
    write_through: bool
    max_transfer: int
    max_unmap_descriptors: int
    deallocates: bool
    blocks: int
    max_write_same: int


class Notice(NamedTuple):
    """dataplane.h, vs_notice. `request` is opaque, and ours until complete()."""

    kind: int
    vring: int
    request: Any = None
    data_out: int = 0
    data_in: int = 0
    header: bytes = b""
    response_room: int = 0

    @property
    def header_length(self) -> int:
        return len(self.header)


class Completion(NamedTuple):
    """dataplane.h, vs_completion."""

    request: Any
    response: bytes
    data_in_length: int = 0


class Counters(NamedTuple):
    """dataplane.h, vs_vring_counters."""

    kicks: int
    calls: int
    fetched: int
    completed: int
    slow: int
    batches: int
    bytes_read: int
    bytes_written: int
    resumed: int
    started: int
    enabled: int
    broken: int
    in_flight: int


class LunCounters(NamedTuple):
    """dataplane.h, vs_lun_counters."""

    reads: int
    writes: int
    bytes_read: int
    bytes_written: int


def inflight_size(vrings: int, entries: int) -> int:
    """Bytes of the memory that Device.set_inflight takes, for `vrings` vrings of `entries` entries."""
    return int(lib.vs_inflight_size(vrings, entries))


class FastRowLike(Protocol):
    """What vstore.scsi derives from its command table: the members of vs_fast_row."""

    @property
    def opcode(self) -> int: ...
    @property
    def kind(self) -> int: ...
    @property
    def slow_mask(self) -> bytes: ...


_ROW_MEMBERS = tuple(name for name, _ in ffi.typeof("vs_fast_row").fields)


class Device:
    """Makes the loop threads at once; without io_uring here (a container may forbid it) calls are made inline.

    vrings: control, event and request queues together, 3..66. poll_ns: upper bound of adaptive polling.
    """

    def __init__(self, vrings: int, threads: int = 1, poll_ns: int = 100_000) -> None:
        self.io_uring = True
        self._device = self._made(vrings, threads, poll_ns)
        self._notices = ffi.new("vs_notice[]", TAKE_AT_ONCE)

    def _made(self, vrings: int, threads: int, poll_ns: int) -> Any:
        call = f"device_new(vrings {vrings}, threads {threads})"
        settings = ffi.new("vs_settings *", (vrings, threads, poll_ns, 1))
        device = lib.vs_device_new(settings)
        if device == ffi.NULL and ffi.errno in NO_IO_URING:
            log.warning("no io_uring here (%s): reads that miss the page cache will hold up their queue", ffi.errno)
            self.io_uring = False
            settings.use_io_uring = 0
            device = lib.vs_device_new(settings)
        return made(device, call)

    def close(self) -> None:
        """All rings must be idle."""
        device, self._device = self._device, None
        if device is not None:
            lib.vs_device_free(device)

    # ---- guest memory, features, dirty log ----

    def memory_add(self, guest_address: int, size: int, user_address: int, fd: int, mmap_offset: int) -> None:
        result = lib.vs_memory_add(self._device, guest_address, size, user_address, fd, mmap_offset)
        checked(result, f"memory_add(guest {guest_address:#x}, size {size:#x}, offset {mmap_offset:#x})")

    def memory_remove(self, guest_address: int, size: int, user_address: int) -> None:
        result = lib.vs_memory_remove(self._device, guest_address, size, user_address)
        checked(result, f"memory_remove(guest {guest_address:#x}, size {size:#x})")

    def set_features(self, features: int) -> None:
        checked(lib.vs_device_set_features(self._device, features), f"set_features({features:#x})")

    def set_log(self, fd: int, size: int, offset: int) -> None:
        checked(lib.vs_device_set_log(self._device, fd, size, offset), f"set_log(size {size}, offset {offset})")

    def set_inflight(self, fd: int, size: int, offset: int, vrings: int, entries: int) -> None:
        result = lib.vs_device_set_inflight(self._device, fd, size, offset, vrings, entries)
        checked(result, f"set_inflight(size {size}, offset {offset}, {vrings} vrings of {entries})")

    # ---- vrings ----

    def vring_set_size(self, vring: int, size: int) -> None:
        checked(lib.vs_vring_set_size(self._device, vring, size), f"vring_set_size({vring}, {size})")

    def vring_set_base(self, vring: int, base: int) -> None:
        checked(lib.vs_vring_set_base(self._device, vring, base), f"vring_set_base({vring}, {base})")

    def vring_set_addresses(  # noqa: PLR0917 - the order of VHOST_SET_VRING_ADDR
        self, vring: int, flags: int, desc: int, used: int, avail: int, log: int
    ) -> None:
        result = lib.vs_vring_set_addresses(self._device, vring, flags, desc, used, avail, log)
        checked(result, f"vring_set_addresses({vring}, desc {desc:#x}, used {used:#x}, avail {avail:#x})")

    def vring_set_kick(self, vring: int, fd: int) -> None:
        checked(lib.vs_vring_set_kick(self._device, vring, fd), f"vring_set_kick({vring})")

    def vring_set_call(self, vring: int, fd: int) -> None:
        checked(lib.vs_vring_set_call(self._device, vring, fd), f"vring_set_call({vring})")

    def vring_set_error(self, vring: int, fd: int) -> None:
        checked(lib.vs_vring_set_error(self._device, vring, fd), f"vring_set_error({vring})")

    def vring_start(self, vring: int) -> None:
        checked(lib.vs_vring_start(self._device, vring), f"vring_start({vring})")

    def vring_enable(self, vring: int, enabled: bool) -> None:
        checked(lib.vs_vring_enable(self._device, vring, enabled), f"vring_enable({vring})")

    def vring_stop(self, vring: int) -> None:
        checked(lib.vs_vring_stop(self._device, vring), f"vring_stop({vring})")

    def vring_base(self, vring: int) -> int:
        return checked(lib.vs_vring_base(self._device, vring), f"vring_base({vring})")

    def vring_in_flight(self, vring: int) -> int:
        return checked(lib.vs_vring_in_flight(self._device, vring), f"vring_in_flight({vring})")

    def vring_break(self, vring: int) -> None:
        checked(lib.vs_vring_break(self._device, vring), f"vring_break({vring})")

    def vring_count(self, vring: int) -> Counters:
        counters = ffi.new("vs_vring_counters *")
        checked(lib.vs_vring_count(self._device, vring, counters), f"vring_count({vring})")
        return Counters(**{name: int(getattr(counters, name)) for name in Counters._fields})

    # ---- LUNs and the fast path ----

    def set_fast_rows(self, rows: Sequence[FastRowLike]) -> None:
        native = ffi.new("vs_fast_row[]", [{name: getattr(row, name) for name in _ROW_MEMBERS} for row in rows])
        checked(lib.vs_device_set_fast_rows(self._device, native, len(rows)), f"set_fast_rows({len(rows)} rows)")

    def lun_set(self, target: int, lun: int, volume: Volume, settings: LunSettings) -> None:
        native = ffi.new("vs_lun_settings *", settings._asdict())
        result = lib.vs_lun_set(self._device, target, lun, volume.pointer, native)
        checked(result, f"lun_set(target {target}, LUN {lun}, {settings.blocks} blocks)")

    def lun_remove(self, target: int, lun: int) -> None:
        checked(lib.vs_lun_remove(self._device, target, lun), f"lun_remove(target {target}, LUN {lun})")

    def lun_in_flight(self, target: int, lun: int, tag: int | None = None) -> int:
        result = lib.vs_lun_in_flight(self._device, target, lun, tag or 0, tag is None)
        return checked(result, f"lun_in_flight(target {target}, LUN {lun})")

    def lun_count(self, target: int, lun: int) -> LunCounters:
        counters = ffi.new("vs_lun_counters *")
        checked(lib.vs_lun_count(self._device, target, lun, counters), f"lun_count(target {target}, LUN {lun})")
        return LunCounters(**{name: int(getattr(counters, name)) for name in LunCounters._fields})

    def fetch_all(self) -> None:
        checked(lib.vs_device_fetch_all(self._device), "fetch_all()")

    # ---- the slow path ----

    def notice_fd(self) -> int:
        return checked(lib.vs_device_notice_fd(self._device), "notice_fd()")

    def take(self) -> list[Notice]:
        """At most TAKE_AT_ONCE notices; the descriptor stays readable while there are more."""
        count = checked(lib.vs_device_take(self._device, self._notices, TAKE_AT_ONCE), "take()")
        return [_notice(self._notices[i]) for i in range(count)]

    def request_read(self, request: Any, offset: int, length: int) -> bytes:
        buffer = bytearray(length)
        result = lib.vs_request_read(request, offset, ffi.from_buffer(buffer), length)
        checked(result, f"request_read({offset}, {length})")
        return bytes(buffer)

    def request_write(self, request: Any, offset: int, data: Bytes) -> None:
        with lent(data) as source:
            result = lib.vs_request_write(request, offset, source, len(source))
        checked(result, f"request_write({offset}, {len(data)})")

    def complete(self, completions: Iterable[Completion]) -> None:
        native = ffi.new("vs_completion[]", [_completion(completion) for completion in completions])
        checked(lib.vs_complete(self._device, native, len(native)), f"complete({len(native)})")

    def event_send(self, event: bytes) -> bool:
        """False: the driver has no buffer on its event queue now (a notice EVENTS follows when it has)."""
        return bool(checked(lib.vs_event_send(self._device, event, len(event)), "event_send()"))


def _notice(native: Any) -> Notice:
    if native.kind != NoticeKind.REQUEST:
        return Notice(native.kind, native.vring)
    header = bytes(ffi.buffer(native.header, native.header_length))
    return Notice(
        native.kind, native.vring, native.request, native.data_out, native.data_in, header, native.response_room
    )


def _completion(completion: Completion) -> tuple[Any, int, int, bytes]:
    return completion.request, completion.data_in_length, len(completion.response), completion.response
