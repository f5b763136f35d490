"""A target process that is up: its control connection, and its life or death through a pidfd.

The process may be a child of this daemon or of a daemon before it; a pidfd works for both, and is never a stranger's.
"""

import contextlib
import errno
import logging
import os
import select
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Self

from vstore.target.client import TargetClient
from vstore.target.errors import TargetError
from vstore.target.verbs import Event

_log = logging.getLogger(__name__)

Spawn = Callable[[str, Path], subprocess.Popen[bytes]]  # (control socket, log file) -> a process that listens

_STOP_TIMEOUT = 60.0  # seconds to flush; then SIGTERM, then SIGKILL
_KILL_TIMEOUT = 5.0
_NOBODY_THERE = (errno.ENOENT, errno.ECONNREFUSED)


class RunningTarget:
    def __init__(self, client: TargetClient, child: subprocess.Popen[bytes] | None = None) -> None:
        """Raises TargetError when the process does not tell its status."""
        self.client = client
        self._child = child  # to be reaped; None: it was adopted
        self._pidfd = -1
        try:
            status = client.status()
            self.pid = status.pid
            self._hosted = status.hosted  # its end is not that of the process
            with contextlib.suppress(ProcessLookupError):  # it died just now; the connection will tell
                self._pidfd = os.pidfd_open(self.pid)
        except TargetError:
            client.close()
            raise

    @classmethod
    def adopt(
        cls,
        control: Path,
        child: subprocess.Popen[bytes] | None = None,
        *,
        on_event: Callable[[Event], None] = lambda _event: None,
        on_end: Callable[[], None] = lambda: None,
    ) -> Self | None:
        """The process that listens at `control`; None: nobody does. Raises TargetError."""
        try:
            return cls(TargetClient(str(control), on_event=on_event, on_disconnect=on_end), child)
        except TargetError as error:
            if isinstance(error.__cause__, OSError) and error.__cause__.errno in _NOBODY_THERE:
                return None
            raise

    def stop(self) -> None:
        """Ends it in order: everything it wrote is durable when this returns. Raises TargetError if that failed."""
        try:
            self.client.stop()
        finally:
            self._end()

    def _end(self) -> None:
        """Waits for its end, and helps it along when it does not come."""
        if self._hosted:
            self.release()
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            if self._ended(_STOP_TIMEOUT if number == signal.SIGTERM else _KILL_TIMEOUT):
                break
            _log.error("target_does_not_end", extra={"pid": self.pid, "signal": number.name})
            with contextlib.suppress(OSError):
                signal.pidfd_send_signal(self._pidfd, number)
        self.release()

    def wait_for_end(self, timeout: float) -> None:
        """After its connection ended: the process should follow."""
        if not self._ended(timeout):
            _log.warning("target_outlives_its_connection", extra={"pid": self.pid})
        self.release()

    def release(self) -> None:
        """Lets go of it, dead or alive. A second call does nothing."""
        self.client.close()
        if self._child is not None:
            self._child.poll()
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1

    def _ended(self, timeout: float) -> bool:
        if self._pidfd < 0:
            return True
        ready, _, _ = select.select([self._pidfd], [], [], timeout)
        if ready and self._child is not None:
            self._child.wait()
        return bool(ready)
