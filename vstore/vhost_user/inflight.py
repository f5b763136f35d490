"""Memory in which the data plane keeps account of what is in flight (vhost-user, "Inflight I/O tracking").

    GET_INFLIGHT_FD    a new memfd of zeros; the front-end holds it from then on, over the end of this process
    SET_INFLIGHT_FD    that memfd, or the one of before: whatever it says was in flight is fetched again

The front-end only holds it, and gives it back when it connects again. Of its numbers none is believed: the data plane
compares sizes with the file's, and every index in it with the ring's.
"""

import fcntl
import logging
import os
from typing import Self

from vstore.dataplane import Device, inflight_size
from vstore.vhost_user.errors import RefusalError
from vstore.vhost_user.keeping import Keeping
from vstore.vhost_user.messages import Inflight

MOST_VRINGS = 1024  # QEMU counts what its command line says, which may be more than is served
OWN_ENTRIES = 1024  # of a ring; more are rare, and such a ring cannot be resumed
SET_INFLIGHT_FD = 32
_PAGE = 4096

log = logging.getLogger(__name__)


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
        self.there = False

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
        self.there = True

    def provide(self, vrings: int, keeping: Keeping) -> None:
        """One that the front-end knows nothing of, for a process that goes on with its connection."""
        size = -inflight_size(vrings, OWN_ENTRIES) // _PAGE * -_PAGE
        told = Inflight(size, 0, vrings, OWN_ENTRIES, 0)
        descriptor = memory(self._name, size)
        try:
            self.adopt(told, descriptor)
            keeping.put("SET_INFLIGHT_FD", told.pack(), request=SET_INFLIGHT_FD, descriptors=[descriptor])
        except OSError as error:
            log.warning("%s: nobody will be able to go on with what is in flight: %s", self._name, error)
        finally:
            os.close(descriptor)

    def clear(self) -> None:
        """No ring may run."""
        if self.there:
            self._device.set_inflight(-1, 0, 0, 0, 0)
        self.there = False


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
