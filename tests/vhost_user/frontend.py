"""A front-end for tests of sessions: messages packed here by their own table, apart from vstore's, and sent raw."""

import asyncio
import os
import socket
import struct
from collections.abc import Sequence
from pathlib import Path

NEED_REPLY = 8
MEMORY_LENGTH = 0x400000

# Number and payload of each message; `*`: one more region of four words for as long as there are numbers.
FORMS = {
    "GET_FEATURES": (1, "="),
    "SET_FEATURES": (2, "=Q"),
    "SET_OWNER": (3, "="),
    "RESET_OWNER": (4, "="),
    "SET_MEM_TABLE": (5, "=II*"),
    "SET_LOG_BASE": (6, "=QQ"),
    "SET_VRING_NUM": (8, "=II"),
    "SET_VRING_ADDR": (9, "=IIQQQQ"),
    "SET_VRING_BASE": (10, "=II"),
    "GET_VRING_BASE": (11, "=II"),
    "SET_VRING_KICK": (12, "=Q"),
    "SET_VRING_CALL": (13, "=Q"),
    "SET_VRING_ERR": (14, "=Q"),
    "GET_PROTOCOL_FEATURES": (15, "="),
    "SET_PROTOCOL_FEATURES": (16, "=Q"),
    "GET_QUEUE_NUM": (17, "="),
    "SET_VRING_ENABLE": (18, "=II"),
    "GET_CONFIG": (24, "=IIII"),
    "SET_CONFIG": (25, "=IIII"),
    "GET_INFLIGHT_FD": (31, "=QQHHI"),
    "SET_INFLIGHT_FD": (32, "=QQHHI"),
    "RESET_DEVICE": (34, "="),
    "GET_MAX_MEM_SLOTS": (36, "="),
    "ADD_MEM_REG": (37, "=QQQQQ"),
    "REM_MEM_REG": (38, "=QQQQQ"),
}


def pack(name: str, numbers: Sequence[int]) -> bytes:
    _, form = FORMS[name]
    if form.endswith("*"):
        form = form[:-1] + "Q" * (len(numbers) - 2)
    if name == "GET_CONFIG" and numbers[1] != 4:
        return struct.pack("=III", *numbers[:3]) + bytes(numbers[1])
    return struct.pack(form, *numbers)


class Frontend:
    """One end of a socket pair; the other one is the session's."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self.socket = connection
        self.memory = os.memfd_create("guest memory", os.MFD_CLOEXEC)
        os.truncate(self.memory, MEMORY_LENGTH)

    def close(self) -> None:
        self.socket.close()
        os.close(self.memory)

    def send(self, name: str, *numbers: int, descriptors: Sequence[int] = (), need_reply: bool = False) -> None:
        number, _ = FORMS[name]
        self.send_raw(number, 1 | (NEED_REPLY if need_reply else 0), pack(name, numbers), descriptors)

    def send_raw(
        self, number: int, flags: int, payload: bytes, descriptors: Sequence[int] = (), size: int | None = None
    ) -> None:
        message = struct.pack("=III", number, flags, len(payload) if size is None else size) + payload
        socket.send_fds(self.socket, [message], descriptors)

    async def receive(self) -> tuple[int, bytes]:
        """Number and payload of the next reply. Raises EOFError when the session has closed the connection."""
        number, flags, size = struct.unpack("=III", await self._exactly(12))
        assert flags == 1 | 4, "a reply carries the version and the reply flag"
        return number, await self._exactly(size)

    async def ask(self, name: str, *numbers: int, descriptors: Sequence[int] = ()) -> tuple[int, ...]:
        """Sends a message that has a reply of its own; the reply's fields."""
        self.send(name, *numbers, descriptors=descriptors)
        number, payload = await self.receive()
        assert number == FORMS[name][0]
        return fields(name, payload)

    async def tell(self, name: str, *numbers: int, descriptors: Sequence[int] = ()) -> int:
        """Sends a message with NEED_REPLY; the acknowledgement, 0 being consent."""
        self.send(name, *numbers, descriptors=descriptors, need_reply=True)
        number, payload = await self.receive()
        assert number == FORMS[name][0]
        return int(struct.unpack("=Q", payload)[0])

    async def settled(self) -> None:
        """Returns when everything sent so far was handled."""
        await self.ask("GET_FEATURES")

    async def negotiate(self, features: int = 0x170000006, protocol_features: int = 0xA00B) -> None:
        self.send("SET_PROTOCOL_FEATURES", protocol_features)
        assert await self.tell("SET_FEATURES", features) == 0

    async def add_memory(
        self, guest: int = 0, size: int = 0x200000, user: int = 0x7F0000000000, offset: int = 0
    ) -> int:
        return await self.tell("ADD_MEM_REG", 0, guest, size, user, offset, descriptors=[self.memory])

    def start_ring(self, vring: int, *, base: int = 0) -> None:
        where = 0x7F0000000000 + vring * 0x10000
        self.send("SET_VRING_NUM", vring, 128)
        self.send("SET_VRING_BASE", vring, base)
        self.send("SET_VRING_ADDR", vring, 0, where + 0x1000, where + 0x3000, where + 0x2000, 0)
        self.send("SET_VRING_KICK", vring | 0x100)
        self.send("SET_VRING_ENABLE", vring, 1)

    async def closed(self) -> bool:
        """Whether the session closes the connection without another word."""
        try:
            return not await asyncio.wait_for(asyncio.get_running_loop().sock_recv(self.socket, 1), 10)
        except ConnectionResetError:
            return True

    async def _exactly(self, length: int) -> bytes:
        data = b""
        while len(data) < length:
            loop = asyncio.get_running_loop()
            chunk = await asyncio.wait_for(loop.sock_recv(self.socket, length - len(data)), 10)
            if not chunk:
                raise EOFError("the session closed the connection")
            data += chunk
        return data


async def alive(frontend: Frontend) -> bool:
    """Whether the session still answers."""
    return await frontend.ask("GET_FEATURES") == (0x17C000006,)


def fields(name: str, payload: bytes) -> tuple[int, ...]:
    """Of a reply: words of 4 bytes where the request has such, else one of 8; a short value of configuration space."""
    if not payload:
        return ()
    if name == "GET_CONFIG":
        return (*struct.unpack("=III", payload[:12]), int.from_bytes(payload[12:], "little"))
    return struct.unpack("=II" if name == "GET_VRING_BASE" else "=Q", payload)


def scripts() -> list[Path]:
    return sorted((Path(__file__).parents[2] / "fixtures" / "vhost_user").glob("*.script"))
