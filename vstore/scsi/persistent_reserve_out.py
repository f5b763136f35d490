"""PERSISTENT RESERVE OUT (SPC-4 6.16): registering, reserving, and taking from others what they have.

    parameter list --> Order: what is asked, by whom; refused here where it could never be right
    Order, state   --> Change: the tables of 5.12.7 to 5.12.11, one function for each service action
    Change         --> made durable (APTPL), then true, then told; PREEMPT AND ABORT ends commands last

A nexus whose reservation key is not the one it registered gets RESERVATION CONFLICT before anything else is looked at.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import NamedTuple

from vstore.scsi.cdb import Cdb
from vstore.scsi.device_server import Handlers
from vstore.scsi.field import EVALUATED, IGNORED, Field, Layout, Position
from vstore.scsi.persistent_reservations import MOST_REGISTRATIONS, Change, PersistentReservations, ReservationType
from vstore.scsi.persistent_reserve import (
    BasicParameters,
    Clear,
    MoveParameters,
    Preempt,
    PreemptAndAbort,
    Register,
    RegisterAndIgnoreExistingKey,
    RegisterAndMove,
    Release,
    ReplaceLostReservation,
    Reserve,
)
from vstore.scsi.persistent_reserve_in import refuse_beside_reserve
from vstore.scsi.reservable import LOST, Reservable
from vstore.scsi.sense import AdditionalSense, CheckCondition, Sense
from vstore.scsi.task import ReservationConflict, Task
from vstore.scsi.transport_id import NexusName, parse_transport_id

_LONGEST_LIST = 64 << 10  # bytes; TransportIDs of all that can be registered take less
_LENGTH_OF_LIST = 4  # TRANSPORTID PARAMETER DATA LENGTH


class Order(NamedTuple):
    """What a command asks. `kept`: APTPL. `to`: the nexus that the reservation moves to; `leaves`: UNREG."""

    cdb: Cdb
    nexus: NexusName
    key: int
    action_key: int
    kept: bool
    ports: tuple[NexusName, ...] = ()  # ALL_TG_PT: the same initiator port on each other target port
    named: tuple[NexusName, ...] = ()  # SPEC_I_PT
    to: NexusName | None = None
    leaves: bool = False

    @property
    def every(self) -> tuple[NexusName, ...]:
        return (self.nexus, *self.ports, *self.named)

    def kind(self) -> ReservationType:
        """TYPE, of the scope LU_SCOPE: there is no other."""
        if getattr(self.cdb, "scope"):  # noqa: B009 - of one of several rows
            raise self.cdb.invalid_field("scope")
        try:
            return ReservationType(getattr(self.cdb, "type"))  # noqa: B009
        except ValueError:
            raise self.cdb.invalid_field("type") from None


def _invalid(field: Field | Position) -> CheckCondition:
    position = field if isinstance(field, Position) else field.position
    return CheckCondition(Sense.invalid_field(position, in_cdb=False))


_LENGTH_ERROR = Sense.illegal(AdditionalSense.PARAMETER_LIST_LENGTH_ERROR)


# ---- parameter lists ------------------------------------------------------------------------------------


def _order(unit: Reservable, cdb: Cdb, task: Task) -> Order:
    """Raises CheckCondition."""
    length: int = getattr(cdb, "parameter_list_length")  # noqa: B009
    if not BasicParameters.length <= length <= _LONGEST_LIST:
        raise CheckCondition(_LENGTH_ERROR)
    data = task.fetch(length)
    return _move_order(unit, cdb, task, data) if isinstance(cdb, RegisterAndMove) else _basic(unit, cdb, task, data)


def _basic(unit: Reservable, cdb: Cdb, task: Task, data: bytes) -> Order:
    parameters = BasicParameters.parse(data)
    _check_reserved(parameters)
    if not parameters.spec_i_pt and len(data) != BasicParameters.length:
        raise CheckCondition(_LENGTH_ERROR)
    registers = isinstance(cdb, Register | RegisterAndIgnoreExistingKey)
    if parameters.spec_i_pt and not isinstance(cdb, Register):
        raise _invalid(BasicParameters.spec_i_pt)
    kept = _kept(unit, parameters.aptpl, BasicParameters.aptpl) if registers else unit.persistent.kept
    own = task.nexus.identity
    ports = unit.ports | {own.port} if registers and parameters.all_tg_pt else {own.port}
    names = _named(data) if parameters.spec_i_pt else []
    return Order(
        cdb,
        own,
        parameters.reservation_key,
        parameters.service_action_reservation_key,
        kept,
        ports=tuple(NexusName(own.initiator, port) for port in sorted(ports - {own.port})),
        named=tuple(NexusName(name, port) for name in names for port in sorted(ports) if name != own.initiator),
    )


def _move_order(unit: Reservable, cdb: Cdb, task: Task, data: bytes) -> Order:
    parameters = MoveParameters.parse(data)
    _check_reserved(parameters)
    if len(data) != MoveParameters.length + parameters.transportid_length:
        raise CheckCondition(_LENGTH_ERROR)
    found = parse_transport_id(data[MoveParameters.length :])
    if found is None or found[1] != parameters.transportid_length:
        raise _invalid(Position(MoveParameters.length, 7))
    own = task.nexus.identity
    to = NexusName(found[0], parameters.relative_target_port_identifier)
    if to.port not in unit.ports | {own.port}:
        raise _invalid(MoveParameters.relative_target_port_identifier)
    if to == own:
        raise _invalid(Position(MoveParameters.length, 7))
    return Order(
        cdb,
        own,
        parameters.reservation_key,
        parameters.service_action_reservation_key,
        _kept(unit, parameters.aptpl, MoveParameters.aptpl),
        to=to,
        leaves=bool(parameters.unreg),
    )


def _check_reserved(parameters: Layout) -> None:
    everything = (1 << type(parameters).length * 8) - 1
    unknown = parameters.value & everything & ~parameters.mask_of(EVALUATED, IGNORED)
    if unknown:
        raise _invalid(parameters.position_of(unknown))


def _kept(unit: Reservable, aptpl: int, field: Field) -> bool:
    if aptpl and unit.record is None:
        raise _invalid(field)
    return bool(aptpl)


def _named(data: bytes) -> Iterator[str]:
    """The initiators of SPEC_I_PT's list, each once."""
    start = BasicParameters.length + _LENGTH_OF_LIST
    if len(data) < start or len(data) != start + int.from_bytes(data[BasicParameters.length : start]):
        raise CheckCondition(_LENGTH_ERROR)
    seen = set()
    while start < len(data):
        found = parse_transport_id(data[start:])
        if found is None:
            raise _invalid(Position(start, 7))
        name, length = found
        if name not in seen:
            seen.add(name)
            yield name
        start += length


