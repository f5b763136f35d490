"""Atomic writes (SBC-4 4.29): of the blocks of one there is never, whatever happens, a part new and a part old.

      alone with the range, whom nobody reads and nobody else writes
    |----------------------------------------------------------------------|
      what is there --> intent, durable --> in place, durable --> no intent, durable --> GOOD
                        new bytes and a                          a failed write is undone here
                        sum of each old sector
                             |
      a crash after that:    +--> heal(): some sectors old, some new: all become new    else: nothing is touched

So readers are kept off while the blocks change, and what a loss of power breaks off in the middle is completed before
the unit is served again. No format and no file system has to be atomic for that: nothing is taken for granted but that
one sector of 512 bytes is. Three flushes a command are what it costs; the intents lie in the unit's state, beside its
image, and a unit that has none does not know the command.

What could not be undone is torn: until another attempt succeeds, nobody reads or writes there, or, if only the flush
failed, nobody writes. Otherwise what others write would be undone by the intent, which must be obeyed after a crash.

A sector that is neither old nor new says that somebody else wrote to the image after the crash: then the intent is
stale, and obeying it would undo that.
"""

import errno
import json
import logging
import threading
import zlib
from base64 import b64decode, b64encode
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from typing import NamedTuple, Self

from vstore.scsi.device_server import reading
from vstore.scsi.kept_state import Section, StateLost
from vstore.scsi.medium import Held, Medium

SECTION = "atomic writes"
MAXIMUM_ATOMIC_BYTES = 128 << 10  # as many as there are threads of a disk, in base64, fit in the state
_SECTOR = 512
_MAP_WRITABLE = (
    "a loss of power has broken off an atomic write to the disk, which is completed when it is writable: "
    "map it writable once, then read-only"
)

_log = logging.getLogger(__name__)


class Intent(NamedTuple):
    """`old`: CRC-32 of each sector as it was. Offsets in bytes."""

    offset: int
    new: bytes
    old: tuple[int, ...]

    @classmethod
    def of(cls, offset: int, old: bytes, new: bytes) -> Self:
        return cls(offset, new, tuple(map(zlib.crc32, _sectors(old))))

    def is_broken_off(self, found: bytes) -> bool:
        """Whether a part is new and a part old. What nobody changed is neither, or both."""
        states = set()
        for sector, new, old in zip(_sectors(found), _sectors(self.new), self.old, strict=True):
            is_new, is_old = sector == new, zlib.crc32(sector) == old
            if not (is_new or is_old):
                _log.warning("an atomic write at byte %d was broken off, and others wrote there since", self.offset)
                return False
            if is_new is not is_old:
                states.add(is_new)
        return len(states) == 2


def _sectors(data: bytes) -> Iterable[bytes]:
    return (data[at : at + _SECTOR] for at in range(0, len(data), _SECTOR))


class Torn(NamedTuple):
    """What has failed and could not be undone durably. `old`: the bytes that belong there; `back`: they are there, but
    may not be after a loss of power."""

    intent: Intent
    old: bytes
    back: bool

    def meets(self, span: range) -> bool:
        """Whether they have a byte in common."""
        start = self.intent.offset
        return start < span.stop and span.start < start + len(self.old)


