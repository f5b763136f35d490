"""A session from its negotiation to its end, and what it leaves behind."""

import asyncio
import os
import socket
import struct

import pytest

from tests.vhost_user.conftest import Rig
from tests.vhost_user.driver import until
from tests.vhost_user.frontend import Frontend, alive
from vstore.vhost_user.session import Session

# ---- negotiation ----


async def test_acknowledgements_flow_only_once_they_are_negotiated(frontend: Frontend) -> None:
    frontend.send("SET_OWNER", need_reply=True)
    frontend.send("SET_PROTOCOL_FEATURES", 0xA00B, need_reply=True)
    frontend.send("SET_OWNER", need_reply=True)
    assert await frontend.receive() == (3, struct.pack("=Q", 0))


async def test_protocol_features_beyond_the_offer_are_refused_but_acknowledgements_flow(frontend: Frontend) -> None:
    frontend.send("SET_PROTOCOL_FEATURES", 0xFFFFFFFFFFFFFFFF)
    assert await frontend.tell("SET_PROTOCOL_FEATURES", 0xFFFFFFFFFFFFFFFF) == 1
    assert await frontend.tell("SET_PROTOCOL_FEATURES", 0x8) == 0


@pytest.mark.parametrize("extra", [1 << 34, 1 << 33, 1 << 3, 1 << 63, 1 << 24])
async def test_features_that_are_not_offered_are_refused(frontend: Frontend, extra: int) -> None:
    frontend.send("SET_PROTOCOL_FEATURES", 8)
    assert await frontend.tell("SET_FEATURES", 0x170000006 | extra) == 1
    assert await frontend.tell("SET_FEATURES", 0x170000006) == 0


async def test_the_log_says_which_option_takes_a_refused_feature_away(
    frontend: Frontend, caplog: pytest.LogCaptureFixture
) -> None:
    frontend.send("SET_FEATURES", 0x570000006)
    await frontend.settled()
    assert "packed=off" in caplog.text


# ---- the end ----


async def set_up_everything(device_rig: Rig, frontend: Frontend) -> None:
    await frontend.negotiate()
    await frontend.add_memory()
    for vring in range(4):
        frontend.start_ring(vring, base=5)
        for name in ("SET_VRING_CALL", "SET_VRING_ERR", "SET_VRING_KICK"):
            event = os.eventfd(0)
            frontend.send(name, vring, descriptors=[event])
            os.close(event)
    await frontend.ask("SET_LOG_BASE", 4096, 0, descriptors=[frontend.memory])
    await frontend.settled()
    assert all(ring.started for ring in device_rig.device.rings[:4])


async def test_nothing_of_a_front_end_remains_when_it_is_gone(device_rig: Rig) -> None:
    async with device_rig.connection() as frontend:
        await set_up_everything(device_rig, frontend)
    device = device_rig.device
    assert not device.regions
    assert device.log == -1
    for ring in device.rings:
        assert (ring.started, ring.enabled, ring.base) == (False, False, 0)
        assert (ring.kick, ring.call, ring.error) == (-1, -1, -1)
    assert not device_rig.unit.attentions.nexuses()


async def test_a_session_ends_only_when_nothing_is_in_flight(device_rig: Rig) -> None:
    device = device_rig.device
    ours, theirs = socket.socketpair()
    frontend = Frontend(theirs)
    running = asyncio.create_task(Session(device_rig.endpoint, ours).run())
    await set_up_everything(device_rig, frontend)
    device.rings[2].in_flight = 1
    frontend.close()
    await until(lambda: not device.rings[2].started)
    await asyncio.sleep(0.02)
    assert not running.done()
    assert device.regions, "a request may still point there"
    device.finish(2)
    await asyncio.wait_for(running, 10)
    assert not device.regions


async def test_a_reset_stops_and_disables_every_ring_and_keeps_memory(device_rig: Rig, frontend: Frontend) -> None:
    await set_up_everything(device_rig, frontend)
    calls = [ring.call for ring in device_rig.device.rings]
    assert await frontend.tell("RESET_DEVICE") == 0
    for ring in device_rig.device.rings:
        assert (ring.started, ring.enabled, ring.base) == (False, False, 0)
    assert device_rig.device.regions
    assert [ring.call for ring in device_rig.device.rings] == calls
    frontend.start_ring(2)
    await frontend.settled()
    assert device_rig.device.rings[2].started


async def test_a_defect_of_ours_ends_one_session_and_no_more(
    device_rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def defect(*_: object) -> None:
        monkeypatch.undo()
        raise ZeroDivisionError

    monkeypatch.setattr(device_rig.device, "vring_set_call", defect)
    async with device_rig.connection() as frontend:
        frontend.send("SET_VRING_CALL", 2 | 0x100)
        assert await frontend.closed()
    assert "defect of vstore" in caplog.text
    async with device_rig.connection() as frontend:
        assert await alive(frontend)
