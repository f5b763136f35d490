"""The daemon's side of the control channel: a target process as an object with one method per verb.

A TargetClient may be used from any thread: each verb waits for its own answer, a thread of the client's sorts what
arrives. When the connection ends, every waiting verb fails with `disconnected`; the process itself lives on.
"""

import contextlib
import itertools
import logging
import socket
import struct
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, Self, TypeVar

from vstore.target.declaration import Declaration, parse, plain
from vstore.target.errors import ErrorCode, TargetError
from vstore.target.packet import Joiner, Packet, encode, receive, send
from vstore.target.verbs import (
    EVENTS,
    VERBS,
    BitmapList,
    BitmapLun,
    BitmapRow,
    Configure,
    Empty,
    Event,
    Host,
    Keep,
    KeptRow,
    LunAddress,
    MapLun,
    Mapped,
    Resized,
    ResizeLun,
    Resume,
    SnapshotLun,
    SnapshotRow,
    Snapshots,
    Status,
    StatusRequest,
)
from vstore.vhost_user.keeping import Kept

_log = logging.getLogger(__name__)
_Answer = TypeVar("_Answer", bound=Declaration)

DEFAULT_TIMEOUT = 30.0  # seconds
LONG_TIMEOUT = 3600.0  # for what may go through a whole image
UNLOCK_TIMEOUT = 90.0  # for each secret that comes along: to try it is made slow, by whoever made the image


