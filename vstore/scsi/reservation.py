"""RESERVE and RELEASE (SPC-2 5.5, 7.21 to 7.24): one I_T nexus has the whole unit to itself, until it gives it up, is
lost, or the unit is reset. ESXi still locks its disks so.
"""

from weakref import ref

from vstore.scsi.task import ITNexus


class Reservation:
    """Whose the unit is; a nexus that nobody else knows any more holds nothing."""

    def __init__(self) -> None:
        self._holder: ref[ITNexus] | None = None

    @property
    def holder(self) -> ITNexus | None:
        return self._holder() if self._holder else None

    def excludes(self, nexus: ITNexus) -> bool:
        """Whether it is another's."""
        return self.holder not in (None, nexus)

    def take(self, nexus: ITNexus) -> None:
        assert not self.excludes(nexus)
        self._holder = ref(nexus)

    def release(self, nexus: ITNexus | None) -> None:
        """Without effect by anyone but the holder."""
        if nexus is not None and self.holder is nexus:
            self._holder = None

    def clear(self) -> None:
        self._holder = None
