"""The control channel's server: connections, packets and verbs; what a verb does is the process's affair.

Any number of connections (a daemon, its successor, a person's tool) may stand at once; events go to all of them.
A connection that lies, floods or does not read costs only itself.
"""

import asyncio
import contextlib
import logging
import os
import socket
import struct
from collections import deque
from collections.abc import Callable
from typing import Any

from vstore.target.declaration import parse, plain
from vstore.target.errors import ErrorCode, TargetError
from vstore.target.packet import Descriptors, Joiner, Packet, encode, pieces, receive, send, send_packet
from vstore.target.process import TargetProcess
from vstore.target.verbs import EVENTS, VERBS, Event

_log = logging.getLogger(__name__)

MOST_CONNECTIONS = 16
MOST_REQUESTS = 64  # running at once, for one connection
MOST_UNSENT = 1024  # packets waiting for a peer that does not read
_UCRED = struct.Struct("3i")  # struct ucred: pid, uid, gid
_EVENT_NAMES = {kind: name for name, kind in EVENTS.items()}


class ControlServer:
    """Serves `process` to whoever connects to the listening socket and may."""

    def __init__(self, process: TargetProcess, listening: socket.socket) -> None:
        self._process = process
        self._listening = listening
        self._connections: set[Connection] = set()
        listening.setblocking(False)
        process.on_event(self._tell)

    async def serve(self) -> None:
        """Accepts until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, _ = await loop.sock_accept(self._listening)
            except OSError as error:  # EMFILE and its kin pass; the others must not make a busy loop either
                _log.warning("control_accept_failed: %s", error.strerror)
                await asyncio.sleep(0.1)
                continue
            self._admit(accepted)

    async def close(self) -> None:
        """Lets every connection send what it has to say, and ends it."""
        await asyncio.gather(*(connection.finish() for connection in list(self._connections)))

    def _admit(self, accepted: socket.socket) -> None:
        refusal = self._refusal(accepted)
        if refusal:
            with contextlib.suppress(OSError, BlockingIOError):
                send(accepted, encode(_failure(None, refusal)))
            accepted.close()
            return
        self._connections.add(Connection(accepted, self._process, self._connections.discard))

    def _refusal(self, accepted: socket.socket) -> TargetError | None:
        _, uid, _ = _UCRED.unpack(accepted.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
        if uid not in (0, os.geteuid()):
            _log.warning("control_peer_refused: uid %d", uid)
            detail = f"uid {uid} may not steer this process; root and uid {os.geteuid()} may"
            return TargetError(ErrorCode.NOT_ALLOWED, detail)
        if len(self._connections) >= MOST_CONNECTIONS:
            return TargetError(ErrorCode.BUSY, f"{MOST_CONNECTIONS} control connections are open; close one first")
        return None

    def _tell(self, event: Event) -> None:
        data = encode({"event": _EVENT_NAMES[type(event)], **plain(event)})
        for connection in list(self._connections):
            connection.send(data)


class Connection:
    """One peer: each packet's verb runs in a task of its own, and answers go out in the order they are ready."""

    def __init__(
        self, connected: socket.socket, process: TargetProcess, on_close: Callable[["Connection"], None]
    ) -> None:
        self._socket = connected
        self._process = process
        self._on_close = on_close
        self._unsent: deque[bytes] = deque()  # packets
        self._joiner = Joiner()
        self._running: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        connected.setblocking(False)
        self._loop.add_reader(connected, self._readable)

    def send(self, data: bytes) -> None:
        if self._socket.fileno() < 0:
            return
        if len(self._unsent) >= MOST_UNSENT:
            _log.warning("control_peer_dropped: it left %d packets unread", len(self._unsent))
            self._close()
            return
        self._unsent.extend(piece for piece, _ in pieces(data))
        self._flush()

    async def finish(self) -> None:
        """Waits a moment for the running verbs and for a peer that reads slowly, then closes."""
        if self._running:
            await asyncio.wait(self._running, timeout=1)
        for _ in range(100):
            if not self._unsent:
                break
            await asyncio.sleep(0.01)
        self._close()

    def _readable(self) -> None:
        try:
            packet = receive(self._socket)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            packet = None
        if packet is None:
            self._close()
            return
        message = self._joiner.add(packet)
        if message is None:
            return
        task = self._loop.create_task(self._answer(message))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _answer(self, packet: Packet) -> None:
        number: object = None
        with packet.descriptors:
            try:
                message = packet.message()
                number = _number(message)
                if len(self._running) > MOST_REQUESTS:
                    raise TargetError(ErrorCode.BUSY, f"{MOST_REQUESTS} requests are running; wait for answers first")
                answer = await _execute(self._process, message, packet.descriptors)
                data = encode({"id": number, "ok": answer})
            except TargetError as error:
                data = encode(_failure(number, error))
            except Exception:
                _log.exception("verb_failed")
                fault = TargetError(ErrorCode.INTERNAL, "a fault in vstore itself; its log tells more")
                data = encode(_failure(number, fault))
        self.send(data)

    def _flush(self) -> None:
        try:
            while self._unsent:
                send_packet(self._socket, self._unsent[0])
                self._unsent.popleft()
        except (BlockingIOError, InterruptedError):
            self._loop.add_writer(self._socket, self._flush)
            return
        except OSError:
            self._close()
            return
        self._loop.remove_writer(self._socket)

    def _close(self) -> None:
        if self._socket.fileno() < 0:
            return
        self._loop.remove_reader(self._socket)
        self._loop.remove_writer(self._socket)
        self._socket.close()
        self._joiner.close()
        self._unsent.clear()
        self._on_close(self)


def _number(message: dict[str, Any]) -> int:
    number = message.pop("id", None)
    if type(number) is not int or not 0 <= number < 2**63:
        raise TargetError(ErrorCode.INVALID_REQUEST, "id is missing or is not a whole number from 0 to 2**63 - 1")
    return number


async def _execute(process: TargetProcess, message: dict[str, Any], descriptors: Descriptors) -> dict[str, Any]:
    name = message.pop("verb", None)
    verb = VERBS.get(name) if isinstance(name, str) else None
    if verb is None:
        shown = repr(name)[:60]
        raise TargetError(ErrorCode.INVALID_REQUEST, f"{shown} is no verb here; they are {', '.join(VERBS)}")
    fewest, most = verb.descriptors
    if not fewest <= len(descriptors) <= most:
        detail = f"{len(descriptors)} descriptors came with {verb.name}, which takes {fewest} to {most}"
        raise TargetError(ErrorCode.INVALID_REQUEST, detail)
    return plain(await process.run(verb, parse(verb.request, message), descriptors))


def _failure(number: object, error: TargetError) -> dict[str, Any]:
    return {"id": number, "error": {"code": error.code, "detail": error.detail}}
