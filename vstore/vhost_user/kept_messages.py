"""Which messages of a front-end are kept for a process that goes on with its connection, and in which order they are
obeyed there: first what bytes mean, then memory, then rings, which run when all of them are set up.
"""

from vstore.vhost_user.channel import Message
from vstore.vhost_user.keeping import BEGUN, UNIT, Keeping, Kept, KeptMessage
from vstore.vhost_user.messages import (
    MESSAGES,
    VRING_INDEX,
    Feature,
    Integer,
    Payload,
    Row,
    SingleMemoryRegion,
    VringAddress,
    VringState,
)

_ONE_OF_A_KIND = ("SET_FEATURES", "SET_PROTOCOL_FEATURES", "SET_LOG_BASE", "SET_INFLIGHT_FD")
_OF_A_RING = ("SET_VRING_NUM", "SET_VRING_BASE", "SET_VRING_ADDR", "SET_VRING_CALL", "SET_VRING_ERR", "SET_VRING_KICK")
_ORDER = (
    "SET_PROTOCOL_FEATURES",
    "SET_MEM_TABLE",
    "ADD_MEM_REG",
    "SET_LOG_BASE",
    "SET_INFLIGHT_FD",
    "SET_FEATURES",
    *_OF_A_RING,
    "SET_VRING_ENABLE",
)
_KEPT_BY_RESET = ("SET_VRING_CALL", "SET_VRING_ERR")


def note(keeping: Keeping, row: Row, payload: Payload, message: Message) -> None:
    """After a message was obeyed: what it leaves behind."""
    if row.name == "SET_MEM_TABLE":
        keeping.drop("memory")
    if row.name == "SET_FEATURES" and isinstance(payload, Integer) and not payload.value & Feature.LOG_ALL:
        keeping.drop("SET_LOG_BASE")
    if row.name == "GET_VRING_BASE":
        _drop_when_answered(keeping, f"{_ring(payload)}/SET_VRING_KICK")
    elif row.name == "RESET_DEVICE":
        for ring, _ in keeping.beneath("vring"):
            if not ring.endswith(_KEPT_BY_RESET):
                keeping.drop(ring)
    elif row.name == "REM_MEM_REG":
        _drop_when_answered(keeping, _memory(payload))
    elif name := _name(row, payload):
        keeping.put(name, message.payload, request=row.id, descriptors=message.descriptors)


def forget_connection(keeping: Keeping) -> None:
    """It has ended; what units know outlives it."""
    for name in keeping.names():
        if not name.startswith(f"{UNIT}/"):
            keeping.drop(name)


def in_order(kept: Kept) -> list[tuple[Row, KeptMessage]]:
    """What sets the connection up again, but for what was being obeyed: that follows, and is answered."""
    begun = (kept[BEGUN].request, kept[BEGUN].payload) if BEGUN in kept else None
    others = [each for _, each in kept.items() if (each.request, each.payload) != begun]
    found = [(MESSAGES[message.request], message) for message in others if message.request in MESSAGES]
    return sorted((each for each in found if each[0].name in _ORDER), key=lambda each: _ORDER.index(each[0].name))


def _drop_when_answered(keeping: Keeping, name: str) -> None:
    """Until then, whoever follows has to have it, so that the message which takes it away can be obeyed once more."""
    for each, message in keeping.beneath(name):
        descriptors = message.descriptors
        keeping.put(f"{BEGUN}/{each}", message.payload, request=message.request, descriptors=descriptors)
    keeping.drop(name)


def _name(row: Row, payload: Payload) -> str | None:
    if row.name in _ONE_OF_A_KIND:
        return row.name
    if row.name in _OF_A_RING or row.name == "SET_VRING_ENABLE":
        return f"{_ring(payload)}/{row.name}"
    return _memory(payload) if row.name in ("SET_MEM_TABLE", "ADD_MEM_REG") else None


def _ring(payload: Payload) -> str:
    if isinstance(payload, Integer):
        return f"vring/{payload.value & VRING_INDEX}"
    assert isinstance(payload, VringState | VringAddress)
    return f"vring/{payload.index}"


def _memory(payload: Payload) -> str:
    if isinstance(payload, SingleMemoryRegion):
        return f"memory/{payload.guest_address:x}-{payload.user_address:x}"
    return "memory/table"