# ---- service actions ------------------------------------------------------------------------------------


def _check_key(state: PersistentReservations, order: Order) -> None:
    if state.keys.get(order.nexus) != order.key:
        raise ReservationConflict


def _register(state: PersistentReservations, order: Order) -> Change:
    """5.12.7, REGISTER: a nexus that is not registered has to give the key zero."""
    if any(state.keys.get(nexus, 0) != order.key for nexus in (order.nexus, *order.ports)):
        raise ReservationConflict
    if order.named and (order.nexus in state.keys or any(nexus in state.keys for nexus in order.named)):
        # Others can be registered only together with oneself, and only who is not.
        raise _invalid(BasicParameters.spec_i_pt)
    return _put_keys(state, order)


def _put_keys(state: PersistentReservations, order: Order) -> Change:
    """5.12.7: the key zero unregisters."""
    if order.action_key:
        _check_room(state, order.every)
        return state.registered(order.every, order.action_key, kept=order.kept)
    leaving = [nexus for nexus in (order.nexus, *order.ports) if nexus in state.keys]
    return state.unregistered(leaving, kept=order.kept) if leaving else state.unchanged(kept=order.kept)


def _check_room(state: PersistentReservations, nexuses: tuple[NexusName, ...]) -> None:
    if len({*state.keys, *nexuses}) > MOST_REGISTRATIONS:
        raise CheckCondition(Sense.illegal(AdditionalSense.INSUFFICIENT_REGISTRATION_RESOURCES))