class AtomicWrites:
    """Of one unit. Without a section there are none."""

    def __init__(self, section: Section | None) -> None:
        self._section = section
        self._lock = threading.Lock()
        self._intents: tuple[Intent, ...] = ()
        self._torn: tuple[Torn, ...] = ()
        self._ends_owed = False
        try:
            data = section.load() if section else None
            self._intents = () if data is None else _decoded(data)
        except (StateLost, ValueError, TypeError, KeyError):
            _log.exception("Whether an atomic write was broken off cannot be read any more")

    @property
    def kept(self) -> bool:
        return self._section is not None

    @property
    def torn(self) -> bool:
        """Whether there are ranges that `mend` has to be asked for before they are used."""
        return bool(self._torn)

    async def write(self, medium: Medium, offset: int, data: bytes) -> None:
        """Durable when it returns; OSError: it is as if it had never been, or all of it is there and only the state
        beside the image could not be written."""
        await medium.alone(offset, len(data), lambda held: self._write(held, offset, data), exclusive=True)

    def _write(self, medium: Held, offset: int, data: bytes) -> None:
        with reading():
            old = medium.read(offset, len(data))
        intent = Intent.of(offset, old, data)
        self._keep(add=intent)
        try:
            medium.write(offset, data)
            medium.flush()
        except BaseException:
            self._undo(Torn(intent, old, back=False), medium)
            raise
        self._end(intent)

    def _undo(self, torn: Torn, medium: Held) -> None:
        """What cannot be undone stays intended: then the next power on makes all of it new, unless `mend` did it."""
        others = tuple(each for each in self._torn if each.intent is not torn.intent)
        try:
            medium.write(torn.intent.offset, torn.old)
            torn = torn._replace(back=True)
            medium.flush()
        except OSError:
            self._torn = (*others, torn)
            return
        self._torn = others
        with suppress(OSError):
            self._end(torn.intent)

    def _undo_later(self, torn: Torn, medium: Held) -> None:
        """What is new by this write becomes old. All else stays: a write that already waited for the range when it was
        torn came through before the data plane was told to keep off."""
        start, size = torn.intent.offset, len(torn.old)
        try:
            found = medium.read(start, size)
        except OSError:
            return
        sectors = zip(*map(_sectors, (found, torn.intent.new, torn.old)), strict=True)
        old = b"".join(was if is_there == new else is_there for is_there, new, was in sectors)
        self._undo(torn._replace(old=old), medium)

    async def mend(self, medium: Medium, span: range, *, only_read: bool) -> None:
        """Before these bytes are used: tries again to undo what is torn there. OSError (EIO): in vain."""
        for torn in self._torn:
            if torn.meets(span):
                undo = partial(self._undo_later, torn)
                await medium.alone(torn.intent.offset, len(torn.old), undo, exclusive=True)
        if any(torn.meets(span) and not (only_read and torn.back) for torn in self._torn):
            raise OSError(errno.EIO, "an atomic write there has failed, and could not be undone")

    async def heal(self, medium: Medium) -> None:
        """Completes what a loss of power broke off; before anything is served. OSError: it is to be tried again; EROFS:
        as soon as the medium is writable. Where it is not, what is whole stays intended, as nobody can change it."""
        if not self._intents:
            return
        for intent in self._intents:
            if intent.offset + len(intent.new) > medium.length:
                continue  # the disk was made shorter since
            if intent.is_broken_off(await medium.read(intent.offset, len(intent.new))):
                if medium.read_only:
                    raise OSError(errno.EROFS, _MAP_WRITABLE)
                await medium.write(intent.offset, intent.new)
        if medium.read_only:
            return
        await medium.flush()
        for intent in self._intents:
            self._keep(remove=intent)

    def _end(self, intent: Intent) -> None:
        """It is in place, or undone. Where that cannot be kept now, the next save tells of it, or `settle`: obeyed
        later, it would undo what others write there from now on."""
        with self._lock:
            self._intents = tuple(each for each in self._intents if each is not intent)
            self._ends_owed = True
        self._keep()

    async def conclude(self, medium: Medium) -> None:
        """Before the medium is erased: what was written atomically is kept no more. OSError: it still is."""
        if self._ends_owed:
            await medium.alone(0, medium.length, lambda _: self._keep())

    def settle(self) -> None:
        """Before the unit goes: tries again to keep that writes have ended."""
        if self._ends_owed:
            with suppress(OSError):
                self._keep()

    def _keep(self, *, add: Intent | None = None, remove: Intent | None = None) -> None:
        assert self._section
        with self._lock:
            intents = tuple(each for each in self._intents if each is not remove) + ((add,) if add else ())
            self._section.save_blocking(_encoded(intents))
            self._intents, self._ends_owed = intents, False


def _encoded(intents: Iterable[Intent]) -> bytes:
    return json.dumps(
        [{"offset": each.offset, "new": b64encode(each.new).decode(), "old": each.old} for each in intents]
    ).encode()


def _decoded(data: bytes) -> tuple[Intent, ...]:
    intents = tuple(Intent(row["offset"], b64decode(row["new"]), tuple(row["old"])) for row in json.loads(data))
    for each in intents:
        if each.offset < 0 or len(each.new) != len(each.old) * _SECTOR:
            raise ValueError(f"an atomic write at {each.offset} with {len(each.old)} sectors cannot have been")
    return intents
