"""Persistent reservations as a value (SPC-4 5.12): who is registered with which key, who holds what, and what becomes
of that. Nothing here knows of CDBs, of parameter lists, or of nexuses that are connected.

    keys         nexus A: key 1     nexus B: key 2     nexus C: key 2          registrations, in the order they came
                     ^
    reservation  type, holder  ---- or all of them: a type "all registrants" has no single holder

Each change is a method that returns a `Change`: the state afterwards, what to tell to whom, and whose commands have to
end. The state itself never alters, so a change can be made durable first and come true then; one that cannot be made
durable has never been. A nexus is a NexusName here: registrations outlive connections, with APTPL the process too.
"""

from collections.abc import Iterable, Mapping
from enum import IntEnum
from types import MappingProxyType
from typing import NamedTuple

from vstore.scsi.cdb import Beside
from vstore.scsi.sense import AdditionalSense
from vstore.scsi.transport_id import NexusName

MOST_REGISTRATIONS = 128


class ReservationType(IntEnum):
    """SPC-4 table 176."""

    WRITE_EXCLUSIVE = 0x1
    EXCLUSIVE_ACCESS = 0x3
    WRITE_EXCLUSIVE_REGISTRANTS_ONLY = 0x5
    EXCLUSIVE_ACCESS_REGISTRANTS_ONLY = 0x6
    WRITE_EXCLUSIVE_ALL_REGISTRANTS = 0x7
    EXCLUSIVE_ACCESS_ALL_REGISTRANTS = 0x8

    @property
    def excludes_reads(self) -> bool:
        return self.name.startswith("EXCLUSIVE_ACCESS")

    @property
    def serves_registrants(self) -> bool:
        """Registrants only or all registrants."""
        return self.name.endswith("REGISTRANTS_ONLY") or self.all_hold

    @property
    def all_hold(self) -> bool:
        """All registrants."""
        return self.name.endswith("ALL_REGISTRANTS")


class Reservation(NamedTuple):
    """`holder` is None where all registrants are."""

    type: ReservationType
    holder: NexusName | None


class Change(NamedTuple):
    """`told`: the unit attention of each nexus; `removed`: those that lost a registration to another's PREEMPT."""

    state: "PersistentReservations"
    told: tuple[tuple[NexusName, AdditionalSense], ...] = ()
    removed: tuple[NexusName, ...] = ()


