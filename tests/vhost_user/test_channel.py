"""Framing: what ends a connection before any message is judged, and what does not."""

import asyncio
import socket
import struct

import pytest

from tests.vhost_user.conftest import Rig
from tests.vhost_user.frontend import Frontend
from vstore.vhost_user.session import Session


@pytest.mark.parametrize("flags", [0, 2, 3, 1 | 4], ids=["version 0", "version 2", "version 3", "reply"])
async def test_flags_that_no_request_has_end_the_connection(frontend: Frontend, flags: int) -> None:
    frontend.send_raw(1, flags, b"")
    assert await frontend.closed()


@pytest.mark.parametrize("size", [4097, 0x7FFFFFFF, 0xFFFFFFFF])
async def test_a_payload_over_4096_bytes_ends_the_connection(frontend: Frontend, size: int) -> None:
    frontend.send_raw(2, 1, bytes(8), size=size)
    assert await frontend.closed()


@pytest.mark.parametrize("length", range(1, 20))
async def test_a_message_cut_short_ends_the_session(device_rig: Rig, length: int) -> None:
    async with device_rig.connection() as frontend:
        message = struct.pack("=III", 2, 1, 8) + bytes(8)
        await asyncio.get_running_loop().sock_sendall(frontend.socket, message[:length])


async def test_a_message_may_come_byte_by_byte(frontend: Frontend) -> None:
    for byte in struct.pack("=IIIQ", 16, 1, 8, 0xA00B) + struct.pack("=III", 17, 1, 0):
        frontend.socket.send(bytes([byte]))
        await asyncio.sleep(0)
    number, payload = await frontend.receive()
    assert (number, payload) == (17, struct.pack("=Q", 6))


async def test_messages_that_come_together_are_answered_in_order(frontend: Frontend) -> None:
    frontend.socket.send(struct.pack("=III", 1, 1, 0) * 3 + struct.pack("=III", 15, 1, 0))
    assert [(await frontend.receive())[0] for _ in range(4)] == [1, 1, 1, 15]


@pytest.mark.parametrize("count", [9, 16, 100])
async def test_more_than_eight_descriptors_end_the_connection(frontend: Frontend, count: int) -> None:
    frontend.send_raw(2, 1, bytes(8), [frontend.memory] * count)
    assert await frontend.closed()


async def test_a_session_that_is_closed_from_this_side_ends(device_rig: Rig) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        session = Session(device_rig.endpoint, ours)
        running = asyncio.create_task(session.run())
        await asyncio.sleep(0)
        session.close()
        await asyncio.wait_for(running, 10)
        assert theirs.recv(1) == b""


async def test_a_session_that_is_closed_before_it_runs_ends_at_once(device_rig: Rig) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        session = Session(device_rig.endpoint, ours)
        session.close()
        await asyncio.wait_for(session.run(), 10)
