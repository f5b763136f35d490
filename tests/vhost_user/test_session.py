"""What a session does with each kind of message, honest and not, and what it leaves behind."""

import asyncio
import os
import socket
import struct
from collections.abc import AsyncIterator

import pytest

from tests.vhost_user.conftest import Rig, rig
from tests.vhost_user.frontend import Frontend, pack
from vstore.vhost_user.complaints import MOST
from vstore.vhost_user.messages import MESSAGES
from vstore.vhost_user.session import METHODS, Session

GIB = 1 << 30


@pytest.fixture
async def device_rig() -> AsyncIterator[Rig]:
    async with rig() as made:
        yield made


@pytest.fixture
async def frontend(device_rig: Rig) -> AsyncIterator[Frontend]:
    async with device_rig.connection() as connected:
        yield connected


async def alive(frontend: Frontend) -> bool:
    return await frontend.ask("GET_FEATURES") == (0x17C000006,)


# ---- framing ----


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


# ---- what contradicts its declaration ----


@pytest.mark.parametrize("row", MESSAGES.values(), ids=lambda row: row.name)
async def test_a_payload_of_another_size_than_declared_is_never_obeyed(frontend: Frontend, row: object) -> None:
    await frontend.negotiate()
    size = {"SET_MEM_TABLE": 8 + 31}.get(row.name, row.payload.octets + 1)  # type: ignore[attr-defined]
    frontend.send_raw(row.id, 1 | 8, bytes(size), [frontend.memory] * row.descriptors[0])  # type: ignore[attr-defined]
    try:
        number, payload = await frontend.receive()
    except EOFError:
        return  # it has a reply of its own, which could not be given
    assert (number, payload) == (row.id, struct.pack("=Q", 1))  # type: ignore[attr-defined]
    assert await alive(frontend)


async def test_a_malformed_message_that_wants_no_answer_ends_the_connection(frontend: Frontend) -> None:
    frontend.send_raw(8, 1, bytes(7))
    assert await frontend.closed()


@pytest.mark.parametrize(
    ("name", "numbers", "count"),
    [
        ("SET_FEATURES", (0,), 1),
        ("SET_VRING_NUM", (2, 128), 1),
        ("ADD_MEM_REG", (0, 0, 4096, 4096, 0), 0),
        ("ADD_MEM_REG", (0, 0, 4096, 4096, 0), 2),
        ("SET_VRING_KICK", (2,), 2),
        ("SET_LOG_BASE", (4096, 0), 0),
    ],
)
async def test_descriptors_that_a_message_does_not_carry_are_refused_and_closed(
    device_rig: Rig, name: str, numbers: tuple[int, ...], count: int
) -> None:
    async with device_rig.connection() as frontend:
        await frontend.negotiate()
        before = len(os.listdir("/proc/self/fd"))
        frontend.send(name, *numbers, descriptors=[frontend.memory] * count, need_reply=True)
        try:
            await frontend.receive()
        except EOFError:
            assert name == "SET_LOG_BASE"
            return
        assert len(os.listdir("/proc/self/fd")) == before


# ---- unknown messages ----


@pytest.mark.parametrize("number", [0, 19, 33, 41, 44, 100, 0xFFFFFFFF])
async def test_an_unknown_message_is_refused_where_that_can_be_told(frontend: Frontend, number: int) -> None:
    await frontend.negotiate()
    frontend.send_raw(number, 1 | 8, bytes(16), [frontend.memory])
    assert await frontend.receive() == (number, struct.pack("=Q", 1))
    assert await alive(frontend)


async def test_an_unknown_message_that_wants_no_answer_is_ignored(frontend: Frontend) -> None:
    frontend.send_raw(99, 1, bytes(16), [frontend.memory])
    assert await alive(frontend)


@pytest.mark.parametrize("name", ["GET_CONFIG", "GET_INFLIGHT_FD"])
async def test_a_message_of_a_feature_that_is_not_negotiated_is_unknown(frontend: Frontend, name: str) -> None:
    await frontend.negotiate()
    assert await frontend.tell(name, *(0, 4, 0, 0, 0)[: 4 if name == "GET_CONFIG" else 5]) == 1


async def test_every_message_with_a_method_has_a_row_and_the_other_rows_are_for_features_not_offered() -> None:
    async with rig(config_space=True) as made:
        offered = made.endpoint.protocol_features
        for row in MESSAGES.values():
            served = row.feature is None or row.feature in offered
            assert served == (row.id in METHODS), row.name


