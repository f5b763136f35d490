"""Messages of the control channel: a JSON object in a SOCK_SEQPACKET datagram, with descriptors by SCM_RIGHTS.

    {"id":7,"verb":"map_lun",...}                       a message in one packet, as nearly all are
    +{"id":7,"verb":"map_lun",...  +...  .]}}           a long one in pieces: “+” more follow, “.” this is the last

A chain of a thousand images takes more bytes, and more descriptors, than a packet may have (unix(7): SCM_MAX_FD). Its
message comes in pieces, in a row, each with a part of both; the order of the descriptors is kept. Whoever receives a
packet owns its descriptors: `Descriptors` closes at the end of its `with` whatever nobody took.
"""

import array
import errno
import json
import os
import socket
import time
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, Self

from vstore.record import Record
from vstore.target.errors import ErrorCode, TargetError

LARGEST_PACKET = 65536  # bytes
MOST_DESCRIPTORS = 240  # in one packet
LARGEST_MESSAGE = 16 << 20  # bytes
MOST_FILES = 3072  # descriptors of one message: a chain's 1,000 images with their data files and secrets
_MORE, _LAST = b"+", b"."  # what no JSON object begins with
_PATIENCE = 0.002  # seconds until a peer that has not yet taken what is under way is tried again


class Descriptors:
    """Received descriptors: each is taken by one owner, or closed here."""

    def __init__(self, descriptors: Sequence[int] = ()) -> None:
        self._open = list(descriptors)

    def __len__(self) -> int:
        return len(self._open)

    def add(self, others: "Descriptors") -> None:
        """Takes over what another one holds, behind its own."""
        self._open += others._open
        others._open = []

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


class Packet(Record):
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


class Joiner:
    """Makes messages of one connection's packets. Whoever has it closes it: a message may be half there."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._descriptors = Descriptors()
        self._fault: str | None = None

    def add(self, packet: Packet) -> Packet | None:
        """The message that the packet completes, if it does."""
        mark = packet.data[:1]
        if packet.fault is not None or mark not in (_MORE, _LAST):
            self.close()
            return packet
        self._data += packet.data[1:]
        self._descriptors.add(packet.descriptors)
        if len(self._data) > LARGEST_MESSAGE or len(self._descriptors) > MOST_FILES:
            self._fault = f"the message has more than {LARGEST_MESSAGE} bytes or {MOST_FILES} descriptors"
            self._drop()
        if mark == _MORE:
            return None
        joined = Packet(bytes(self._data), self._descriptors, self._fault)
        self._descriptors = Descriptors()
        self.close()
        return joined

    def _drop(self) -> None:
        self._descriptors.close()
        self._data.clear()

    def close(self) -> None:
        """Forgets what is half there."""
        self._drop()
        self._fault = None


def encode(message: dict[str, Any]) -> bytes:
    """Raises TargetError when it is too long."""
    # Text as it is takes a third of its escapes. The name of a file may be no UTF-8: then it has surrogates.
    data = json.dumps(message, separators=(",", ":"), ensure_ascii=False).encode(errors="surrogatepass")
    if len(data) > LARGEST_MESSAGE:
        raise TargetError(ErrorCode.INVALID_REQUEST, f"{len(data)} bytes are more than a message's {LARGEST_MESSAGE}")
    return data


def pieces(data: bytes, descriptors: Sequence[int] = ()) -> Iterator[tuple[bytes, Sequence[int]]]:
    """The packets of a message, each with its descriptors."""
    if len(data) <= LARGEST_PACKET and len(descriptors) <= MOST_DESCRIPTORS:
        yield data, descriptors
        return
    while len(descriptors) > MOST_DESCRIPTORS:
        yield _MORE, descriptors[:MOST_DESCRIPTORS]
        descriptors = descriptors[MOST_DESCRIPTORS:]
    size = LARGEST_PACKET - 1
    for at in range(0, len(data), size):
        yield (_MORE if at + size < len(data) else _LAST) + data[at : at + size], descriptors
        descriptors = ()


def send_packet(connection: socket.socket, data: bytes, descriptors: Sequence[int] = ()) -> None:
    """One packet, whole or not at all. Raises OSError (BlockingIOError on a non-blocking socket)."""
    socket.send_fds(connection, [data], descriptors, socket.MSG_NOSIGNAL)


def send(connection: socket.socket, data: bytes, descriptors: Sequence[int] = (), timeout: float = 30.0) -> None:
    """A message. Raises OSError; on a non-blocking socket use `pieces` and `send_packet`."""
    deadline = time.monotonic() + timeout
    for piece, some in pieces(data, descriptors):
        while True:
            try:
                send_packet(connection, piece, some)
                break
            except OSError as error:
                # unix(7): as many descriptors are under way as this process may have open
                if error.errno != errno.ETOOMANYREFS or time.monotonic() > deadline:
                    raise
            time.sleep(_PATIENCE)
