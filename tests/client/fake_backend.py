"""A back-end by script: it answers the handshake as told, by default correctly, and serves no ring.

`answers` maps a request to what it does instead: bytes to reply with, SILENT, HANG_UP, or a whole message as `Raw`.
"""

import contextlib
import os
import socket
import struct
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from vstore.client.frontend import KNOWN_PROTOCOL_FEATURES, Feature, ProtocolFeature, Request

SILENT = object()
HANG_UP = object()
_HEADER = struct.Struct("<III")
_U64 = struct.Struct("<Q")
_NEED_REPLY = 8


@dataclass(frozen=True)
class Raw:
    """These bytes as they are, header included."""

    message: bytes


FEATURES = Feature.VERSION_1 | Feature.PROTOCOL_FEATURES | Feature.RING_INDIRECT_DESC | Feature.RING_EVENT_IDX
_REPLIES: dict[int, bytes] = {
    Request.GET_FEATURES: _U64.pack(FEATURES),
    Request.GET_PROTOCOL_FEATURES: _U64.pack(KNOWN_PROTOCOL_FEATURES),
    Request.GET_QUEUE_NUM: _U64.pack(8),
    Request.GET_MAX_MEM_SLOTS: _U64.pack(4),
    Request.GET_VRING_BASE: struct.pack("<II", 0, 0),
}
ONLY_ACK = _U64.pack(ProtocolFeature.REPLY_ACK)


class FakeBackend:
    """What it heard stands in `heard`: (request, payload) in order."""

    def __init__(self, path: Path, answers: Mapping[int, object]) -> None:
        self.path = path
        self.heard: list[tuple[int, bytes]] = []
        self._answers: dict[int, object] = {**_REPLIES, **answers}
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def stop(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        self._listener.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            connection, _ = self._listener.accept()
            with connection:
                while self._answer(connection):
                    pass

    def _answer(self, connection: socket.socket) -> bool:
        header, descriptors, _, _ = socket.recv_fds(connection, _HEADER.size, 8)
        for descriptor in descriptors:
            os.close(descriptor)
        if len(header) < _HEADER.size:
            return False
        request, flags, size = _HEADER.unpack(header)
        payload = connection.recv(size, socket.MSG_WAITALL) if size else b""
        self.heard.append((request, payload))
        answer = self._answers.get(request, _U64.pack(0) if flags & _NEED_REPLY else SILENT)
        if isinstance(answer, bytes):
            answer = Raw(_HEADER.pack(request, 5, len(answer)) + answer)
        if isinstance(answer, Raw):
            connection.sendall(answer.message)
        return answer is not HANG_UP


@contextlib.contextmanager
def fake_backend(folder: Path, **answers: object) -> Iterator[FakeBackend]:
    """`answers` by the request's name, as GET_FEATURES=SILENT."""
    backend = FakeBackend(folder / "fake.sock", {Request[name]: answer for name, answer in answers.items()})
    try:
        yield backend
    finally:
        backend.stop()
