"""What a logical unit counts: commands, bytes and errors, for the log pages.

    fast path (C), a LUN of each target --+
                                          +--> Statistics --> log pages
    slow path (Python), here -------------+

The data plane counts what it answers by itself; the unit adds what came to Python. A command that the data plane gave
up, for an I/O error say, is Python's from its beginning, so nothing is counted twice.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from vstore.scsi.cdb import Cdb, Fast
from vstore.scsi.commands import (
    COMMANDS,
    Verify10,
    Verify12,
    Verify16,
    WriteAndVerify10,
    WriteAndVerify12,
    WriteAndVerify16,
    WriteAtomic16,
)
from vstore.scsi.sense import AdditionalSense, Sense, SenseKey


class FastCounts(Protocol):
    """What the data plane has answered by itself, since it knows the unit."""

    @property
    def reads(self) -> int: ...
    @property
    def writes(self) -> int: ...
    @property
    def bytes_read(self) -> int: ...
    @property
    def bytes_written(self) -> int: ...


class Work(Enum):
    """What a command that is counted does."""

    READ = "read"
    WRITE = "write"
    VERIFY = "verify"
    WRITE_AND_VERIFY = "write and verify"


_VERIFIES: Mapping[type[Cdb], Work] = {
    **dict.fromkeys((Verify10, Verify12, Verify16), Work.VERIFY),
    **dict.fromkeys((WriteAndVerify10, WriteAndVerify12, WriteAndVerify16), Work.WRITE_AND_VERIFY),
}
_SLOW = {**_VERIFIES, WriteAtomic16: Work.WRITE}
_FAST = {Fast.READ: Work.READ, Fast.WRITE: Work.WRITE}

COUNTED: Mapping[type[Cdb], Work] = {row: _FAST[row.fast] for row in COMMANDS if row.fast in _FAST} | _SLOW
_VERIFY_OPCODES = frozenset(row.opcode for row in _VERIFIES)


@dataclass(slots=True)
class Counts:
    """Of commands that ended with GOOD, and of those that met an error."""

    reads: int = 0
    writes: int = 0
    bytes_read: int = 0
    bytes_written: int = 0
    bytes_verified: int = 0
    read_errors: int = 0
    write_errors: int = 0
    verify_errors: int = 0
    other_errors: int = 0  # of nothing that the medium has to do with
    start_stop_cycles: int = 0


class Statistics:
    """Since the unit was made; nothing is kept when it goes."""

    def __init__(self) -> None:
        self._slow = Counts()
        self._fast: list[Callable[[], FastCounts]] = []
        self._since = time.monotonic()

    @property
    def minutes(self) -> int:
        """How long the unit has been powered on."""
        return int(time.monotonic() - self._since) // 60

    def follow(self, source: Callable[[], FastCounts]) -> None:
        """From now on what a data plane has counted is part of all counts."""
        self._fast.append(source)

    def leave(self, source: Callable[[], FastCounts]) -> None:
        """That data plane is about to forget the unit: what it counted stays."""
        if source in self._fast:
            self._fast.remove(source)
            self._slow = _sum(self._slow, source())

    def total(self) -> Counts:
        """Of both paths, now."""
        total = self._slow
        for source in self._fast:
            total = _sum(total, source())
        return total

    def count(self, work: Work, length: int) -> None:
        """A command that did this with `length` bytes."""
        slow = self._slow
        if work is Work.READ:
            slow.reads += 1
            slow.bytes_read += length
        elif work is Work.VERIFY:
            slow.bytes_verified += length
        else:
            slow.writes += 1
            slow.bytes_written += length
            slow.bytes_verified += length if work is Work.WRITE_AND_VERIFY else 0

    def failed(self, opcode: int, sense: Sense) -> None:
        """A command ended with this; refusals are no errors."""
        if sense.key is SenseKey.HARDWARE_ERROR:
            self._slow.other_errors += 1
        elif sense.key is SenseKey.MEDIUM_ERROR:
            if sense.code is AdditionalSense.WRITE_ERROR:
                self._slow.write_errors += 1
            elif sense.code is AdditionalSense.UNRECOVERED_READ_ERROR and opcode in _VERIFY_OPCODES:
                self._slow.verify_errors += 1
            elif sense.code is AdditionalSense.UNRECOVERED_READ_ERROR:
                self._slow.read_errors += 1

    def stopped(self) -> None:
        self._slow.start_stop_cycles += 1


def _sum(slow: Counts, fast: FastCounts) -> Counts:
    return Counts(
        slow.reads + fast.reads,
        slow.writes + fast.writes,
        slow.bytes_read + fast.bytes_read,
        slow.bytes_written + fast.bytes_written,
        slow.bytes_verified,
        slow.read_errors,
        slow.write_errors,
        slow.verify_errors,
        slow.other_errors,
        slow.start_stop_cycles,
    )
