"""Locks by name: verbs on different objects run side by side, verbs on the same object one after the other.

A verb takes all the names it needs at once, so two verbs can never wait for each other.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition


class NamedLocks:
    def __init__(self) -> None:
        self._freed = Condition()
        self._held: set[str] = set()

    @contextmanager
    def hold(self, *names: str) -> Iterator[None]:
        """Waits until nobody holds any of `names`, then holds all of them. Not re-entrant."""
        wanted = set(names)
        with self._freed:
            self._freed.wait_for(lambda: not wanted & self._held)
            self._held |= wanted
        try:
            yield
        finally:
            with self._freed:
                self._held -= wanted
                self._freed.notify_all()
