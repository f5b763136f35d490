"""MasterKey: the key of a LUKS1 header that was opened, and how another takes its place, so that all that the first has
encrypted is lost (cryptographic erase).

    sector 0   | digest of the key | slots 0 to 5 |    one write: the digest of the new key, and the slot that has it
    sector 1   | slots 6 and 7 |                       then: they are free
    material   | 0 | 1 | 2 | ... | 7 |                 before: the new key, into a slot that is not the open one;
                                                       at last: random bytes over all others

The new slot has the salt and the iterations of the one that was opened, so the same secret opens it, and the secret
itself need not be remembered. Other secrets open nothing any more. A crash leaves the old key or the new one; until the
last step is durable the old one can still be found, so whoever began this has to begin again.
"""

import dataclasses
import hashlib
import os
from collections.abc import Callable
from typing import NamedTuple

from formats.luks import HEADER_BYTES, SLOTS, Header, KeySlot, Luks, Opened, Read, SlotState, split
from formats.sector_cipher import SECTOR, SectorCipher

_IN_SECTOR_0 = (SECTOR - Header.SIZE) // KeySlot.SIZE  # slots that are written together with the digest


class Area(NamedTuple):
    """The bytes that begin with the header; `length` of them are its own."""

    length: int
    read: Read
    write: Callable[[int, bytes], None]
    sync: Callable[[], None]


class MasterKey:
    """Raises OSError, CorruptImage, UnsupportedFeature."""

    def __init__(self, name: str, opened: Opened, area: Area) -> None:
        self._name, self._opened, self._area = name, opened, area
        self._tried = opened.slot  # where the last attempt put a key
        self.replaceable = self._lies_apart(Luks(name, area.read))

    def _lies_apart(self, luks: Luks) -> bool:
        """Whether each slot has a place of its own for its key material, also those that are free."""
        end = 2 * SECTOR
        for start, stop in sorted((span.start, span.stop) for span in map(luks.material, range(SLOTS))):
            if start < end or stop == start:
                return False
            end = stop
        return end <= self._area.length

    def replace(self) -> SectorCipher:
        """The cipher of a new key, which is durable, as the loss of the old one is. After an error either may be the
        disk's; another attempt ends that."""
        luks = Luks(self._name, self._area.read)
        place, key = self._place(luks), os.urandom(luks.header.key_bytes)
        self._write(luks.material(place).start, self._locked(luks, place, key))
        header = _with_key(luks, key).pack() + b"".join(each.pack() for each in self._slots(luks, place))
        self._tried = place
        self._write(0, header[:SECTOR])
        self._area.write(SECTOR, header[SECTOR:HEADER_BYTES])
        for other in (luks.material(number) for number in range(SLOTS) if number != place):
            self._area.write(other.start, os.urandom(len(other)))
        self._area.sync()
        self._opened = self._opened._replace(slot=place)
        return SectorCipher(luks.cipher_name, luks.cipher_mode, key)

    def _write(self, offset: int, data: bytes) -> None:
        self._area.write(offset, data)
        self._area.sync()

    def _place(self, luks: Luks) -> int:
        """Neither the open slot nor one that the last attempt may have made it; one that is free, if there is any."""
        places = [n for n in range(_IN_SECTOR_0) if n not in (self._opened.slot, self._tried)]
        return min(places, key=lambda number: luks.slots[number].active == SlotState.ACTIVE)

    def _locked(self, luks: Luks, place: int, key: bytes) -> bytes:
        """The key material of the slot."""
        plain = split(key, luks.slots[place].stripes, luks.hash)
        cipher = SectorCipher(luks.cipher_name, luks.cipher_mode, self._opened.slot_key)
        return cipher.encrypt(plain.ljust(len(luks.material(place)), b"\0"), 0)

    def _slots(self, luks: Luks, place: int) -> list[KeySlot]:
        """The one of the new key alone is in use."""
        slots = [dataclasses.replace(each, active=SlotState.FREE, iterations=0, salt=b"") for each in luks.slots]
        slots[place] = dataclasses.replace(
            slots[place], active=SlotState.ACTIVE, iterations=self._opened.iterations, salt=self._opened.salt
        )
        return slots


def _with_key(luks: Luks, key: bytes) -> Header:
    header, salt = luks.header, os.urandom(32)
    digest = hashlib.pbkdf2_hmac(luks.hash, key, salt, header.mk_digest_iterations, len(header.mk_digest))
    return dataclasses.replace(header, mk_digest=digest, mk_digest_salt=salt)
