"""A long operation of a logical unit (FORMAT UNIT, SANITIZE): how far it is, what is told meanwhile, and if it fails.

While there is one only INQUIRY, REPORT LUNS and REQUEST SENSE are served (SBC-3 4.33, 4.11); all else is told how far
it is. A failed FORMAT UNIT leaves a medium that cannot be used, a failed SANITIZE a unit that serves nothing but the
next SANITIZE, until one succeeds. operable.py runs it.
"""

import asyncio
import errno
from collections.abc import Callable, Iterator
from typing import NamedTuple

from vstore.scsi.cdb import Access, Cdb
from vstore.scsi.commands import FormatUnit, SanitizeOverwrite
from vstore.scsi.sense import AdditionalSense, Progress, Sense, SenseKey

_SANITIZE = SanitizeOverwrite.opcode


class Failure(NamedTuple):
    """`told` ends the command that failed, `sense` those that come later. `may_exit`: AUSE of the SANITIZE.
    `begins_again`: what was broken off by a loss of power does."""

    told: Sense
    sense: Sense
    refused: Callable[[type[Cdb]], bool]
    may_exit: bool = False
    begins_again: bool = False

    def refuses(self, row: type[Cdb]) -> bool:
        return not row.passes_attention and self.refused(row)


def _medium_error(code: AdditionalSense) -> Sense:
    return Sense(SenseKey.MEDIUM_ERROR, code)


def _uses_the_medium(row: type[Cdb]) -> bool:
    return row.access in (Access.READ, Access.WRITE)


def _is_no_sanitize(row: type[Cdb]) -> bool:
    return row.opcode != _SANITIZE


FORMAT_FAILED = Failure(
    _medium_error(AdditionalSense.FORMAT_COMMAND_FAILED),
    _medium_error(AdditionalSense.MEDIUM_FORMAT_CORRUPTED),
    _uses_the_medium,
)


def sanitize_failed(*, may_exit: bool) -> Failure:
    sense = _medium_error(AdditionalSense.SANITIZE_COMMAND_FAILED)
    return Failure(sense, sense, _is_no_sanitize, may_exit, begins_again=True)


def failure_of(cdb: bytes) -> Failure:
    """Of an operation that such a command began, and that did not end well."""
    if cdb[0] == FormatUnit.opcode:
        return FORMAT_FAILED
    return sanitize_failed(may_exit=bool(cdb[1] & 1 << SanitizeOverwrite.ause.msb))


class Operation:
    """`total` bytes are to be gone over. `cdb`, `data_out`: of the command, for who has to begin again. `refused`: why
    it has not begun."""

    def __init__(self, code: AdditionalSense, total: int, failure: Failure, cdb: Cdb, data_out: bytes = b"") -> None:
        self._code, self._total, self._done = code, total, 0
        self.failure = failure
        self.asked = {"cdb": cdb.encode(), "data_out": data_out}
        self.begun = asyncio.Event()
        self.refused: OSError | None = None
        self.failed = False
        self.interrupted = False

    @property
    def sense(self) -> Sense:
        progress = Progress(min(self._done * 0x10000 // self._total, 0xFFFF))
        return Sense(SenseKey.NOT_READY, self._code, pointer=progress)

    def over(self, length: int, piece: int) -> Iterator[tuple[int, int]]:
        """(offset, length) of each piece of the medium; what was handed out counts as done when the next is asked for.
        OSError once the operation is to end early."""
        for offset in range(0, length, piece):
            if self.interrupted:
                raise OSError(errno.ECANCELED, "the operation was interrupted")
            size = min(piece, length - offset)
            yield offset, size
            self._done += size
