"""The clock of a logical unit, in milliseconds since 1970: the host's, until it is set (SPC-4 5.2)."""

import time

_SET_BY_SET_TIMESTAMP, _SET_BY_OTHER_METHODS = 0b010, 0b011  # TIMESTAMP ORIGIN


class Clock:
    def __init__(self) -> None:
        self._ahead: int | None = None  # milliseconds, of the host's monotonic clock

    @property
    def origin(self) -> int:
        return _SET_BY_OTHER_METHODS if self._ahead is None else _SET_BY_SET_TIMESTAMP

    def now(self) -> int:
        if self._ahead is None:
            return time.time_ns() // 1_000_000
        return time.monotonic_ns() // 1_000_000 + self._ahead

    def set(self, timestamp: int) -> None:
        self._ahead = timestamp - time.monotonic_ns() // 1_000_000

    def power_on(self) -> None:
        self._ahead = None
