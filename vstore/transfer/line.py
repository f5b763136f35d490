"""A line of threads: each takes the next piece of work, and what has to happen in order happens when its turn comes.

    items     1   2   3   4   5   6 ...           taken one by one, under a lock
    thread a  [read 1 ][turn 1][write 1][read 4 ....
    thread b  [read 2     ]....[turn 2][write 2]           turns come in the order of the items: so the target's
    thread c  [read 3 ]................[turn 3][write 3]   layout, and the first error, do not depend on chance

Reading, compressing and writing release the GIL, so they overlap; the turns are short. Where order does not matter
there are no turns, and nobody waits.
"""

import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Generic, Protocol, TypeVar

T = TypeVar("T")


class _Stopped(Exception):  # noqa: N818
    """Another thread has failed."""


class Turn(Protocol):
    """`with turn:` waits until all items before have had theirs."""

    def __enter__(self) -> None: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None: ...


class _Apart:
    """Every turn at once."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        pass


class _Turn:
    def __init__(self, line: "_Line[T]", number: int) -> None:
        self._line, self._number = line, number
        self._had = False

    def __enter__(self) -> None:
        self._line.await_turn(self._number)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._had = True
        if error is None:
            self._line.end_turn()

    def pass_on(self) -> None:
        """For an item that did not want it."""
        if not self._had:
            with self:
                pass


_APART = _Apart()


class _Line(Generic[T]):
    def __init__(self, items: Iterator[T], work: Callable[[T, Turn], None], *, ordered: bool) -> None:
        self._items, self._work, self._ordered = items, work, ordered
        self._taking = threading.Lock()
        self._taken = 0
        self._turn = 0
        self._changed = threading.Condition()
        self._stopped = False
        self.error: tuple[int, BaseException] | None = None

    def serve(self) -> None:
        """What each thread does."""
        number = -1
        try:
            while (taken := self._take()) is not None:
                number, item = taken
                if self._ordered:
                    turn = _Turn(self, number)
                    self._work(item, turn)
                    turn.pass_on()
                else:
                    self._work(item, _APART)
        except _Stopped:
            pass
        except BaseException as error:
            self.stop((number, error))

    def _take(self) -> tuple[int, T] | None:
        with self._taking:
            if self._stopped:
                return None
            for item in self._items:
                number, self._taken = self._taken, self._taken + 1
                return number, item
            return None

    def await_turn(self, number: int) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._turn == number or self._stopped)
            if self._stopped:
                raise _Stopped

    def end_turn(self) -> None:
        with self._changed:
            self._turn += 1
            self._changed.notify_all()

    def stop(self, reason: tuple[int, BaseException] | None = None) -> None:
        """Nobody takes or waits any more. Of several errors, that of the earliest item is kept."""
        with self._changed:
            self._stopped = True
            if reason is not None and (self.error is None or reason[0] < self.error[0]):
                self.error = reason
            self._changed.notify_all()


def work_in_line(items: Iterator[T], work: Callable[[T, Turn], None], threads: int, *, ordered: bool = True) -> None:
    """Does `work(item, turn)` for all items in that many threads; raises what the first item to fail raised. When this
    returns, whichever way, no thread of it runs any more. Without `ordered`, turns come at any time."""
    line = _Line(items, work, ordered=ordered)
    crew = [threading.Thread(target=line.serve, name=f"transfer-{n}", daemon=True) for n in range(threads)]
    started: list[threading.Thread] = []
    try:
        for thread in crew:
            thread.start()
            started.append(thread)
        for thread in started:
            thread.join()
    finally:
        line.stop()
        for thread in started:
            thread.join()
    if line.error is not None:
        raise line.error[1]
