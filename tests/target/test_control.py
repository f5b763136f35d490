"""The control channel takes whatever comes: what is malformed gets a clear error and costs nothing."""

import contextlib
import json
import os
import socket
import struct
from collections.abc import Iterator
from typing import Any

import pytest

from tests.target.conftest import MIB, Running, request, running, until
from vstore.target.declaration import plain
from vstore.target.packet import LARGEST_PACKET, MOST_DESCRIPTORS, send, send_packet
from vstore.target.verbs import VERBS, ImageSource

SOCKETS = 4  # of the process with one connection: that, what listens, and the two ends that wake its event loop
STATUS = {"id": 1, "verb": "status"}


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One process for all tests here: none of them may hurt it."""
    yield from running(tmp_path_factory.mktemp("control"))


@pytest.fixture
def raw(target: Running) -> Iterator[socket.socket]:
    """A second connection, without a client around it; the only one."""
    until(lambda: target.descriptors().count("socket:") == SOCKETS)
    with connected(target) as connection:
        exchange(connection, json.dumps(STATUS).encode())  # it has been accepted now
        yield connection


def connected(target: Running) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    connection.connect(target.control)
    connection.settimeout(10)
    return connection


def exchange(connection: socket.socket, data: bytes, descriptors: tuple[int, ...] = ()) -> dict[str, Any]:
    if len(descriptors) > MOST_DESCRIPTORS:
        send(connection, data, descriptors)
    else:
        send_packet(connection, data, descriptors)
    answer: dict[str, Any] = json.loads(connection.recv(LARGEST_PACKET))
    return answer


@pytest.mark.parametrize(
    ("data", "number", "sentence"),
    [
        (b"{", None, "the packet is not JSON"),
        (b"\xff", None, "the packet is not JSON"),
        (b"[" * 50_000, None, "the packet is not JSON"),
        (b"[]", None, "the packet is not a JSON object"),
        (b" " * (LARGEST_PACKET + 1), None, "longer than 65536 bytes"),
        (b"{}", None, "id is missing or is not a whole number"),
        (b'{"id": -1}', None, "id is missing or is not a whole number"),
        (b'{"id": "1"}', None, "id is missing or is not a whole number"),
        (b'{"id": 4}', 4, "None is no verb here; they are configure, map_lun, unmap_lun, "),
        (b'{"id": 4, "verb": ["status"]}', 4, "['status'] is no verb here"),
        (b'{"id": 4, "verb": "__init__"}', 4, "'__init__' is no verb here"),
        (b'{"id": 4, "verb": "end"}', 4, "'end' is no verb here"),
        (b'{"id": 4, "verb": "status", "x": 1}', 4, "x is no field here; they are first_lun"),
        (b'{"id": 4, "verb": "unmap_lun"}', 4, "lun is missing"),
        (b'{"id": 4, "verb": "unmap_lun", "lun": NaN}', 4, "lun: NaN is not a whole number from 0 to 16383"),
    ],
)
def test_malformed_packet_is_answered_and_the_connection_goes_on(
    raw: socket.socket, data: bytes, number: int | None, sentence: str
) -> None:
    answer = exchange(raw, data)
    assert answer["id"] == number
    assert answer["error"]["code"] == "invalid_request"
    assert sentence in answer["error"]["detail"]
    assert exchange(raw, json.dumps(STATUS).encode())["ok"]["state"] == "new"


@pytest.mark.parametrize("verb", VERBS)
def test_descriptors_that_a_verb_does_not_take_are_refused_and_closed(
    target: Running, raw: socket.socket, verb: str
) -> None:
    before = target.descriptors()
    fewest, most = VERBS[verb].descriptors
    detail = exchange(raw, json.dumps({"id": 1, "verb": verb}).encode(), (0,) * (most + 1))["error"]["detail"]
    assert detail == f"{most + 1} descriptors came with {verb}, which takes {fewest} to {most}"
    assert target.descriptors() == before


@pytest.mark.parametrize("data", [b"{}", b"x", b"", b" " * (LARGEST_PACKET + 1)])
def test_flood_of_descriptors_is_refused_and_closed(target: Running, raw: socket.socket, data: bytes) -> None:
    before = target.descriptors()
    send_packet(raw, data, (0,) * (MOST_DESCRIPTORS + 1))
    assert json.loads(raw.recv(LARGEST_PACKET))["error"]["code"] == "invalid_request"
    assert target.descriptors() == before


def test_descriptor_of_the_wrong_kind_is_refused_and_closed(target: Running, raw: socket.socket) -> None:
    before = target.descriptors()
    reading, writing = os.pipe()
    mapping = json.dumps({"id": 1, "verb": "map_lun", **plain(request(0))}).encode()
    listening = json.dumps({"id": 2, "verb": "configure", "name": "x", "socket": "/x"}).encode()
    assert exchange(raw, mapping, (reading,))["error"]["code"] == "image_refused"
    assert exchange(raw, listening, (writing,))["error"]["code"] == "invalid_request"
    os.close(reading)
    os.close(writing)
    assert target.descriptors() == before


def test_answers_carry_the_number_of_their_request(raw: socket.socket) -> None:
    for number in range(20):
        raw.send(json.dumps({**STATUS, "id": number}).encode())
    assert {json.loads(raw.recv(LARGEST_PACKET))["id"] for _ in range(20)} == set(range(20))


def test_connection_that_does_not_read_is_dropped_and_others_are_served(target: Running, raw: socket.socket) -> None:
    target.client.map_lun(request(0, image=ImageSource(format="null", length=MIB)))
    raw.setblocking(False)
    before = target.descriptors()
    dropped = False
    for number in range(100_000):
        try:
            raw.send(json.dumps({**STATUS, "id": number}).encode())
        except BlockingIOError:
            target.client.status()
        except (BrokenPipeError, ConnectionResetError):
            dropped = True
            break
    assert dropped
    until(lambda: len(target.descriptors()) == len(before) - 1)
    assert target.client.status().pid == target.process.pid


def test_connection_that_ends_in_the_middle_of_a_verb_leaves_the_verb_done(target: Running, raw: socket.socket) -> None:
    source = ImageSource(format="memory", length=MIB)
    raw.send(json.dumps({"id": 1, "verb": "map_lun", **plain(request(5, image=source))}).encode())
    raw.close()
    until(lambda: 5 in [lun.settings.lun for lun in target.client.status().luns])


def test_more_connections_than_there_is_room_for_are_told_so(target: Running) -> None:
    with contextlib.ExitStack() as opened:
        for _ in range(15):  # and the client's own
            assert "ok" in exchange(opened.enter_context(connected(target)), json.dumps(STATUS).encode())
        error = json.loads(opened.enter_context(connected(target)).recv(LARGEST_PACKET))["error"]
    assert error == {"code": "busy", "detail": "16 control connections are open; close one first"}
    assert target.client.status().pid == target.process.pid


def test_control_socket_is_for_its_owner_alone(target: Running) -> None:
    assert os.stat(target.control).st_mode & 0o777 == 0o600


@pytest.mark.skipif(os.geteuid() != 0, reason="needs another uid")
def test_peer_of_another_uid_is_refused_even_if_the_mode_lets_it_in(target: Running) -> None:
    os.chmod(target.control, 0o666)
    for folder in (target.folder, *target.folder.parents):
        if os.stat(folder).st_uid == 0 and str(folder) != "/":
            os.chmod(folder, os.stat(folder).st_mode | 0o011)
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        try:
            os.setuid(65534)
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            connection.connect(target.control)
            os.write(writing, connection.recv(LARGEST_PACKET))
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    os.close(writing)
    with os.fdopen(reading, "rb") as told:
        error = json.loads(told.read())["error"]
    assert (error["code"], error["detail"]) == (
        "not_allowed",
        "uid 65534 may not steer this process; root and uid 0 may",
    )


def test_packet_with_two_kinds_of_ancillary_data_leaks_nothing(target: Running, raw: socket.socket) -> None:
    before = target.descriptors()
    credentials = struct.pack("3i", os.getpid(), os.geteuid(), os.getegid())
    rights = struct.pack("2i", 0, 1)
    raw.sendmsg(
        [b"{}"],
        [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, credentials), (socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)],
    )
    assert "error" in json.loads(raw.recv(LARGEST_PACKET))
    assert target.descriptors() == before