async def test_a_hostile_front_end_cannot_fill_the_log(frontend: Frontend, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(3 * MOST):
        frontend.send_raw(99, 1, b"")
        await asyncio.sleep(0)
    assert await alive(frontend)
    assert len(caplog.records) == MOST + 1
    assert "left out" in caplog.text


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


# ---- guest memory ----


async def test_memory_comes_and_goes_region_by_region(device_rig: Rig, frontend: Frontend) -> None:
    await frontend.negotiate()
    assert await frontend.add_memory() == 0
    assert await frontend.add_memory(GIB, user=GIB, offset=0x200000) == 0
    assert await frontend.tell("REM_MEM_REG", 0, 0, 0x200000, 0x7F0000000000, 99) == 0
    assert list(device_rig.device.regions) == [(GIB, 0x200000, GIB)]


async def test_removing_memory_may_carry_a_descriptor_which_is_closed(frontend: Frontend) -> None:
    await frontend.negotiate()
    await frontend.add_memory()
    before = len(os.listdir("/proc/self/fd"))
    numbers = (0, 0, 0x200000, 0x7F0000000000, 0)
    assert await frontend.tell("REM_MEM_REG", *numbers, descriptors=[frontend.memory]) == 0
    assert len(os.listdir("/proc/self/fd")) == before - 1


@pytest.mark.parametrize(
    ("guest", "size", "user", "offset"),
    [
        (0, 0x200000, GIB, 0),
        (0x1FF000, 0x1000, GIB, 0),
        (GIB, 0x1000, 0x7F00001FF000, 0),
        ((1 << 64) - 0x1000, 0x2000, GIB, 0),
        (GIB, GIB, GIB, 0),
        (GIB, 0x1000, GIB, 0x400000),
    ],
    ids=["same guest address", "overlap by guest", "overlap by user", "wraps", "file too short", "behind the file"],
)
async def test_a_region_that_cannot_be_is_refused(
    frontend: Frontend, guest: int, size: int, user: int, offset: int
) -> None:
    await frontend.negotiate()
    assert await frontend.add_memory() == 0
    assert await frontend.add_memory(guest, size, user, offset) == 1


async def test_a_new_table_leaves_alone_what_both_tables_have(device_rig: Rig, frontend: Frontend) -> None:
    await frontend.negotiate()
    kept = (0, 0x200000, 0x7F0000000000, 0)
    memory = frontend.memory
    assert await frontend.tell("SET_MEM_TABLE", 1, 0, *kept, descriptors=[memory]) == 0
    frontend.start_ring(2)
    await frontend.settled()
    device_rig.device.calls.clear()
    assert await frontend.tell("SET_MEM_TABLE", 1, 0, *kept, descriptors=[memory]) == 0
    assert await frontend.tell("SET_MEM_TABLE", 2, 0, *kept, GIB, 4096, GIB, 0, descriptors=[memory] * 2) == 0
    assert [call[0] for call in device_rig.device.calls] == ["memory_add"], "no ring was stopped for it"


async def test_a_region_of_another_file_replaces_the_old_one(device_rig: Rig, frontend: Frontend) -> None:
    await frontend.negotiate()
    region = (0, 0x200000, 0x7F0000000000, 0)
    assert await frontend.tell("SET_MEM_TABLE", 1, 0, *region, descriptors=[frontend.memory]) == 0
    other = os.memfd_create("other")
    os.truncate(other, 0x200000)
    device_rig.device.calls.clear()
    assert await frontend.tell("SET_MEM_TABLE", 1, 0, *region, descriptors=[other]) == 0
    os.close(other)
    assert [call[0] for call in device_rig.device.calls] == ["memory_remove", "memory_add"]


@pytest.mark.parametrize("count", [1, 3])
async def test_a_table_with_a_wrong_number_of_descriptors_is_refused(frontend: Frontend, count: int) -> None:
    await frontend.negotiate()
    regions = (0, 4096, 0, 0, GIB, 4096, GIB, 0)
    assert await frontend.tell("SET_MEM_TABLE", 2, 0, *regions, descriptors=[frontend.memory] * count) == 1


async def test_a_table_that_names_a_region_twice_is_refused(frontend: Frontend) -> None:
    await frontend.negotiate()
    regions = (0, 4096, 0, 0) * 2
    assert await frontend.tell("SET_MEM_TABLE", 2, 0, *regions, descriptors=[frontend.memory] * 2) == 1


async def test_rings_stand_still_while_memory_goes_and_run_on_afterwards(device_rig: Rig, frontend: Frontend) -> None:
    device = device_rig.device
    await frontend.negotiate()
    await frontend.add_memory()
    await frontend.add_memory(GIB, user=GIB)
    frontend.start_ring(2)
    await frontend.settled()
    device.rings[2].in_flight = 1
    device.calls.clear()
    frontend.send("REM_MEM_REG", 0, GIB, 0x200000, GIB, 0, need_reply=True)
    await until(lambda: not device.rings[2].started)
    assert (GIB, 0x200000, GIB) in device.regions, "a request may still point there"
    device.finish(2)
    assert (await frontend.receive())[1] == bytes(8)
    assert device.rings[2].started
    assert [call[0] for call in device.calls] == ["vring_stop", "memory_remove", "vring_start"]


async def test_a_broken_ring_is_not_revived_by_a_change_of_memory(device_rig: Rig, frontend: Frontend) -> None:
    await frontend.negotiate()
    await frontend.add_memory()
    await frontend.add_memory(GIB, user=GIB)
    frontend.start_ring(2)
    await frontend.settled()
    device_rig.device.vring_break(2)
    assert await frontend.tell("REM_MEM_REG", 0, GIB, 0x200000, GIB, 0) == 0
    assert not device_rig.device.rings[2].started


async def test_memory_that_a_ring_lies_in_can_go_and_costs_only_that_ring(device_rig: Rig, frontend: Frontend) -> None:
    await frontend.negotiate()
    await frontend.add_memory()
    frontend.start_ring(2)
    assert await frontend.tell("REM_MEM_REG", 0, 0, 0x200000, 0x7F0000000000, 0) == 0
    assert not device_rig.device.rings[2].started
    assert await alive(frontend)


# ---- rings ----


async def until(true: object, *, limit: int = 1000) -> None:
    for _ in range(limit):
        if true():  # type: ignore[operator]
            return
        await asyncio.sleep(0.001)
    raise AssertionError("it never became true")


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


def test_payloads_are_packed_as_the_specification_lays_them_out() -> None:
    """The rows of vstore against this suite's own table."""
    for name, numbers in [("SET_VRING_ADDR", (2, 1, 3, 4, 5, 6)), ("ADD_MEM_REG", (0, 1, 2, 3, 4))]:
        row = next(row for row in MESSAGES.values() if row.name == name)
        payload = pack(name, numbers)
        assert row.payload.unpack(payload).pack() == payload
        assert list(vars(row.payload.unpack(payload)).values()) == list(numbers)
