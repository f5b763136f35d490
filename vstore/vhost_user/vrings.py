"""The rings of one connection: what the front-end has told of each, and whether that is enough to start it.

    stopped --SET_VRING_NUM, ADDR and KICK, in any order--> started --GET_VRING_BASE, reset, disconnect--> stopped

The specification starts a ring at its first kick; like every back-end in use, vstore starts it when SET_VRING_KICK says
how kicks will come, because a driver may have filled the ring before. Stopping has two halves: no chain is fetched any
more (at once), and nothing that was fetched is still in flight (awaited).
"""

import contextlib
import itertools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

from vstore.dataplane import Device
from vstore.vhost_user.complaints import Complaints
from vstore.vhost_user.errors import RefusalError
from vstore.vhost_user.messages import VringAddress

log = logging.getLogger(__name__)


@dataclass
class Vring:
    """What the front-end has told of one ring. `kicked`: SET_VRING_KICK came, with a descriptor or without one."""

    index: int
    size: int = 0
    address: VringAddress | None = None
    kicked: bool = False
    enabled: bool = False
    started: bool = False

    @property
    def complete(self) -> bool:
        return bool(self.size and self.address and self.kicked)

    def check_layout(self) -> None:
        """Raises RefusalError when the ring's parts overlap: libkrun tells so of queues that no driver uses.

        Counted without their event fields (virtio 1.2 2.7.6): small firmware drivers, which negotiate none, save those.
        """
        if not (self.address and self.size):
            return
        parts = sorted(
            (
                (self.address.descriptor, 16 * self.size),
                (self.address.available, 4 + 2 * self.size),
                (self.address.used, 4 + 8 * self.size),
            )
        )
        if any(start + length > following for (start, length), (following, _) in itertools.pairwise(parts)):
            raise RefusalError(f"vring {self.index}: descriptors, available and used ring overlap")


class Vrings:
    """Methods that set something raise RefusalError, or OSError from the data plane."""

    def __init__(
        self, device: Device, count: int, wait_idle: Callable[[int], Awaitable[None]], complaints: Complaints
    ) -> None:
        self._device = device
        self._wait_idle = wait_idle
        self._complaints = complaints
        self._rings = [Vring(index) for index in range(count)]
        self.negotiated = False  # no ring runs before SET_FEATURES said what its bytes mean

    def __contains__(self, index: int) -> bool:
        return index < len(self._rings)

    def __getitem__(self, index: int) -> Vring:
        if index not in self:
            raise RefusalError(f"vring {index} of a device with {len(self._rings)} vrings: lower num_queues")
        return self._rings[index]

    async def quiet(self) -> bool:
        """Whether no ring runs; rings that are disabled are stopped for it."""
        await self._stop([vring for vring in self._rings if vring.started and not vring.enabled], forget=True)
        return not any(vring.started for vring in self._rings)

    async def set_size(self, index: int, size: int) -> None:
        vring = await self._stopped(index, "size")
        self._device.vring_set_size(index, size)
        vring.size = size
        self._start_if_complete(vring)

    async def set_base(self, index: int, base: int) -> None:
        await self._stopped(index, "base")
        if base > 0xFFFF:
            raise RefusalError(f"vring {index}: base {base:#x} is no index of a split ring")
        self._device.vring_set_base(index, base)

    def set_addresses(self, address: VringAddress) -> None:
        """Also for a running ring: migration switches its dirty logging on that way."""
        vring = self[address.index]
        replace(vring, address=address).check_layout()
        self._device.vring_set_addresses(
            address.index, address.flags, address.descriptor, address.used, address.available, address.log
        )
        vring.address = address
        self._start_if_complete(vring)

    def set_kick(self, index: int, descriptor: int) -> None:
        vring = self[index]
        self._device.vring_set_kick(index, descriptor)
        vring.kicked = True
        self._start_if_complete(vring)

    def enable(self, index: int, *, enabled: bool) -> None:
        self._device.vring_enable(index, enabled)
        self[index].enabled = enabled

    def enable_all(self) -> None:
        for vring in self._rings:
            self.enable(vring.index, enabled=True)

    def start_complete(self) -> None:
        """Starts what could not start before, because memory or features were missing."""
        for vring in self._rings:
            try:
                self._start_if_complete(vring)
            except (OSError, RefusalError) as error:
                log.debug("vring %d still cannot start: %s", vring.index, error)

    async def base(self, index: int) -> int:
        """Stops the ring and says, once nothing of it is in flight, which available entry it would fetch next."""
        vring = self[index]
        await self._stop([vring], forget=True)
        return self._device.vring_base(index)

    @contextlib.asynccontextmanager
    async def suspended(self) -> AsyncIterator[None]:
        """No ring runs and nothing is in flight inside; what ran before, and was not broken, runs again afterwards. A
        broken one waits for its driver to set it up anew."""
        running = [vring for vring in self._rings if vring.started]
        broken = [vring for vring in running if self._device.vring_count(vring.index).broken]
        await self._stop(broken, forget=True)
        await self._stop(running)
        try:
            yield
        finally:
            for vring in running:
                self._restart(vring)

    def halt(self) -> None:
        """Nothing is fetched from any ring from now on. What is in flight goes on; see clear()."""
        for vring in self._rings:
            self.enable(vring.index, enabled=False)
            if vring.started:
                self._device.vring_stop(vring.index)
                vring.started = False

    async def clear(self) -> None:
        """Returns when halted rings have nothing in flight; all but call and error descriptors is then forgotten."""
        for vring in self._rings:
            await self._wait_idle(vring.index)
            self._device.vring_set_kick(vring.index, -1)
            self._device.vring_set_base(vring.index, 0)
            self._rings[vring.index] = Vring(vring.index)

    def forget_descriptors(self) -> None:
        for vring in self._rings:
            self._device.vring_set_call(vring.index, -1)
            self._device.vring_set_error(vring.index, -1)

    async def _stopped(self, index: int, what: str) -> Vring:
        """A ring to be set up. Early Cloud Hypervisor only disables its rings before it sets them up anew."""
        vring = self[index]
        if vring.started and vring.enabled:
            raise RefusalError(f"vring {index} runs: its {what} cannot change")
        if vring.started:
            await self._stop([vring], forget=True)
        return vring

    def _start_if_complete(self, vring: Vring) -> None:
        if self.negotiated and vring.complete and not vring.started:
            vring.check_layout()
            self._device.vring_start(vring.index)
            vring.started = True

    def _restart(self, vring: Vring) -> None:
        try:
            self._start_if_complete(vring)
        except (OSError, RefusalError) as error:
            self._complaints.tell("vring %d cannot go on after guest memory changed: %s", vring.index, error)

    async def _stop(self, vrings: Sequence[Vring], *, forget: bool = False) -> None:
        """`forget`: they start again only with another SET_VRING_KICK."""
        stopping = [vring for vring in vrings if vring.started]
        for vring in stopping:
            self._device.vring_stop(vring.index)
            vring.started = False
        for vring in stopping:
            await self._wait_idle(vring.index)
        for vring in vrings if forget else []:
            vring.kicked = False
            self._device.vring_set_kick(vring.index, -1)
