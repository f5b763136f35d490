"""Pauses around the calls into C and before barriers, so that threads meet in the middle of what the others do.

    flush:  pending -- pause -- commit_begin -- pause -- image.commit ...
    others:            write, zero, write ...     come between, as they do once in a thousand runs without the pause

A pause lasts until the others have done so much, so it is long enough on a busy machine and short on an idle one. Each
seed draws which calls are slow, on which side and how often; what the other threads do meanwhile is theirs.
"""

import random
import threading
import time
from typing import Any

from formats.host_file import HostFile
from vstore.dataplane import volume
from vstore.dataplane.native import lib

CHANCES = (0.0, 0.3, 0.7)  # of a pause; one is drawn for each side of each slow call
MEANWHILE = (1, 3, 8)  # changes by others that one waits for
LONGEST = 0.01  # seconds of a pause, because the others may wait for who pauses
IN_ALL = 1.5  # seconds of all pauses of a trial, all threads together

CHANGES = ("write", "zero")
COMMIT = ("commit_begin", "commit_end", "pending", "drain", "trim")
ROOM = ("window", "give", "take_back")  # whose pauses hold up who needs some
MAP = ("set_entries", "set_partials", "replace", "copy_up", "quiesce", "forget", "resume")
SLOW = ((), COMMIT, COMMIT, COMMIT + MAP, CHANGES + COMMIT + ROOM)  # of which one is drawn


class Delays:
    """Those of one seed."""

    def __init__(self, seed: str) -> None:
        self._draw = random.Random(f"delays:{seed}")
        self.slow = self._draw.choice(SLOW)
        self._left = IN_ALL
        self._changes, self._changed = 0, threading.Condition()

    def around(self, call: Any) -> Any:
        """The same call, with a pause before it, behind it, both or none."""
        before, behind = self._draw.choice(CHANCES), self._draw.choice(CHANCES)

        def delayed(*arguments: Any) -> Any:
            self._pause(before)
            result = call(*arguments)
            self._pause(behind)
            return result

        return delayed

    def counted(self, call: Any) -> Any:
        """The same call, which others may wait for."""

        def noted(*arguments: Any) -> Any:
            result = call(*arguments)
            with self._changed:
                self._changes += 1
                self._changed.notify_all()
            return result

        return noted

    def _pause(self, chance: float) -> None:
        if self._left <= 0 or self._draw.random() >= chance:
            return
        began = time.monotonic()
        with self._changed:
            enough = self._changes + self._draw.choice(MEANWHILE)
            self._changed.wait_for(lambda: self._changes >= enough, LONGEST)
        self._left -= time.monotonic() - began


class _Delayed:
    """The compiled module, with these calls in place of its own."""

    def __init__(self, delays: Delays) -> None:
        for name in sorted({*CHANGES, *delays.slow}):
            call = getattr(lib, f"vs_volume_{name}")
            call = delays.counted(call) if name in CHANGES else call
            setattr(self, f"vs_volume_{name}", delays.around(call) if name in delays.slow else call)

    def __getattr__(self, name: str) -> Any:
        return getattr(lib, name)


def apply(seed: str) -> None:
    """To the process under test."""
    delays = Delays(seed)
    if delays.slow:
        vars(volume)["lib"] = _Delayed(delays)
        HostFile.fdatasync = delays.around(HostFile.fdatasync)  # type: ignore[method-assign]
