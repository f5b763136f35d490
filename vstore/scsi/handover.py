"""What a logical unit knows beside its disk, as text for the process that serves it next: the nexus notices nothing.

Mode parameters, reservations and registrations, and what waits to be told to each nexus. A unit that was powered on
anew would have lost all this, and would have to say so (29h/01h); one that was handed over has not.
"""

import json
from typing import Any

from vstore.scsi.direct_access import DirectAccessDevice
from vstore.scsi.mode_parameters import PageAddress
from vstore.scsi.reservation_record import decoded, encoded
from vstore.scsi.sense import AdditionalSense, Sense, SenseKey
from vstore.scsi.task import ITNexus


def handed_over(unit: DirectAccessDevice) -> bytes:
    """`sequence` grows with each change, for a unit whose state is told by several ports."""
    waiting = {_name(nexus): [_row(sense) for sense in unit.attentions.waiting(nexus)] for nexus in _known(unit)}
    holder = unit.reservation.holder
    state = unit.persistent
    return json.dumps(
        {
            "sequence": unit.changes,
            "waiting": waiting,
            "modes": {f"{address.page}/{address.subpage}": page.encode().hex() for address, page in _modes(unit)},
            "stopped": unit.stopped,
            "holder": None if holder is None else _name(holder),
            "persistent": encoded(state._replace(kept=True)).decode(),
            "generation": state.generation,
            "kept": state.kept,
            "lost": state.lost,
        }
    ).encode()


def take_over(unit: DirectAccessDevice, told: bytes, nexus: ITNexus | None) -> None:
    """`nexus`: who has gone over to this process. Raises ValueError, KeyError, TypeError for what is no such text."""
    state: dict[str, Any] = json.loads(told)
    if nexus is not None:
        unit.attentions.resume(nexus, [_sense(row) for row in state["waiting"].get(_name(nexus), [])])
        if state["holder"] == _name(nexus):
            unit.reservation.take(nexus)
    if state["sequence"] >= unit.changes:
        for name, text in state["modes"].items():
            page, subpage = map(int, name.split("/"))
            address = PageAddress(page, subpage)
            if address in unit.modes.current:
                unit.modes.current[address] = unit.modes.current[address].parse(bytes.fromhex(text))
        persistent = decoded(json.loads(state["persistent"]))
        unit.persistent = persistent._replace(generation=state["generation"], kept=state["kept"], lost=state["lost"])
        unit.stopped = state["stopped"]
        unit.changes = state["sequence"]
    unit.changed()


def _known(unit: DirectAccessDevice) -> list[ITNexus]:
    return unit.attentions.nexuses()


def _modes(unit: DirectAccessDevice) -> list[tuple[PageAddress, Any]]:
    return list(unit.modes.current.items())


def _name(nexus: ITNexus) -> str:
    return f"{nexus.identity.initiator} {nexus.identity.port}"


def _row(sense: Sense) -> list[Any]:
    return [sense.key.value, sense.code.value, sense.deferred, sense.information]


def _sense(row: list[Any]) -> Sense:
    key, code, deferred, information = row
    return Sense(SenseKey(key), AdditionalSense(code), information=information, deferred=deferred)
