"""PERSISTENT RESERVE IN (SPC-4 6.15): what is registered and reserved, and what the unit can do of it."""

from vstore.scsi.device_server import Handlers
from vstore.scsi.persistent_reservations import PersistentReservations
from vstore.scsi.persistent_reserve import (
    Capabilities,
    FullStatusDescriptor,
    KeysHeader,
    ReadFullStatus,
    ReadKeys,
    ReadReservation,
    ReportCapabilities,
    ReservationDescriptor,
)
from vstore.scsi.reservable import Reservable
from vstore.scsi.task import ReservationConflict, Task
from vstore.scsi.transport_id import NexusName, encode_transport_id

# TEST UNIT READY passes every persistent reservation, MODE SENSE and its like those of write exclusive type.
_ALLOW_COMMANDS = 0b011


def known_state(unit: Reservable) -> PersistentReservations:
    refuse_beside_reserve(unit)
    return unit.known_persistent()


def refuse_beside_reserve(unit: Reservable) -> None:
    """Raises ReservationConflict while any nexus holds the unit by RESERVE (SPC-2 5.5.1)."""
    if unit.reservation.holder is not None:
        raise ReservationConflict


def _with_header(state: PersistentReservations, body: bytes) -> bytes:
    return KeysHeader.of(prgeneration=state.generation, additional_length=len(body)).encode() + body


async def read_keys(unit: Reservable, _: ReadKeys, __: Task) -> bytes:
    """One key for each registered nexus, the same key as often as it is registered."""
    state = known_state(unit)
    return _with_header(state, b"".join(key.to_bytes(8) for key in state.keys.values()))


async def read_reservation(unit: Reservable, _: ReadReservation, __: Task) -> bytes:
    """Of a reservation that all registrants hold the key is zero."""
    state = known_state(unit)
    held = state.reservation
    if held is None:
        return _with_header(state, b"")
    key = 0 if held.holder is None else state.keys[held.holder]
    return _with_header(state, ReservationDescriptor.of(reservation_key=key, type=held.type).encode())


async def report_capabilities(unit: Reservable, _: ReportCapabilities, __: Task) -> bytes:
    refuse_beside_reserve(unit)
    keeps = int(unit.record is not None)
    return Capabilities.of(
        report_length=Capabilities.length,
        rlr_c=keeps,  # what is not kept is not lost
        crh=1,
        sip_c=1,
        atp_c=1,
        ptpl_c=keeps,
        tmv=1,
        allow_commands=_ALLOW_COMMANDS,
        ptpl_a=int(unit.persistent.kept),
        wr_ex_ar=1,
        ex_ac_ro=1,
        wr_ex_ro=1,
        ex_ac=1,
        wr_ex=1,
        ex_ac_ar=1,
    ).encode()


async def read_full_status(unit: Reservable, _: ReadFullStatus, __: Task) -> bytes:
    """A descriptor for each nexus, also where one was registered on all target ports."""
    state = known_state(unit)
    return _with_header(state, b"".join(_full_status(state, nexus) for nexus in state.keys))


def _full_status(state: PersistentReservations, nexus: NexusName) -> bytes:
    transport_id = encode_transport_id(nexus.initiator)
    holds = state.holds(nexus)
    header = FullStatusDescriptor.of(
        reservation_key=state.keys[nexus],
        r_holder=int(holds),
        type=state.reservation.type if state.reservation and holds else 0,
        relative_target_port_identifier=nexus.port,
        additional_descriptor_length=len(transport_id),
    )
    return header.encode() + transport_id


HANDLERS: Handlers = {
    ReadKeys: read_keys,
    ReadReservation: read_reservation,
    ReportCapabilities: report_capabilities,
    ReadFullStatus: read_full_status,
}
