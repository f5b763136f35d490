"""Messages that contradict their row of the table, or have none; and what the rows say."""

import asyncio
import os
import struct

import pytest

from tests.vhost_user.conftest import Rig, rig
from tests.vhost_user.frontend import Frontend, alive, pack
from vstore.vhost_user.complaints import MOST
from vstore.vhost_user.messages import MESSAGES
from vstore.vhost_user.session import METHODS

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


def test_payloads_are_packed_as_the_specification_lays_them_out() -> None:
    """The rows of vstore against this suite's own table."""
    for name, numbers in [("SET_VRING_ADDR", (2, 1, 3, 4, 5, 6)), ("ADD_MEM_REG", (0, 1, 2, 3, 4))]:
        row = next(row for row in MESSAGES.values() if row.name == name)
        payload = pack(name, numbers)
        assert row.payload.unpack(payload).pack() == payload
        assert list(vars(row.payload.unpack(payload)).values()) == list(numbers)
