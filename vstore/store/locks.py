"""Locks by name: verbs on different objects run side by side, verbs on the same object one after the other.

A verb takes all the names it needs at once, so two verbs can never wait for each other. Each that waits holds a thread,
so a caller may say how many are enough: behind a target process that hangs, the rest is refused and the daemon answers.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition

from vstore.store.errors import Busy


class NamedLocks:
    def __init__(self) -> None:
        self._freed = Condition()
        self._held: set[str] = set()
        self._waiting: Counter[str] = Counter()

    @contextmanager
    def hold(self, *names: str, most_waiting: int | None = None) -> Iterator[None]:
        """Waits until nobody holds any of `names`, then holds all of them. Not re-entrant.

        Raises Busy when `most_waiting` others wait for one of them already.
        """
        wanted = set(names)
        with self._freed:
            self._check_queues(wanted, most_waiting)
            self._waiting.update(wanted)
            self._freed.wait_for(lambda: not wanted & self._held)
            self._waiting -= Counter(wanted)
            self._held |= wanted
        try:
            yield
        finally:
            with self._freed:
                self._held -= wanted
                self._freed.notify_all()

    def _check_queues(self, wanted: set[str], most_waiting: int | None) -> None:
        for name in sorted(wanted):
            if most_waiting is not None and self._waiting[name] >= most_waiting:
                raise Busy(
                    f"{most_waiting} requests wait for {name.replace(':', ' ')} already; try again when it answers"
                )