class PersistentReservations(NamedTuple):
    """`generation`: PRGENERATION. `kept`: APTPL was asked for last. `lost`: what was kept cannot be read any more."""

    keys: Mapping[NexusName, int] = MappingProxyType({})
    reservation: Reservation | None = None
    generation: int = 0
    kept: bool = False
    lost: bool = False

    # ---- questions --------------------------------------------------------------------------------------

    def holds(self, nexus: NexusName) -> bool:
        """Whether it is a persistent reservation holder."""
        if self.reservation is None:
            return False
        return nexus in self.keys if self.reservation.type.all_hold else self.reservation.holder == nexus

    def favours(self, nexus: NexusName) -> bool:
        """Whether nothing is shut to it: it holds the reservation, or is registered where that is enough."""
        if self.reservation is None:
            return False
        return self.holds(nexus) or (self.reservation.type.serves_registrants and nexus in self.keys)

    def conflicts(self, nexus: NexusName, beside: Beside) -> bool:
        """Whether such a command of this nexus ends with RESERVATION CONFLICT."""
        if self.reservation is None or beside is Beside.SERVED or self.favours(nexus):
            return False
        return beside is Beside.CONFLICT or self.reservation.type.excludes_reads

    def withholds(self, beside: Beside) -> bool:
        """Whether it must not be served while what is reserved is lost: it might be any nexus's exclusive access."""
        return self.lost and beside is not Beside.SERVED

    # ---- changes ----------------------------------------------------------------------------------------

    def registered(self, nexuses: Iterable[NexusName], key: int, *, kept: bool) -> Change:
        """The nexuses have this key now, whether they had one before or not."""
        return Change(self._next(keys={**self.keys, **dict.fromkeys(nexuses, key)}, kept=kept))

    def unregistered(self, nexuses: Iterable[NexusName], *, kept: bool) -> Change:
        """Unregistering (5.12.11): the reservation goes with its holder, or with the last of those who all hold it."""
        leaving = set(nexuses)
        keys = {nexus: key for nexus, key in self.keys.items() if nexus not in leaving}
        reservation = self._without(keys)
        told: tuple[tuple[NexusName, AdditionalSense], ...] = ()
        if self.reservation and not reservation and self.reservation.type.serves_registrants:
            told = _tell(keys, AdditionalSense.RESERVATIONS_RELEASED)
        return Change(self._next(keys=keys, reservation=reservation, kept=kept), told)

    def unchanged(self, *, kept: bool) -> Change:
        """What REGISTER of no key does for a nexus that is not registered."""
        return Change(self._next(kept=kept))

    def reserved(self, nexus: NexusName, kind: ReservationType) -> Change:
        return Change(self._replace(reservation=_reservation(nexus, kind)))

    def released(self, nexus: NexusName) -> Change:
        """Releasing (5.12.11): the other registrants are told where they had a part in it."""
        assert self.reservation
        told: tuple[tuple[NexusName, AdditionalSense], ...] = ()
        if self.reservation.type.serves_registrants:
            told = _tell(self.keys, AdditionalSense.RESERVATIONS_RELEASED, but=nexus)
        return Change(self._replace(reservation=None), told)

    def cleared(self, nexus: NexusName) -> Change:
        """Clearing (5.12.11)."""
        told = _tell(self.keys, AdditionalSense.RESERVATIONS_PREEMPTED, but=nexus)
        return Change(self._next(keys={}, reservation=None), told)

    def preempts_reservation(self, key: int) -> bool:
        """Whether PREEMPT of this key takes the reservation over; else it only removes registrations."""
        if self.reservation is None:
            return False
        if self.reservation.type.all_hold:
            return key == 0
        holder = self.reservation.holder
        return holder is not None and self.keys[holder] == key

    def taken_over(self, nexus: NexusName, key: int, kind: ReservationType) -> Change:
        """PREEMPT of a reservation (5.12.11); of all registrants, with the key zero, each other one goes."""
        assert self.reservation
        everyone = self.reservation.type.all_hold
        gone = [each for each, theirs in self.keys.items() if each != nexus and (everyone or theirs == key)]
        keys = {each: theirs for each, theirs in self.keys.items() if each not in gone}
        told = _tell(gone, AdditionalSense.REGISTRATIONS_PREEMPTED)
        if kind is not self.reservation.type:
            told += _tell(keys, AdditionalSense.RESERVATIONS_RELEASED, but=nexus)
        return Change(self._next(keys=keys, reservation=_reservation(nexus, kind)), told, tuple(gone))

    def registrations_removed(self, nexus: NexusName, key: int) -> Change:
        """PREEMPT where the key is not a holder's (5.12.11); it may be the preempting nexus's own."""
        gone = [each for each, theirs in self.keys.items() if theirs == key]
        keys = {each: theirs for each, theirs in self.keys.items() if theirs != key}
        told = _tell(gone, AdditionalSense.REGISTRATIONS_PREEMPTED, but=nexus)
        return Change(self._next(keys=keys, reservation=self._without(keys)), told, tuple(gone))

    def moved(self, nexus: NexusName, to: NexusName, key: int, *, leaves: bool, kept: bool) -> Change:
        """Registering and moving (5.12.8): the reservation is another nexus's, which is registered with the key."""
        assert self.reservation
        keys = {each: theirs for each, theirs in self.keys.items() if each != nexus or not leaves}
        keys[to] = key
        return Change(self._next(keys=keys, reservation=self.reservation._replace(holder=to), kept=kept))

    def replaced(self, nexus: NexusName, key: int, kind: ReservationType) -> Change:
        """REPLACE LOST RESERVATION (5.12.11): whoever else was registered has to begin anew."""
        state = PersistentReservations({nexus: key}, _reservation(nexus, kind), self.generation, kept=self.kept)
        return Change(state._next())

    def power_on(self) -> "PersistentReservations":
        """What is left after a loss of power."""
        if self.kept or self.lost:
            return self._replace(generation=0)
        return PersistentReservations()

    def _next(self, **changes: object) -> "PersistentReservations":
        return self._replace(generation=(self.generation + 1) & 0xFFFF_FFFF, **changes)  # type: ignore[arg-type]

    def _without(self, keys: Mapping[NexusName, int]) -> Reservation | None:
        """The reservation once only these are registered."""
        if self.reservation is None:
            return None
        stays = bool(keys) if self.reservation.type.all_hold else self.reservation.holder in keys
        return self.reservation if stays else None


def _reservation(nexus: NexusName, kind: ReservationType) -> Reservation:
    return Reservation(kind, None if kind.all_hold else nexus)


def _tell(
    nexuses: Iterable[NexusName], code: AdditionalSense, but: NexusName | None = None
) -> tuple[tuple[NexusName, AdditionalSense], ...]:
    return tuple((nexus, code) for nexus in nexuses if nexus != but)