def _reserve(state: PersistentReservations, order: Order) -> Change:
    """5.12.9: again by a holder, of the same type, it is no error."""
    _check_key(state, order)
    kind = order.kind()
    if state.reservation is None:
        return state.reserved(order.nexus, kind)
    if not state.holds(order.nexus) or state.reservation.type is not kind:
        raise ReservationConflict
    return Change(state)


def _release(state: PersistentReservations, order: Order) -> Change:
    """5.12.11: by a registrant that holds nothing it is no error, and does nothing."""
    _check_key(state, order)
    kind = order.kind()
    if state.reservation is None or not state.holds(order.nexus):
        return Change(state)
    if state.reservation.type is not kind:
        raise CheckCondition(Sense.illegal(AdditionalSense.INVALID_RELEASE_OF_PERSISTENT_RESERVATION))
    return state.released(order.nexus)


def _clear(state: PersistentReservations, order: Order) -> Change:
    _check_key(state, order)
    return state.cleared(order.nexus)


def _preempt(state: PersistentReservations, order: Order) -> Change:
    """5.12.11: SCOPE and TYPE matter only where the reservation is taken over."""
    _check_key(state, order)
    if state.preempts_reservation(order.action_key):
        return state.taken_over(order.nexus, order.action_key, order.kind())
    if not order.action_key:
        raise _invalid(BasicParameters.service_action_reservation_key)
    if order.action_key not in state.keys.values():
        raise ReservationConflict
    return state.registrations_removed(order.nexus, order.action_key)


def _move(state: PersistentReservations, order: Order) -> Change:
    """5.12.8: by the one holder; a reservation that all registrants hold cannot be moved."""
    assert order.to is not None
    _check_key(state, order)
    if state.reservation is None:
        # What is wrong is the service action.
        raise CheckCondition(Sense.invalid_field(Position(1, 4), in_cdb=True))
    if state.reservation.type.all_hold or not state.holds(order.nexus):
        raise ReservationConflict
    if not order.action_key:
        raise _invalid(MoveParameters.service_action_reservation_key)
    _check_room(state, (order.to,))
    return state.moved(order.nexus, order.to, order.action_key, leaves=order.leaves, kept=order.kept)


def _replace(state: PersistentReservations, order: Order) -> Change:
    """5.12.11: only where there is something lost."""
    if not state.lost:
        raise CheckCondition(Sense.invalid_field(Position(1, 4), in_cdb=True))
    if order.key:
        raise _invalid(BasicParameters.reservation_key)
    if not order.action_key:
        raise _invalid(BasicParameters.service_action_reservation_key)
    return state.replaced(order.nexus, order.action_key, order.kind())


_ACTIONS: Mapping[type[Cdb], Callable[[PersistentReservations, Order], Change]] = {
    Register: _register,
    Reserve: _reserve,
    Release: _release,
    Clear: _clear,
    Preempt: _preempt,
    PreemptAndAbort: _preempt,
    RegisterAndIgnoreExistingKey: _put_keys,
    RegisterAndMove: _move,
    ReplaceLostReservation: _replace,
}


async def persistent_reserve_out(unit: Reservable, cdb: Cdb, task: Task) -> bytes:
    refuse_beside_reserve(unit)
    order = _order(unit, cdb, task)
    change = await unit.change_reservations(partial(_planned, order=order))
    if isinstance(cdb, PreemptAndAbort):
        await unit.abort(change.removed, but=task)
    return b""


def _planned(state: PersistentReservations, order: Order) -> Change:
    if state.lost and not isinstance(order.cdb, ReplaceLostReservation):
        raise CheckCondition(LOST)
    return _ACTIONS[type(order.cdb)](state, order)


HANDLERS: Handlers = dict.fromkeys(_ACTIONS, persistent_reserve_out)
