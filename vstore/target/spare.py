"""A target process ahead of need: Python's start and its imports are behind it, and it waits to be told what to be.

      daemon                                              spare
    keep ---- starts -------------------------------->  imports all that a target needs, then waits
    spawn --- {"control": path} + log, ready --------->  is that target process from here on: same descriptors, same log
    keep ---- a moment later: starts the next one
              (end of the connection) --------------->  the daemon is gone or wants none: it ends

Python takes longer to start than an image takes to open, be it of a tebibyte. One spare becomes one target: children of
one process that had all imported would start as fast, but share the places of everything in their memory, so that who
has found them out in one would know them in all.
"""

import contextlib
import importlib
import os
import socket
import subprocess
import threading
from pathlib import Path
from typing import Self

from vstore.target.packet import encode, receive, send
from vstore.target.spawn import begin, spawn, target_process

# What is imported where it is first used, and is used by every target, or every target of such an image.
AHEAD = ("vstore.target.main", "formats.qcow2.image", "formats.raw", "concurrent.futures.thread")
_PAUSE = 1.0  # seconds after which the next spare is started: the first I/O of the last one's guest comes first
_END_TIMEOUT = 5.0


class Spare:
    """`spawn` may be called from any thread; close it, also to be rid of a process that nobody needed."""

    def __init__(self, daemon: Path) -> None:
        """`daemon`: a directory of the daemon's, by which people tell whose process it is."""
        self._daemon = daemon
        self._lock = threading.Lock()
        self._waiting: _Waiting | None = None
        self._next: threading.Timer | None = None
        self._closed = False
        self._keep_soon()

    def spawn(self, control: str, log: Path) -> subprocess.Popen[bytes]:
        """As `vstore.target.spawn.spawn`, which it is too where the spare is away."""
        with self._lock:
            waiting, self._waiting = self._waiting, None
        try:
            return spawn(control, log, begin=waiting.become if waiting else begin)
        finally:
            self._keep_soon()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            waiting, self._waiting = self._waiting, None
            following = self._next
        if following is not None:
            following.cancel()
        if waiting is not None:
            waiting.end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _keep_soon(self) -> None:
        with self._lock:
            if not self._closed and (self._next is None or not self._next.is_alive()):
                self._next = threading.Timer(_PAUSE, self._keep)
                self._next.daemon = True
                self._next.start()

    def _keep(self) -> None:
        with self._lock, contextlib.suppress(OSError):  # without a spare all goes as well, but slower
            if not self._closed and self._waiting is None:
                self._waiting = _Waiting(self._daemon)


class _Waiting:
    """A process that has no target yet. Raises OSError where none can be started."""

    def __init__(self, daemon: Path) -> None:
        self._orders, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, contextlib.ExitStack() as undo:
            undo.callback(self._orders.close)
            number = theirs.fileno()
            self._process = target_process("--spare-fd", str(number), "--of", str(daemon), output=2, pass_fds=[number])
            undo.pop_all()

    def become(self, control: str, output: int, ready: int) -> subprocess.Popen[bytes]:
        """`vstore.target.spawn.begin`, without the waiting. Raises OSError."""
        try:
            with self._orders:
                send(self._orders, encode({"control": control}), [output, ready])
        except OSError:  # it has died
            self.end()
            return begin(control, output, ready)
        return self._process

    def end(self) -> None:
        self._orders.close()
        try:
            self._process.wait(_END_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def orders(descriptor: int) -> tuple[str, int] | None:
    """In the spare: loads what will be needed, then waits for the path of its control socket and the descriptor that
    tells when that listens. Its output is the target's log from then on. None: there will be no target."""
    for name in AHEAD:
        importlib.import_module(name)
    with socket.socket(fileno=descriptor) as connection:
        packet = receive(connection)
    if packet is None:
        return None
    with packet.descriptors as came:
        log, ready = came.take(), came.take()
        assert log is not None
        assert ready is not None
        for output in (1, 2):
            os.dup2(log, output)
        os.close(log)
        return str(packet.message()["control"]), ready
