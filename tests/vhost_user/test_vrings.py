"""Rings: set up in any order, stopped only when nothing is in flight, and never started on a lie."""

import asyncio
import struct

import pytest

from tests.vhost_user.conftest import Rig
from tests.vhost_user.driver import until
from tests.vhost_user.frontend import Frontend, alive


async def test_the_base_is_told_only_when_nothing_is_in_flight(device_rig: Rig, frontend: Frontend) -> None:
    device = device_rig.device
    await frontend.negotiate()
    await frontend.add_memory()
    frontend.start_ring(2, base=17)
    await frontend.settled()
    device.rings[2].in_flight = 2
    frontend.send("GET_VRING_BASE", 2, 0)
    await until(lambda: not device.rings[2].started)
    device.finish(2)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(frontend.receive(), 0.05)
    device.rings[2].base = 18
    device.finish(2)
    assert await frontend.receive() == (11, struct.pack("=II", 2, 18))


async def test_a_stopped_ring_needs_another_kick_message(device_rig: Rig, frontend: Frontend) -> None:
    await frontend.negotiate()
    await frontend.add_memory()
    frontend.start_ring(2)
    assert await frontend.ask("GET_VRING_BASE", 2, 0) == (2, 0)
    assert await frontend.tell("SET_VRING_NUM", 2, 128) == 0
    assert not device_rig.device.rings[2].started
    assert await frontend.tell("SET_VRING_KICK", 2 | 0x100) == 0
    assert device_rig.device.rings[2].started


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        ("SET_VRING_NUM", (2, 64)),
        ("SET_VRING_BASE", (2, 3)),
        ("SET_FEATURES", (0x160000006,)),
        ("SET_VRING_ADDR", (2, 0, 0x7F0000021000, 0x7F0000021000, 0x7F0000022000, 0)),
        ("SET_VRING_ENABLE", (2, 2)),
    ],
)
async def test_what_a_running_ring_cannot_take_is_refused_and_it_runs_on(
    device_rig: Rig, frontend: Frontend, name: str, numbers: tuple[int, ...]
) -> None:
    await frontend.negotiate()
    await frontend.add_memory()
    frontend.start_ring(2)
    assert await frontend.tell(name, *numbers) == 1
    assert device_rig.device.rings[2].started


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        ("SET_VRING_NUM", (2, 0)),
        ("SET_VRING_NUM", (2, 100)),
        ("SET_VRING_NUM", (2, 65536)),
        ("SET_VRING_NUM", (6, 128)),
        ("SET_VRING_NUM", (0xFFFFFFFF, 128)),
        ("SET_VRING_BASE", (2, 0x10000)),
        ("SET_VRING_BASE", (2, 0x80008000)),
        ("SET_VRING_BASE", (6, 0)),
        ("SET_VRING_ADDR", (6, 0, 0, 4096, 8192, 0)),
        ("SET_VRING_KICK", (2,)),
        ("SET_VRING_KICK", (6 | 0x100,)),
        ("SET_VRING_KICK", (2 | 0x300,)),
        ("SET_VRING_KICK", (2 | 0x100 | 1 << 32,)),
        ("SET_VRING_CALL", (2,)),
        ("SET_VRING_ENABLE", (2, 0xFFFFFFFF)),
    ],
)
async def test_a_value_that_no_ring_can_have_is_refused(
    frontend: Frontend, name: str, numbers: tuple[int, ...]
) -> None:
    await frontend.negotiate()
    assert await frontend.tell(name, *numbers) == 1
    assert await alive(frontend)


async def test_a_descriptor_beside_the_flag_that_there_is_none_is_refused(frontend: Frontend) -> None:
    await frontend.negotiate()
    assert await frontend.tell("SET_VRING_KICK", 2 | 0x100, descriptors=[frontend.memory]) == 1


async def test_a_ring_outside_guest_memory_does_not_start_and_kills_nothing(
    device_rig: Rig, frontend: Frontend
) -> None:
    await frontend.negotiate()
    await frontend.add_memory()
    frontend.send("SET_VRING_NUM", 2, 128)
    frontend.send("SET_VRING_ADDR", 2, 0, 0x1000, 0x3000, 0x2000, 0)
    assert await frontend.tell("SET_VRING_KICK", 2 | 0x100) == 1
    assert not device_rig.device.rings[2].started
    frontend.start_ring(3)
    await frontend.settled()
    assert device_rig.device.rings[3].started


async def test_dirty_logging_follows_the_features(device_rig: Rig, frontend: Frontend) -> None:
    await frontend.negotiate()
    assert await frontend.ask("SET_LOG_BASE", 4096, 0, descriptors=[frontend.memory]) == (0,)
    assert await frontend.tell("SET_FEATURES", 0x174000006) == 0
    assert device_rig.device.log >= 0
    assert await frontend.tell("SET_FEATURES", 0x170000006) == 0
    assert device_rig.device.log == -1


async def test_a_ring_without_room_for_event_fields_is_no_overlap(device_rig: Rig, frontend: Frontend) -> None:
    """Small firmware drivers put the used ring right behind 4 + 2 x 16 bytes of available ring."""
    await frontend.negotiate()
    await frontend.add_memory()
    frontend.send("SET_VRING_NUM", 2, 16)
    frontend.send("SET_VRING_ADDR", 2, 0, 0x7F0000001000, 0x7F0000001124, 0x7F0000001100, 0)
    assert await frontend.tell("SET_VRING_KICK", 2 | 0x100) == 0
    assert device_rig.device.rings[2].started
