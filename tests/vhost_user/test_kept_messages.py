"""A process that is killed at any moment of a message is followed by one that answers as the first would have."""

import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import AsyncIterator, Sequence

import pytest

from tests.vhost_user.conftest import VRINGS
from tests.vhost_user.fake_device import FakeDevice
from tests.vhost_user.frontend import FORMS, Frontend
from vstore.vhost_user.channel import Channel, Message
from vstore.vhost_user.keeping import BEGUN, Keeping, Kept, KeptMessage
from vstore.vhost_user.kept_messages import in_order, note
from vstore.vhost_user.messages import MESSAGES, VringState
from vstore.vhost_user.session import Session
from vstore.vhost_user.virtio_scsi import ScsiEndpoint

REGION = (0x200000, 0x200000, 0x7F0000200000, 0x200000)


def copied(kept: Kept) -> Kept:
    """As the daemon holds it."""
    copy = Kept()
    for name, message in kept.items():
        copy.hold(
            name,
            KeptMessage(message.request, message.flags, message.payload, tuple(map(os.dup, message.descriptors))),
        )
    return copy


@contextlib.asynccontextmanager
async def follower(kept: Kept) -> AsyncIterator[tuple[FakeDevice, Frontend]]:
    """Another process that goes on with the connection."""
    ours, theirs = socket.socketpair()
    device = FakeDevice(VRINGS)
    endpoint = ScsiEndpoint(request_queues=VRINGS - 2, device=device)
    frontend = Frontend(theirs)
    running = asyncio.create_task(Session(endpoint, ours, resumes=kept).run())
    try:
        yield device, frontend
    finally:
        frontend.close()
        await asyncio.wait_for(running, 10)
        await endpoint.close()


@pytest.mark.parametrize("obeyed", [False, True])
@pytest.mark.parametrize(
    ("name", "numbers"), [("ADD_MEM_REG", (0, *REGION)), ("REM_MEM_REG", (0, 0, 0x200000, 0x7F0000000000, 0))]
)
async def test_a_change_of_memory_is_answered_once_whenever_the_process_was_killed(
    monkeypatch: pytest.MonkeyPatch, name: str, numbers: Sequence[int], obeyed: bool
) -> None:
    ours, theirs = socket.socketpair()
    keeping, found = Keeping(), list[Kept]()
    endpoint = ScsiEndpoint(request_queues=VRINGS - 2, device=FakeDevice(VRINGS), keeping=keeping)
    frontend = Frontend(theirs)
    running = asyncio.create_task(Session(endpoint, ours, keeping).run())
    await frontend.negotiate()
    assert await frontend.add_memory() == 0

    def killed(*_: object) -> None:
        found.append(copied(keeping))
        raise OSError

    monkeypatch.setattr(*((Channel, "send", killed) if obeyed else (Session, "_parse", killed)))
    descriptors = [frontend.memory] if name == "ADD_MEM_REG" else []
    frontend.send(name, *numbers, descriptors=descriptors, need_reply=True)
    await asyncio.wait_for(running, 10)
    monkeypatch.undo()
    frontend.close()
    await endpoint.close()
    keeping.close()
    (kept,) = found
    with kept:
        assert BEGUN in kept
        async with follower(kept) as (device, again):
            assert await again.receive() == (FORMS[name][0], bytes(8)), "it was refused"
            assert len(device.regions) == (2 if name == "ADD_MEM_REG" else 0)


def test_a_ring_that_was_being_stopped_runs_again_before_it_is_asked_for_its_base() -> None:
    stop, kick = (MESSAGES[FORMS[name][0]] for name in ("GET_VRING_BASE", "SET_VRING_KICK"))
    with Keeping() as keeping:
        keeping.put("vring/2/SET_VRING_KICK", struct.pack("=Q", 2 | 0x100), request=kick.id)
        keeping.put(BEGUN, struct.pack("=II", 2, 0), request=stop.id)
        note(keeping, stop, VringState(2, 0), Message(stop.id, 1, b""))
        assert [row for row, _ in in_order(keeping)] == [kick]
        keeping.drop(BEGUN)
        assert not keeping.names(), "it has been answered"
