"""The socket's side of a connection: whole messages in and out, with the descriptors that they bring.

Only framing is judged here. What breaks it (another version, a reply where a request belongs, an impossible length,
more descriptors than the specification allows) is a ProtocolError, because nothing after it could be trusted; what a
message means is the session's. Every received descriptor belongs to its Message, and closing that closes them.
"""

import array
import asyncio
import os
import select
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

from vstore.vhost_user.errors import ProtocolError
from vstore.vhost_user.messages import (
    MAX_DESCRIPTORS,
    MAX_PAYLOAD,
    NEED_REPLY,
    REPLY,
    VERSION,
    VERSION_MASK,
    Header,
)

_INT_BYTES = array.array("i").itemsize
_ANCILLARY_ROOM = socket.CMSG_SPACE(MAX_DESCRIPTORS * _INT_BYTES)


@dataclass
class Message:
    """One message as it came. A context manager: leaving it closes the descriptors."""

    request: int
    flags: int
    payload: bytes
    descriptors: list[int] = field(default_factory=list)

    @property
    def need_reply(self) -> bool:
        return bool(self.flags & NEED_REPLY)

    def close(self) -> None:
        while self.descriptors:
            os.close(self.descriptors.pop())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Channel:
    """Owns a connected socket; one task receives and sends."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self._socket = connection

    async def receive(self) -> Message | None:
        """The next message, or None when the front-end closed the connection. Raises ProtocolError, OSError."""
        message = Message(0, 0, b"")
        try:
            first = await self._receive_bytes(Header.octets, message.descriptors)
            if not first:
                return None
            header = Header.unpack(first)
            _check(header)
            message.request, message.flags = header.request, header.flags
            message.payload = await self._receive_bytes(header.size, message.descriptors)
            if len(message.payload) != header.size:
                raise ProtocolError("the connection ended in the middle of a message")
        except BaseException:
            message.close()
            raise
        return message

    async def send(self, request: int, payload: bytes, descriptors: Sequence[int] = ()) -> None:
        """Sends one reply. Raises OSError when the front-end is gone."""
        unsent = Header(request, VERSION | REPLY, len(payload)).pack() + payload
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        while unsent:
            try:
                sent = self._socket.sendmsg([unsent], ancillary, socket.MSG_NOSIGNAL)
            except BlockingIOError:
                await self._ready(writing=True)
                continue
            unsent, ancillary = unsent[sent:], []

    @property
    def hung_up(self) -> bool:
        """Whether the front-end has closed its side, though what it sent before may not be read yet."""
        if self._socket.fileno() < 0:
            return True
        poll = select.poll()
        poll.register(self._socket, select.POLLRDHUP)
        return bool(poll.poll(0))

    def close(self) -> None:
        """Ends the connection. No receive() or send() may be under way."""
        self._socket.close()

    async def _receive_bytes(self, length: int, descriptors: list[int]) -> bytes:
        """`length` bytes, or fewer when the connection ends there (never a part of a header)."""
        data = b""
        while len(data) < length:
            try:
                chunk = self._receive_some(length - len(data), descriptors)
            except BlockingIOError:
                await self._ready(writing=False)
                continue
            if not chunk:
                if data:
                    raise ProtocolError("the connection ended in the middle of a message")
                break
            data += chunk
        return data

    def _receive_some(self, length: int, descriptors: list[int]) -> bytes:
        chunk, ancillary, flags, _ = self._socket.recvmsg(length, _ANCILLARY_ROOM, socket.MSG_CMSG_CLOEXEC)
        for level, kind, value in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                descriptors.extend(array.array("i", value[: len(value) - len(value) % _INT_BYTES]))
        if flags & socket.MSG_CTRUNC or len(descriptors) > MAX_DESCRIPTORS:
            raise ProtocolError(f"more than {MAX_DESCRIPTORS} descriptors with one message, or no room for them here")
        return chunk

    async def _ready(self, *, writing: bool) -> None:
        loop = asyncio.get_running_loop()
        add, remove = (loop.add_writer, loop.remove_writer) if writing else (loop.add_reader, loop.remove_reader)
        ready = loop.create_future()
        add(self._socket, _wake, ready)
        try:
            await ready
        finally:
            remove(self._socket)


def _wake(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


def _check(header: Header) -> None:
    if header.flags & VERSION_MASK != VERSION:
        raise ProtocolError(f"message {header.request} has version {header.flags & VERSION_MASK} instead of {VERSION}")
    if header.flags & REPLY:
        raise ProtocolError(f"message {header.request} is marked as a reply, and nothing was asked")
    if header.size > MAX_PAYLOAD:
        raise ProtocolError(f"message {header.request} claims a payload of {header.size} bytes, over {MAX_PAYLOAD}")
