"""The data plane: rings, guest memory, the block map and I/O in C. Only this package touches the compiled module.

`Device` and `Volume` carry the functions of dataplane.h, which is the reference for units and errors, as methods; a
negative result becomes OSError with the call and its arguments in words. Nothing here decides anything.
"""

from vstore.dataplane.device import (
    GATE_READ,
    GATE_WRITE,
    Completion,
    Counters,
    Device,
    FastRowLike,
    LunSettings,
    Notice,
    NoticeKind,
)
from vstore.dataplane.volume import Allocation, MapChange, Partial, Volume

__all__ = [
    "GATE_READ",
    "GATE_WRITE",
    "Allocation",
    "Completion",
    "Counters",
    "Device",
    "FastRowLike",
    "LunSettings",
    "MapChange",
    "Notice",
    "NoticeKind",
    "Partial",
    "Volume",
]
