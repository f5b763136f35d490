"""What outlives a loss of power (APTPL, SPC-4 5.12.5): persistent reservations as bytes, a section of a unit's state.

The record is JSON, for it is small and people may have to read it. It holds nothing where APTPL was not asked for last,
and never PRGENERATION, which begins anew at every power on.
"""

import json
from typing import Any

from vstore.scsi.kept_state import Section, StateLost
from vstore.scsi.persistent_reservations import PersistentReservations, Reservation, ReservationType
from vstore.scsi.transport_id import NexusName


def encoded(state: PersistentReservations) -> bytes:
    rows = [_row(nexus, key) for nexus, key in state.keys.items()] if state.kept else []
    held = None
    if state.kept and state.reservation:
        holder = state.reservation.holder
        held = {"type": int(state.reservation.type), "holder": None if holder is None else list(holder)}
    return json.dumps({"aptpl": state.kept, "registrations": rows, "reservation": held}).encode()


def restored(record: Section | None) -> PersistentReservations:
    """The state after power on."""
    try:
        data = record.load() if record else None
        return PersistentReservations() if data is None else decoded(json.loads(data))
    except (StateLost, OSError, ValueError, KeyError, TypeError):
        return PersistentReservations(kept=True, lost=True)


def _row(nexus: NexusName, key: int) -> dict[str, Any]:
    return {"initiator": nexus.initiator, "port": nexus.port, "key": f"{key:016x}"}


def decoded(told: dict[str, Any]) -> PersistentReservations:
    keys = {NexusName(row["initiator"], row["port"]): int(row["key"], 16) for row in told["registrations"]}
    held, reservation = told["reservation"], None
    if held:
        holder = None if held["holder"] is None else NexusName(*held["holder"])
        reservation = Reservation(ReservationType(held["type"]), holder)
        if (holder is None) is not reservation.type.all_hold or (holder is not None and holder not in keys):
            raise ValueError("nobody holds the reservation")
    return PersistentReservations(keys, reservation, kept=told["aptpl"])