class TargetClient:
    """Connects at once. Errors of everything here: TargetError."""

    def __init__(
        self,
        path: str,
        *,
        timeout: float = DEFAULT_TIMEOUT,
        on_event: Callable[[Event], None] = lambda _: None,
        on_disconnect: Callable[[], None] = lambda: None,
    ) -> None:
        """`timeout` in seconds bounds each verb. The callbacks run on the client's thread and must not call verbs."""
        self.path = path
        self._timeout = timeout
        self._on_event = on_event
        self._on_disconnect = on_disconnect
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._sending = threading.Lock()  # and the socket is not closed under a sender
        self._waiting: dict[int, Future[dict[str, Any]]] | None = {}  # None: disconnected
        self._socket = _connect(path, timeout)
        self._thread = threading.Thread(target=self._listen, name=f"target {path}", daemon=True)
        self._thread.start()

    def configure(self, request: Configure, listening: int | None = None) -> None:
        """`listening`: descriptor of the vhost-user socket, if the process is not to make it. It stays the caller's."""
        self._call("configure", request, Empty, [] if listening is None else [listening])

    def map_lun(self, request: MapLun, image: int | None = None, *more: int) -> Mapped:
        """`image`: descriptor of the image's file, for formats that have one; then, where the request tells of them,
        those of its data file, its secret, its parent, the parent's data file, and so on. They stay the caller's."""
        secrets = request.image.secret + sum(parent.secret for parent in request.image.parents)
        timeout = self._timeout + UNLOCK_TIMEOUT * secrets
        return self._call("map_lun", request, Mapped, [] if image is None else [image, *more], timeout)

    def unmap_lun(self, lun: int, target: int = 0) -> None:
        self._call("unmap_lun", LunAddress(target=target, lun=lun), Empty)

    def resize_lun(self, lun: int, length: int, target: int = 0) -> Resized:
        """`length` in bytes."""
        return self._call("resize_lun", ResizeLun(target=target, lun=lun, length=length), Resized)

    def snapshots(self, lun: int, target: int = 0) -> tuple[SnapshotRow, ...]:
        """Internal snapshots of a LUN's image."""
        return self._call("snapshot_lun", SnapshotLun(target=target, lun=lun, action="list"), Snapshots).snapshots

    def create_snapshot(self, lun: int, name: str, target: int = 0, *, timeout: float = LONG_TIMEOUT) -> Snapshots:
        """The answer's `pause_us` tells how long writes had to wait. `timeout` in seconds; the image's size decides."""
        request = SnapshotLun(target=target, lun=lun, action="create", name=name)
        return self._call("snapshot_lun", request, Snapshots, timeout=timeout)

    def delete_snapshot(self, lun: int, name: str, target: int = 0, *, timeout: float = LONG_TIMEOUT) -> Snapshots:
        """`name`: or ID. `timeout` as for `create_snapshot`."""
        request = SnapshotLun(target=target, lun=lun, action="delete", name=name)
        return self._call("snapshot_lun", request, Snapshots, timeout=timeout)

    def bitmaps(self, lun: int, target: int = 0) -> tuple[BitmapRow, ...]:
        """Persistent dirty bitmaps of a LUN's image."""
        return self.change_bitmap(BitmapLun(target=target, lun=lun, action="list"))

    def change_bitmap(self, request: BitmapLun) -> tuple[BitmapRow, ...]:
        """Those that there are afterwards."""
        return self._call("bitmap_lun", request, BitmapList, timeout=LONG_TIMEOUT).bitmaps

    def host(self, control: str) -> None:
        """Serves one more target in the same process, behind a control socket at this path."""
        self._call("host", Host(control=control), Empty)

    def keep(self, sink: int) -> None:
        """`sink`: where the process tells what it takes to go on without it. It stays the caller's."""
        self._call("keep", Keep(), Empty, [sink])

    def resume(self, kept: Kept) -> None:
        """Before `configure`: what another process told. It stays the caller's."""
        descriptors: list[int] = []
        rows = []
        for name, message in kept.items():
            descriptors += message.descriptors
            payload, count = message.payload.hex(), len(message.descriptors)
            rows.append(
                KeptRow(name=name, request=message.request, flags=message.flags, payload=payload, descriptors=count)
            )
        self._call("resume", Resume(kept=tuple(rows)), Empty, descriptors)

    def status(self) -> Status:
        """All LUNs, whatever number of answers that takes."""
        status = self._call("status", StatusRequest(), Status)
        while status.next_lun is not None:
            more = self._call("status", StatusRequest(first_lun=status.next_lun), Status)
            status = replace(status, luns=status.luns + more.luns, next_lun=more.next_lun)
        return status

    def stop(self) -> None:
        """Flushes and ends the process; it is answered when all is durable."""
        self._call("stop", Empty(), Empty)

    def close(self) -> None:
        """Ends the connection, not the process. A second call does nothing."""
        with contextlib.suppress(OSError):  # the peer was faster
            self._socket.shutdown(socket.SHUT_RDWR)
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _call(
        self,
        verb: str,
        request: Declaration,
        answer: type[_Answer],
        descriptors: Sequence[int] = (),
        timeout: float | None = None,
    ) -> _Answer:
        timeout = self._timeout if timeout is None else timeout
        assert VERBS[verb].answer is answer
        number = next(self._numbers)
        data = encode({"id": number, "verb": verb, **plain(request)})
        future: Future[dict[str, Any]] = Future()
        with self._lock:
            if self._waiting is None:
                raise _disconnected(self.path)
            self._waiting[number] = future
        try:
            with self._sending:
                send(self._socket, data, descriptors, timeout)
            message = future.result(timeout)
        except (TimeoutError, BlockingIOError):
            detail = f"no answer to {verb} within {timeout:g} s from the target process at {self.path}"
            raise TargetError(ErrorCode.TIMED_OUT, detail) from None
        except OSError as error:
            raise _disconnected(self.path) from error
        finally:
            with self._lock:
                if self._waiting is not None:
                    self._waiting.pop(number, None)
        return _result(message, answer)

    def _listen(self) -> None:
        joiner = Joiner()
        try:
            while (packet := receive(self._socket)) is not None:
                message = joiner.add(packet)
                if message is not None:
                    with message.descriptors:
                        self._sort(message)
        except OSError as error:
            _log.debug("target_connection_failed: %s: %s", self.path, error)
        finally:
            joiner.close()
            self._disconnected()

    def _sort(self, packet: Packet) -> None:
        try:
            message = packet.message()
            if "event" in message:
                self._deliver(message)
                return
            with self._lock:
                future = (self._waiting or {}).pop(message.get("id", 0), None)
            if future is not None:
                future.set_result(message)
        except Exception:  # a callback's fault, or a process of another version: neither may end the channel
            _log.exception("target_packet_failed")

    def _deliver(self, message: dict[str, Any]) -> None:
        kind = EVENTS.get(message.pop("event"))
        if kind is not None:  # a newer process may know more events
            self._on_event(parse(kind, message))

    def _disconnected(self) -> None:
        with self._lock:
            waiting, self._waiting = self._waiting or {}, None
        for future in waiting.values():
            future.set_exception(_disconnected(self.path))
        with self._sending:
            self._socket.close()
        self._on_disconnect()


def _connect(path: str, timeout: float) -> socket.socket:
    connected = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        # A timeout of Python's would make the socket non-blocking, and connect(2) fail when others wait before us.
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(timeout) + 1, 0))
        connected.connect(path)
    except OSError as error:
        connected.close()
        raise TargetError(
            ErrorCode.DISCONNECTED, f"no target process answers at {path}: {error.strerror or error}"
        ) from error
    return connected


def _disconnected(path: str) -> TargetError:
    return TargetError(ErrorCode.DISCONNECTED, f"the target process at {path} ended the connection")


def _result(message: dict[str, Any], answer: type[_Answer]) -> _Answer:
    error = message.get("error")
    if isinstance(error, dict):
        code = error.get("code")
        known = ErrorCode(code) if code in list(ErrorCode) else ErrorCode.INTERNAL
        raise TargetError(known, str(error.get("detail")))
    return parse(answer, message.get("ok"))
