"""Meter: how far a transfer is, told to whoever wants to know, and the place where a cancelled one ends.

Any thread may call it. Progress is told in bytes of the disk, not more often than twenty times a second.
"""

import threading
import time
from collections.abc import Callable

Progress = Callable[[int, int], None]
Cancelled = Callable[[], bool]

_PAUSE = 0.05  # seconds between two calls of a Progress


class TransferCancelled(Exception):  # noqa: N818  (it says what happened, and nothing is wrong)
    """Whoever asked for it wanted it no more; nothing half done is left."""


def silent(done: int, total: int) -> None:
    """Progress that nobody watches."""


def never() -> bool:
    """Cancelled that nothing cancels."""
    return False


class Meter:
    """Of `total` bytes; `progress` gets what is done and the total, `cancelled` is asked at every step."""

    def __init__(self, total: int, progress: Progress, cancelled: Cancelled) -> None:
        self.total = total
        self._progress, self._cancelled = progress, cancelled
        self._lock = threading.Lock()
        self._done = 0
        self._told = 0.0
        progress(0, total)

    def reach(self, done: int) -> None:
        """That much is done, if it is not more already. Raises TransferCancelled."""
        if self._cancelled():
            raise TransferCancelled("cancelled")
        with self._lock:
            self._done = max(self._done, min(done, self.total))
            now = time.monotonic()
            if now - self._told < _PAUSE:
                return
            self._told = now
            self._progress(self._done, self.total)

    def finish(self) -> None:
        """All of it is done."""
        self._progress(self.total, self.total)
