"""Unit attention conditions and deferred errors, queued for each I_T nexus (SAM-5 5.14, SPC-4 4.5.7)."""

from collections.abc import Iterable
from weakref import WeakKeyDictionary

from vstore.scsi.sense import AdditionalSense, Sense
from vstore.scsi.task import ITNexus

_RESET_ASC = 0x29
_CLEARED = AdditionalSense.COMMANDS_CLEARED_BY_ANOTHER_INITIATOR


class Attentions:
    """What each nexus must be told before its next command is served. Each condition waits at most once.

    A nexus that nobody else knows any more is forgotten by itself.
    """

    def __init__(self) -> None:
        self._waiting: WeakKeyDictionary[ITNexus, list[Sense]] = WeakKeyDictionary()

    def add(self, nexus: ITNexus) -> bool:
        """To a new nexus the unit has just been powered on. False: it was known, and stays as it is."""
        if nexus in self._waiting:
            return False
        self._waiting[nexus] = [Sense.attention(AdditionalSense.POWER_ON_OCCURRED)]
        return True

    def resume(self, nexus: ITNexus, waiting: Iterable[Sense]) -> None:
        """A nexus that knows the unit from another process, which still had this to tell."""
        self._waiting[nexus] = list(waiting)

    def remove(self, nexus: ITNexus) -> None:
        self._waiting.pop(nexus, None)

    def nexuses(self) -> list[ITNexus]:
        return list(self._waiting)

    def establish(self, code: AdditionalSense, nexuses: Iterable[ITNexus]) -> None:
        """Queues the condition for each of these nexuses that is known."""
        for nexus in nexuses:
            waiting = self._waiting.get(nexus)
            if waiting is not None:
                _enqueue(waiting, Sense.attention(code))

    def defer(self, nexus: ITNexus, sense: Sense) -> None:
        """An error of a command that has already completed with GOOD status; it is told before anything else."""
        waiting = self._waiting.get(nexus)
        if waiting is not None:
            waiting.insert(sum(other.deferred for other in waiting), sense.as_deferred())

    def clear(self, code: AdditionalSense, nexus: ITNexus) -> None:
        waiting = self._waiting.get(nexus)
        if waiting:
            waiting[:] = [sense for sense in waiting if sense.code is not code]

    def none_wait(self, nexus: ITNexus) -> bool:
        """The nexus is known, and there is nothing to tell it."""
        return self._waiting.get(nexus) == []

    def reset_waits(self, nexus: ITNexus) -> bool:
        """It has not yet been told of a power on, of a reset, or of its own loss."""
        waiting = self._waiting.get(nexus)
        return waiting is None or any(sense.code.asc == _RESET_ASC for sense in waiting)

    def waiting(self, nexus: ITNexus) -> list[Sense]:
        """What it is to be told, in order."""
        return list(self._waiting.get(nexus, ()))

    def take(self, nexus: ITNexus) -> Sense | None:
        """What comes first, which is thereby reported and over."""
        waiting = self._waiting.get(nexus)
        return waiting.pop(0) if waiting else None


def _enqueue(waiting: list[Sense], sense: Sense) -> None:
    if sense in waiting:
        return
    if sense.code.asc != _RESET_ASC:
        waiting.append(sense)
        return
    # Of several resets one is told, before anything else that is not a deferred error. A power on, the strongest, is
    # not told as something weaker (SAM-5 5.14.1).
    if any(other.code is AdditionalSense.POWER_ON_OCCURRED for other in waiting):
        return
    # That commands were cleared goes without saying.
    waiting[:] = [other for other in waiting if other.code.asc != _RESET_ASC and other.code is not _CLEARED]
    waiting.insert(sum(other.deferred for other in waiting), sense)
