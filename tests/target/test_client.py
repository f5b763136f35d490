"""The client sorts answers to whoever waits, and tells apart a slow process, a gone one and a refusing one."""

import json
import os
import queue
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.target.guest import refusal
from vstore.target.client import TargetClient
from vstore.target.errors import ErrorCode, TargetError
from vstore.target.packet import LARGEST_PACKET
from vstore.target.verbs import Event, FrontendConnected, RingBroken


class FakeProcess:
    """Listens like a target process; a test says what it answers."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listening.bind(path)
        self._listening.listen()
        self._connected: socket.socket | None = None

    def client(self, **options: Any) -> TargetClient:
        client = TargetClient(self.path, **options)
        self._connected, _ = self._listening.accept()
        return client

    def receive(self) -> dict[str, Any]:
        assert self._connected
        message: dict[str, Any] = json.loads(self._connected.recv(LARGEST_PACKET))
        return message

    def send(self, message: object) -> None:
        assert self._connected
        self._connected.send(message if isinstance(message, bytes) else json.dumps(message).encode())

    def close(self) -> None:
        for end in (self._connected, self._listening):
            if end:
                end.close()


@pytest.fixture
def process(tmp_path: Path) -> Iterator[FakeProcess]:
    fake = FakeProcess(str(tmp_path / "control.sock"))
    yield fake
    fake.close()


def beside(call: Callable[[], object]) -> "queue.Queue[object]":
    """Runs a verb in a thread; the queue gets its result or its TargetError."""
    done: queue.Queue[object] = queue.Queue()

    def run() -> None:
        try:
            done.put(call())
        except TargetError as error:
            done.put(error)

    threading.Thread(target=run, daemon=True).start()
    return done


def test_answers_in_any_order_reach_the_one_who_waits(process: FakeProcess) -> None:
    with process.client() as client:
        waiting = {}
        for length in (512, 1024, 1536):
            waiting[length] = beside(lambda length=length: client.resize_lun(0, length).length)  # type: ignore[misc]
        requests = [process.receive() for _ in waiting]
        for request in reversed(requests):
            process.send({"id": request["id"], "ok": {"length": request["length"]}})
        assert {length: done.get(timeout=5) for length, done in waiting.items()} == {n: n for n in waiting}


def test_no_answer_in_time_is_timed_out_and_a_late_one_harms_nobody(process: FakeProcess) -> None:
    with process.client(timeout=0.05) as client:
        error = refusal(client.stop)
        assert error.code is ErrorCode.TIMED_OUT
        assert "no answer to stop within 0.05 s" in error.detail
        process.send({"id": process.receive()["id"], "ok": {}})
    with pytest.raises(TargetError, match="ended the connection"):
        client.stop()


def test_process_that_goes_fails_every_waiting_verb_and_tells(process: FakeProcess) -> None:
    gone = threading.Event()
    with process.client(on_disconnect=gone.set) as client:
        waiting = [beside(client.stop) for _ in range(3)]
        for _ in waiting:
            process.receive()
        process.close()
        for done in waiting:
            error = done.get(timeout=5)
            assert isinstance(error, TargetError)
            assert error.code is ErrorCode.DISCONNECTED
        assert gone.wait(5)
        assert refusal(client.stop).code is ErrorCode.DISCONNECTED


def test_nobody_listening_is_disconnected_with_the_path(tmp_path: Path) -> None:
    error = refusal(TargetClient, str(tmp_path / "none"))
    assert error.code is ErrorCode.DISCONNECTED
    assert str(tmp_path / "none") in error.detail


def test_refusal_of_the_process_is_raised_with_code_and_detail(process: FakeProcess) -> None:
    with process.client() as client:
        for code, known in (("image_locked", ErrorCode.IMAGE_LOCKED), ("from_the_future", ErrorCode.INTERNAL)):
            done = beside(client.stop)
            process.send({"id": process.receive()["id"], "error": {"code": code, "detail": "because"}})
            error = done.get(timeout=5)
            assert isinstance(error, TargetError)
            assert (error.code, error.detail) == (known, "because")


def test_events_arrive_typed_and_what_is_not_understood_is_passed_over(process: FakeProcess) -> None:
    events: queue.Queue[Event] = queue.Queue()
    with process.client(on_event=events.put):
        process.send({"event": "frontend_connected"})
        unknown: list[object] = [{"event": "from_the_future"}, {"event": "ring_broken"}, {"id": 99, "ok": {}}, [], b"{"]
        for strange in unknown:
            process.send(strange)
        process.send({"event": "ring_broken", "vring": 3})
        assert [events.get(timeout=5), events.get(timeout=5)] == [FrontendConnected(), RingBroken(vring=3)]


def test_callback_that_fails_does_not_end_the_channel(process: FakeProcess) -> None:
    def fail(_: Event) -> None:
        raise RuntimeError("a fault of the callback's")

    with process.client(on_event=fail) as client:
        process.send({"event": "frontend_connected"})
        done = beside(client.stop)
        process.send({"id": process.receive()["id"], "ok": {}})
        assert done.get(timeout=5) is None


def test_descriptors_stay_the_callers_and_come_back_to_nobody(process: FakeProcess) -> None:
    before = set(os.listdir("/proc/self/fd"))
    for _ in range(3):
        client = process.client(timeout=0.02)
        assert refusal(client.stop).code is ErrorCode.TIMED_OUT
        client.close()
        client.close()
        assert process._connected
        process._connected.close()
    assert set(os.listdir("/proc/self/fd")) == before
