"""Lines over a socket to QEMU, each wait bounded: the agent's port and QMP both speak in lines."""

import socket
import time


class ChannelError(Exception):
    """The other side closed the channel, or sent nothing within the time allowed."""


class LineChannel:
    """One end of a socket pair; QEMU inherits the other end, so there is no path, no listener and no race."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._ours, self.theirs = socket.socketpair()
        self._pending = b""

    def send(self, line: str, timeout: float = 10.0) -> None:
        try:
            self._ours.settimeout(timeout)
            self._ours.sendall(line.encode() + b"\n")
        except OSError as error:
            raise ChannelError(f"{self.name}: sending failed: {error}") from error

    def receive(self, timeout: float) -> str:
        """The next line, without its end. Raises ChannelError after `timeout` seconds or when QEMU is gone."""
        deadline = time.monotonic() + timeout
        while b"\n" not in self._pending:
            self._pending += self._chunk(deadline, timeout)
        line, _, self._pending = self._pending.partition(b"\n")
        return line.decode(errors="replace").rstrip("\r")

    def close(self) -> None:
        self._ours.close()
        self.theirs.close()

    def _chunk(self, deadline: float, timeout: float) -> bytes:
        try:
            self._ours.settimeout(max(deadline - time.monotonic(), 0.001))
            chunk = self._ours.recv(1 << 20)
        except TimeoutError as error:
            raise ChannelError(f"{self.name}: no answer within {timeout:g} s") from error
        except OSError as error:
            raise ChannelError(f"{self.name}: {error}") from error
        if not chunk:
            raise ChannelError(f"{self.name}: closed by the other side")
        return chunk
