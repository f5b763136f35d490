"""Who is served, who is turned away, who waits, and what is left when a server stops."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.vhost_user.conftest import Rig
from tests.vhost_user.driver import until
from tests.vhost_user.frontend import Frontend
from vstore.vhost_user.server import Server


@pytest.fixture
async def server(device_rig: Rig, tmp_path: Path) -> AsyncIterator[Server]:
    made = Server(device_rig.endpoint, tmp_path / "s")
    await made.start()
    yield made
    await made.stop()


def connect(tmp_path: Path) -> Frontend:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(str(tmp_path / "s"))
    return Frontend(connection)


async def set_up_ring(frontend: Frontend) -> None:
    await frontend.negotiate()
    await frontend.add_memory()
    frontend.start_ring(2)
    await frontend.settled()


async def test_front_ends_are_served_one_after_the_other(server: Server, tmp_path: Path) -> None:
    for _ in range(3):
        frontend = connect(tmp_path)
        await set_up_ring(frontend)
        assert server.connected
        frontend.close()
        await until(lambda: not server.connected)


async def test_a_second_front_end_is_turned_away_and_the_first_lives(server: Server, tmp_path: Path) -> None:
    first = connect(tmp_path)
    await first.settled()
    second = connect(tmp_path)
    assert await second.closed()
    second.close()
    await first.settled()
    first.close()
    await server.ended()


async def test_a_front_end_that_reconnects_waits_until_its_predecessor_is_cleaned_up_after(
    device_rig: Rig, server: Server, tmp_path: Path
) -> None:
    del server
    first = connect(tmp_path)
    await set_up_ring(first)
    device_rig.device.rings[2].in_flight = 1
    first.close()
    second = connect(tmp_path)
    second.send("GET_FEATURES")
    await asyncio.sleep(0.05)
    assert device_rig.device.regions, "the first one's request is still in flight"
    device_rig.device.finish(2)
    assert (await second.receive())[0] == 1
    assert not device_rig.device.regions
    second.close()


async def test_listeners_hear_of_front_ends_that_come_and_go(server: Server, tmp_path: Path) -> None:
    heard: list[bool] = []
    server.on_connection(heard.append)
    frontend = connect(tmp_path)
    await frontend.settled()
    assert heard == [True]
    frontend.close()
    await until(lambda: heard == [True, False])


async def test_a_user_who_is_not_on_the_list_is_turned_away(device_rig: Rig, tmp_path: Path) -> None:
    server = Server(device_rig.endpoint, tmp_path / "s", users={os.getuid() + 1})
    await server.start()
    frontend = connect(tmp_path)
    assert await frontend.closed()
    frontend.close()
    await server.stop()
    assert not server.connected


async def test_a_user_on_the_list_is_served(device_rig: Rig, tmp_path: Path) -> None:
    server = Server(device_rig.endpoint, tmp_path / "s", users={os.getuid()})
    await server.start()
    frontend = connect(tmp_path)
    await frontend.settled()
    frontend.close()
    await server.stop()


async def test_stopping_ends_the_session_when_nothing_is_in_flight_and_removes_the_socket(
    device_rig: Rig, tmp_path: Path
) -> None:
    server = Server(device_rig.endpoint, tmp_path / "s")
    await server.start()
    frontend = connect(tmp_path)
    await set_up_ring(frontend)
    device_rig.device.rings[2].in_flight = 1
    stopping = asyncio.create_task(server.stop())
    await asyncio.sleep(0.02)
    assert not stopping.done()
    device_rig.device.finish(2)
    await asyncio.wait_for(stopping, 10)
    assert await frontend.closed()
    frontend.close()
    assert not (tmp_path / "s").exists()
    assert not device_rig.device.regions


async def test_a_server_that_stops_while_a_front_end_waits_closes_that_too(device_rig: Rig, tmp_path: Path) -> None:
    server = Server(device_rig.endpoint, tmp_path / "s")
    await server.start()
    first = connect(tmp_path)
    await set_up_ring(first)
    device_rig.device.rings[2].in_flight = 1
    first.close()
    second = connect(tmp_path)
    await asyncio.sleep(0.02)
    stopping = asyncio.create_task(server.stop())
    assert await second.closed()
    second.close()
    device_rig.device.finish(2)
    await asyncio.wait_for(stopping, 10)


async def test_a_listening_descriptor_may_be_handed_in(device_rig: Rig, tmp_path: Path) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "s"))
    listener.listen()
    server = Server(device_rig.endpoint, descriptor=listener.detach())
    await server.start()
    frontend = connect(tmp_path)
    await frontend.settled()
    frontend.close()
    await server.stop()
    assert (tmp_path / "s").exists(), "it is not ours to remove"


async def test_a_connected_descriptor_is_served_once(device_rig: Rig) -> None:
    ours, theirs = socket.socketpair()
    server = Server(device_rig.endpoint, listener=ours)
    await server.start()
    frontend = Frontend(theirs)
    await set_up_ring(frontend)
    frontend.close()
    await asyncio.wait_for(server.ended(), 10)
    assert not server.connected
    await server.stop()


def test_a_server_wants_one_place_to_listen(device_rig: Rig) -> None:
    with pytest.raises(ValueError, match="one of them"):
        Server(device_rig.endpoint)
    with pytest.raises(ValueError, match="one of them"):
        Server(device_rig.endpoint, "s", descriptor=3)


async def test_many_connections_at_once_leave_the_server_in_order(server: Server, tmp_path: Path) -> None:
    crowd = [connect(tmp_path) for _ in range(8)]
    await asyncio.sleep(0.02)
    for frontend in crowd:
        frontend.close()
    await until(lambda: not server.connected)
    last = connect(tmp_path)
    await last.settled()
    last.close()
