"""Memory in which the data plane keeps account of what is in flight (vhost-user, "Inflight I/O tracking").

    GET_INFLIGHT_FD    a new memfd of zeros; the front-end holds it from then on, over the end of this process
    SET_INFLIGHT_FD    that memfd, or the one of before: whatever it says was in flight is fetched again

The front-end only holds it, and gives it back when it connects again. Of its numbers none is believed: the data plane
compares sizes with the file's, and every index in it with the ring's.
"""

import fcntl
import os
from typing import Self

from vstore.dataplane import Device, inflight_size
from vstore.vhost_user.errors import RefusalError
from vstore.vhost_user.messages import Inflight

MOST_VRINGS = 1024  # QEMU counts what its command line says, which may be more than is served
_PAGE = 4096


class Attached:
    """A reply with a descriptor, which is closed at the end of the `with`."""

    def __init__(self, payload: Inflight, descriptor: int) -> None:
        self.payload = payload
        self.descriptor = descriptor

    def pack(self) -> bytes:
        return self.payload.pack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.descriptor)


class InflightRegion:
    """Of one connection. Methods raise RefusalError, or OSError."""

    def __init__(self, device: Device, name: str) -> None:
        self._device = device
        self._name = name
        self._there = False

    def made(self, wanted: Inflight) -> Attached:
        """A new one, not in use yet."""
        _check(wanted)
        size = -inflight_size(wanted.num_queues, wanted.queue_size) // _PAGE * -_PAGE
        descriptor = memory(self._name, size)
        return Attached(Inflight(size, 0, wanted.num_queues, wanted.queue_size, 0), descriptor)

    def adopt(self, told: Inflight, descriptor: int) -> None:
        """No ring may run."""
        _check(told)
        self._device.set_inflight(descriptor, told.mmap_size, told.mmap_offset, told.num_queues, told.queue_size)
        self._there = True

    def clear(self) -> None:
        """No ring may run."""
        if self._there:
            self._device.set_inflight(-1, 0, 0, 0, 0)
        self._there = False


def memory(name: str, size: int) -> int:
    """A descriptor of `size` bytes of zeros that nobody can cut short. Raises OSError."""
    descriptor = os.memfd_create(f"vstore {name}"[:64], os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(descriptor, size)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _check(inflight: Inflight) -> None:
    if not 0 < inflight.num_queues <= MOST_VRINGS:
        raise RefusalError(f"{inflight.num_queues} queues in flight: 1..{MOST_VRINGS} are possible")
    if not 0 < inflight.queue_size <= 32768:  # virtio 1.2 2.7
        raise RefusalError(f"queues of {inflight.queue_size} entries in flight: 1..32768 are possible")
