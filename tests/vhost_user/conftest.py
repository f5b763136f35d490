"""A session with a fake data plane behind it and a scripted front-end before it."""

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import pytest

from tests.vhost_user.fake_device import FakeDevice
from tests.vhost_user.frontend import Frontend
from vstore.scsi.identity import Identity
from vstore.scsi.logical_unit import LogicalUnit
from vstore.scsi.medium import MemoryMedium
from vstore.vhost_user.session import Session
from vstore.vhost_user.virtio_scsi import ScsiEndpoint

VRINGS = 6


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@dataclass
class Rig:
    """Everything from the socket to the medium, but C."""

    device: FakeDevice
    endpoint: ScsiEndpoint
    medium: MemoryMedium
    unit: LogicalUnit

    @contextlib.asynccontextmanager
    async def connection(self) -> AsyncIterator[Frontend]:
        """A front-end with a session of its own; leaving it disconnects, and waits for the session's end."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        frontend = Frontend(theirs)
        running = asyncio.create_task(Session(self.endpoint, ours).run())
        try:
            yield frontend
        finally:
            frontend.close()
            await asyncio.wait_for(running, 10)


@contextlib.asynccontextmanager
async def rig(*, config_space: bool = False, volume: bool = False) -> AsyncIterator[Rig]:
    device = FakeDevice(VRINGS)
    endpoint = ScsiEndpoint(request_queues=VRINGS - 2, config_space=config_space, device=device)
    medium = MemoryMedium(1 << 20)
    unit = LogicalUnit(medium, Identity("RIG"))
    endpoint.map_lun(0, 0, unit, object() if volume else None)  # type: ignore[arg-type]  # the fake never looks into it
    yield Rig(device, endpoint, medium, unit)
    await endpoint.close()


@pytest.fixture
async def device_rig() -> AsyncIterator[Rig]:
    async with rig() as made:
        yield made


@pytest.fixture
async def frontend(device_rig: Rig) -> AsyncIterator[Frontend]:
    async with device_rig.connection() as connected:
        yield connected


@pytest.fixture(autouse=True)
def _no_descriptor_leaks() -> Iterator[None]:
    before = open_descriptors()
    yield
    assert open_descriptors() <= before, "descriptors leaked"
