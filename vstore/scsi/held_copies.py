"""What a unit remembers of the copies that it was told to make: how each ended, until its nexus asks (SPC-4 5.16.4)."""

from dataclasses import dataclass
from weakref import WeakKeyDictionary

from vstore.scsi.sense import Sense
from vstore.scsi.task import ITNexus

MOST_HELD = 16  # of one nexus; then the oldest one is forgotten


@dataclass
class Copy:
    """`failure`: what ended it, unless it was done to its end. `moved`: bytes."""

    running: bool = True
    segments: int = 0
    moved: int = 0
    failure: Sense | None = None


class HeldCopies:
    """By nexus and list identifier; a nexus that nobody else knows any more is forgotten by itself."""

    def __init__(self) -> None:
        self._copies: WeakKeyDictionary[ITNexus, dict[int, Copy]] = WeakKeyDictionary()

    def find(self, nexus: ITNexus, identifier: int) -> Copy | None:
        return self._copies.get(nexus, {}).get(identifier)

    def begin(self, nexus: ITNexus, identifier: int) -> Copy:
        """What was held under that identifier is discarded."""
        held = self._copies.setdefault(nexus, {})
        held.pop(identifier, None)
        copy = held[identifier] = Copy()
        if len(held) > MOST_HELD:
            del held[next(iter(held))]
        return copy

    def discard(self, nexus: ITNexus, identifier: int) -> None:
        self._copies.get(nexus, {}).pop(identifier, None)

    def forget(self, nexus: ITNexus | None) -> None:
        """All of a nexus that was lost, or of every nexus after a reset (SPC-4 5.16.4)."""
        if nexus is None:
            self._copies.clear()
        else:
            self._copies.pop(nexus, None)
