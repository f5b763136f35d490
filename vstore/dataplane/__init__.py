"""The data plane: rings, guest memory, the block map and I/O in C. Only this package touches the compiled module.

`Device` and `Volume` carry the functions of dataplane.h, which is the reference for units and errors, as methods, and
`mover.Mover` those of mover.h; a negative result becomes OSError with the call and its arguments in words. Nothing here
decides anything. Modules are loaded when they are first wanted, because a command that only copies is to start quickly.
"""

import importlib
from typing import TYPE_CHECKING

__all__ = [
    "GATE_FLUSH",
    "GATE_READ",
    "GATE_WRITE",
    "Allocation",
    "Completion",
    "Counters",
    "Device",
    "FastRowLike",
    "LunCounters",
    "LunSettings",
    "MapChange",
    "Notice",
    "NoticeKind",
    "Partial",
    "Volume",
    "inflight_size",
]

if TYPE_CHECKING:
    from vstore.dataplane.device import (
        GATE_FLUSH,
        GATE_READ,
        GATE_WRITE,
        Completion,
        Counters,
        Device,
        FastRowLike,
        LunCounters,
        LunSettings,
        Notice,
        NoticeKind,
        inflight_size,
    )
    from vstore.dataplane.volume import Allocation, MapChange, Partial, Volume
else:

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module = "volume" if name in ("Allocation", "MapChange", "Partial", "Volume") else "device"
        globals()[name] = found = getattr(importlib.import_module(f"{__name__}.{module}"), name)
        return found
