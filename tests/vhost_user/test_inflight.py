"""The memory of what is in flight: made for the front-end, handed back by it, and judged like all that it says."""

import asyncio
import fcntl
import mmap
import os
import socket
import struct

import pytest

from tests.vhost_user.conftest import Rig
from tests.vhost_user.frontend import Frontend
from vstore.dataplane import inflight_size

WITH_INFLIGHT = 0xB00B
REGION = struct.Struct("=QQHHI")
HEADER = struct.Struct("=III")


async def region(frontend: Frontend, queues: int, size: int) -> tuple[tuple[int, ...], int]:
    """What GET_INFLIGHT_FD answers, and its descriptor."""
    await frontend.negotiate(protocol_features=WITH_INFLIGHT)
    await frontend.settled()
    frontend.send("GET_INFLIGHT_FD", 0, 0, queues, size, 0)
    frontend.socket.settimeout(10)
    answer = await asyncio.to_thread(socket.recv_fds, frontend.socket, HEADER.size + REGION.size, 1)
    frontend.socket.setblocking(False)
    data, (descriptor,), _, _ = answer
    return REGION.unpack(data[HEADER.size :]), descriptor


async def test_the_front_end_gets_zeros_that_nobody_can_cut_short(frontend: Frontend) -> None:
    (size, offset, queues, entries, _), descriptor = await region(frontend, 6, 1024)
    try:
        assert (offset, queues, entries) == (0, 6, 1024)
        assert size >= inflight_size(6, 1024)
        assert not size % mmap.PAGESIZE
        assert os.pread(descriptor, size + 1, 0) == bytes(size)
        assert fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK
    finally:
        os.close(descriptor)


async def test_what_was_got_can_be_set_and_goes_with_the_connection(device_rig: Rig) -> None:
    async with device_rig.connection() as frontend:
        numbers, descriptor = await region(frontend, 6, 128)
        assert await frontend.tell("SET_INFLIGHT_FD", *numbers, descriptors=[descriptor]) == 0
        os.close(descriptor)
        assert device_rig.device.inflight == (numbers[0], numbers[0], 0, 6, 128)
    assert device_rig.device.inflight is None


@pytest.mark.parametrize(
    "numbers",
    [(4096, 0, 0, 128), (4096, 0, 1025, 128), (4096, 0, 6, 0), (4096, 0, 6, 32769), (1 << 40, 0, 6, 128)],
)
async def test_numbers_that_cannot_be_are_refused_and_the_connection_lives(
    frontend: Frontend, device_rig: Rig, numbers: tuple[int, ...]
) -> None:
    await frontend.negotiate(protocol_features=WITH_INFLIGHT)
    told = await frontend.tell("SET_INFLIGHT_FD", *numbers, 0, descriptors=[frontend.memory])
    assert told == 1
    assert device_rig.device.inflight is None


async def test_it_is_not_spoken_of_unless_it_was_negotiated(frontend: Frontend, device_rig: Rig) -> None:
    await frontend.negotiate()
    assert await frontend.tell("SET_INFLIGHT_FD", 4096, 0, 1, 1, 0, descriptors=[frontend.memory]) == 1
    assert device_rig.device.inflight is None


async def test_it_cannot_change_while_a_ring_runs(frontend: Frontend, device_rig: Rig) -> None:
    await frontend.negotiate(protocol_features=WITH_INFLIGHT)
    await frontend.add_memory()
    frontend.start_ring(2)  # and enables it
    await frontend.settled()
    assert await frontend.tell("SET_INFLIGHT_FD", 4096, 0, 6, 1, 0, descriptors=[frontend.memory]) == 1
    assert device_rig.device.inflight is None
