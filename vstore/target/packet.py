"""One packet of the control channel: a JSON object in one SOCK_SEQPACKET datagram, with descriptors by SCM_RIGHTS.

Whoever receives a packet owns its descriptors: `Descriptors` closes at the end of its `with` whatever nobody took.
"""

import array
import json
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from vstore.target.errors import ErrorCode, TargetError

LARGEST_PACKET = 65536  # bytes
MOST_DESCRIPTORS = 16


class Descriptors:
    """Received descriptors: each is taken by one owner, or closed here."""

    def __init__(self, descriptors: Sequence[int] = ()) -> None:
        self._open = list(descriptors)

    def __len__(self) -> int:
        return len(self._open)

    def take(self) -> int | None:
        """The next descriptor, which is the caller's now; None: there is none left."""
        return self._open.pop(0) if self._open else None

    def close(self) -> None:
        while self._open:
            os.close(self._open.pop())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class Packet:
    """A packet as it came; `fault` says why its bytes or descriptors cannot be trusted."""

    data: bytes
    descriptors: Descriptors
    fault: str | None = None

    def message(self) -> dict[str, Any]:
        """The JSON object. Raises TargetError."""
        if self.fault:
            raise TargetError(ErrorCode.INVALID_REQUEST, self.fault)
        try:
            message = json.loads(self.data)
        except (ValueError, RecursionError) as error:
            raise TargetError(ErrorCode.INVALID_REQUEST, f"the packet is not JSON: {str(error)[:200]}") from None
        if not isinstance(message, dict):
            raise TargetError(ErrorCode.INVALID_REQUEST, "the packet is not a JSON object")
        return message


def receive(connection: socket.socket) -> Packet | None:
    """The next packet; None: the peer is gone. Raises OSError (BlockingIOError on a non-blocking socket)."""
    data, descriptors, flags = _receive(connection)
    if not data and not descriptors:
        return None
    if flags & socket.MSG_TRUNC:
        return Packet(b"", Descriptors(descriptors), f"the packet is longer than {LARGEST_PACKET} bytes")
    if flags & socket.MSG_CTRUNC:  # unix(7): too many for the buffer, or for RLIMIT_NOFILE
        fault = (
            f"descriptors were lost: at most {MOST_DESCRIPTORS} come with a packet, and the process needs room for them"
        )
        return Packet(b"", Descriptors(descriptors), fault)
    return Packet(data, Descriptors(descriptors))


def _receive(connection: socket.socket) -> tuple[bytes, list[int], int]:
    """socket.recv_fds, but no descriptor leaks into a child, not even for a moment."""
    space = socket.CMSG_SPACE(MOST_DESCRIPTORS * array.array("i").itemsize)
    data, ancillary, flags, _ = connection.recvmsg(LARGEST_PACKET, space, socket.MSG_CMSG_CLOEXEC)
    received = array.array("i")
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            received.frombytes(content[: len(content) - len(content) % received.itemsize])
    return data, list(received), flags


def encode(message: dict[str, Any]) -> bytes:
    """Raises TargetError when it is too long for a packet."""
    # Text as it is takes a third of its escapes. The name of a file may be no UTF-8: then it has surrogates.
    data = json.dumps(message, separators=(",", ":"), ensure_ascii=False).encode(errors="surrogatepass")
    if len(data) > LARGEST_PACKET:
        raise TargetError(ErrorCode.INVALID_REQUEST, f"{len(data)} bytes are more than a packet's {LARGEST_PACKET}")
    return data


def send(connection: socket.socket, data: bytes, descriptors: Sequence[int] = ()) -> None:
    """One packet, whole or not at all. Raises OSError (BlockingIOError on a non-blocking socket)."""
    socket.send_fds(connection, [data], descriptors, socket.MSG_NOSIGNAL)
