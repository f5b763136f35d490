"""LUKS1: a disk's key, locked up in up to eight slots, each of which one passphrase opens (LUKS On-Disk Format 1.2.3).

    passphrase --PBKDF2--> slot key --decrypts--> key material --merge--> master key --digest--> is it right?

The key material of a slot is the master key split so that every bit of it is needed (AF splitter). What is encrypted is
not of this module: it gives the cipher, which sectors go through it is for the format to say.
"""

import hashlib
import hmac
import os
import uuid
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import NamedTuple

from formats.errors import CorruptImage, SecretNeeded, SecretWrong, UnsupportedFeature
from formats.layout import Structure, big_endian, octets, u16, u32
from formats.sector_cipher import SECTOR, SectorCipher, digest_of

MAGIC = b"LUKS\xba\xbe"
HEADER_BYTES = 592
SLOTS = 8
_STRIPES = 4000  # of a new slot
_ITERATIONS = 500_000  # of a new slot: about half a second
_ALIGNMENT = 4096
_DIGEST_BYTES = 20
_MOST_ITERATIONS = 1 << 25  # about a minute for a slot; QEMU takes as many as it does in a second or two
_MOST_STRIPES = 1 << 12

Read = Callable[[int, int], bytes]  # offset, length: bytes of the area that begins with the header


class SlotState(IntEnum):
    ACTIVE = 0x00AC71F3
    FREE = 0x0000DEAD


@big_endian
class Header(Structure):
    """phdr, before the key slots."""

    magic: bytes = octets(6)
    version: int = u16()
    cipher_name: bytes = octets(32)
    cipher_mode: bytes = octets(32)
    hash_spec: bytes = octets(32)
    payload_offset: int = u32()  # sectors
    key_bytes: int = u32()
    mk_digest: bytes = octets(20)
    mk_digest_salt: bytes = octets(32)
    mk_digest_iterations: int = u32()
    uuid: bytes = octets(40)


@big_endian
class KeySlot(Structure):
    active: int = u32()
    iterations: int = u32()
    salt: bytes = octets(32)
    key_material_offset: int = u32()  # sectors
    stripes: int = u32()


class Opened(NamedTuple):
    """What a secret has opened: the cipher, and the slot with what the secret became there."""

    cipher: SectorCipher
    slot: int
    slot_key: bytes
    iterations: int
    salt: bytes


class Luks:
    """A header, checked. `name` begins every error. Raises CorruptImage, UnsupportedFeature."""

    def __init__(self, name: str, read: Read) -> None:
        self._name, self._read = name, read
        data = read(0, HEADER_BYTES)
        if len(data) < HEADER_BYTES or data[:6] != MAGIC:
            raise CorruptImage(f"{name}: its LUKS header begins with {data[:6]!r}, not {MAGIC!r}")
        self.header = Header.unpack(data)
        if self.header.version != 1:
            raise UnsupportedFeature(f"{name} is encrypted by LUKS version {self.header.version}; version 1 is known")
        if self.header.key_bytes not in (16, 24, 32, 48, 64):
            raise CorruptImage(f"{name}: a LUKS key of {self.header.key_bytes} bytes")
        self._check_iterations(self.header.mk_digest_iterations)
        self.cipher_name, self.cipher_mode, self.hash = (
            _text(field) for field in (self.header.cipher_name, self.header.cipher_mode, self.header.hash_spec)
        )
        digest_of(self.hash)
        at = Header.SIZE
        self.slots = [KeySlot.unpack(data, at + n * KeySlot.SIZE) for n in range(SLOTS)]

    def _check_iterations(self, iterations: int) -> None:
        if not 0 < iterations <= _MOST_ITERATIONS:
            raise UnsupportedFeature(
                f"{self._name}: {iterations} iterations of PBKDF2; 1 to {_MOST_ITERATIONS} are done for a LUKS key"
            )

    def open(self, secret: bytes) -> Opened:
        """The cipher of the disk, if the secret opens a slot; SecretWrong otherwise. Takes a second or more."""
        for number, slot in enumerate(self.slots):
            if slot.active == SlotState.ACTIVE:
                slot_key = self._slot_key(slot, secret)
                key = self._unlock(number, slot_key)
                if hmac.compare_digest(self._digest(key), self.header.mk_digest):
                    cipher = SectorCipher(self.cipher_name, self.cipher_mode, key)
                    return Opened(cipher, number, slot_key, slot.iterations, slot.salt)
        raise SecretWrong(f"the secret does not open {self._name}: no key slot of it has that one")

    def _digest(self, key: bytes) -> bytes:
        header = self.header
        return hashlib.pbkdf2_hmac(self.hash, key, header.mk_digest_salt, header.mk_digest_iterations, _DIGEST_BYTES)

    def _slot_key(self, slot: KeySlot, secret: bytes) -> bytes:
        self._check_iterations(slot.iterations)
        return hashlib.pbkdf2_hmac(self.hash, secret, slot.salt, slot.iterations, self.header.key_bytes)

    def material(self, number: int) -> range:
        """The bytes of a slot's key material, in whole sectors."""
        slot = self.slots[number]
        start = slot.key_material_offset * SECTOR
        return range(start, start + -(-self.header.key_bytes * slot.stripes // SECTOR) * SECTOR)

    def _unlock(self, number: int, slot_key: bytes) -> bytes:
        """What the slot gives, right or wrong."""
        slot, length = self.slots[number], self.header.key_bytes
        if not 0 < slot.stripes <= _MOST_STRIPES:
            raise UnsupportedFeature(
                f"{self._name}: a key slot of {slot.stripes} stripes; 1 to {_MOST_STRIPES} are read"
            )
        place = self.material(number)
        material = self._read(place.start, len(place))
        if len(material) < len(place):
            raise CorruptImage(f"{self._name}: a key slot ends behind the end of the LUKS header's area")
        plain = SectorCipher(self.cipher_name, self.cipher_mode, slot_key).decrypt(material, 0)
        return merge(plain[: length * slot.stripes], length, self.hash)

    def describe(self) -> dict[str, object]:
        """What `qemu-img info --output=json` tells of it."""
        mode, _, iv = self.cipher_mode.partition("-")
        iv, _, iv_hash = iv.partition(":")
        bits = self.header.key_bytes * 8 // (2 if mode == "xts" else 1)
        told: dict[str, object] = {
            "ivgen-alg": iv,
            "hash-alg": self.hash,
            "cipher-alg": f"{self.cipher_name}-{bits}",
            "uuid": _text(self.header.uuid),
            "format": "luks",
            "cipher-mode": mode,
            "slots": [_describe(slot) for slot in self.slots],
            "payload-offset": self.header.payload_offset * SECTOR,
            "master-key-iters": self.header.mk_digest_iterations,
        }
        return {**told, "ivgen-hash-alg": iv_hash} if iv_hash else told


def _describe(slot: KeySlot) -> dict[str, object]:
    told: dict[str, object] = {
        "active": slot.active == SlotState.ACTIVE,
        "key-offset": slot.key_material_offset * SECTOR,
    }
    return {**told, "iters": slot.iterations, "stripes": slot.stripes} if told["active"] else told


def open_with(name: str, secrets: Sequence[bytes], read: Read) -> Opened:
    """What one of the secrets opens. SecretWrong where none does, SecretNeeded where there is none."""
    luks = Luks(name, read)
    if not secrets:
        raise SecretNeeded(f"{name} is encrypted (LUKS); give its secret")
    for number, secret in enumerate(secrets, 1):
        try:
            return luks.open(secret)
        except SecretWrong:
            if number == len(secrets):
                raise
    raise AssertionError


def new(secret: bytes) -> bytes:
    """A new header with its key material, as long as its payload's offset: AES-256 in XTS mode, and one slot, which
    `secret` opens."""
    length, salt, slot_salt, key = 64, os.urandom(32), os.urandom(32), os.urandom(64)
    room = -(-length * _STRIPES // _ALIGNMENT) * _ALIGNMENT
    places = range(_ALIGNMENT, _ALIGNMENT + SLOTS * room, room)
    slots = [KeySlot(SlotState.FREE, 0, b"", place // SECTOR, _STRIPES) for place in places]
    slots[0] = KeySlot(SlotState.ACTIVE, _ITERATIONS, slot_salt, places[0] // SECTOR, _STRIPES)
    digest_iterations = max(1000, _ITERATIONS // 8)
    header = Header(
        magic=MAGIC,
        version=1,
        cipher_name=b"aes",
        cipher_mode=b"xts-plain64",
        hash_spec=b"sha256",
        payload_offset=places.stop // SECTOR,
        key_bytes=length,
        mk_digest=hashlib.pbkdf2_hmac("sha256", key, salt, digest_iterations, _DIGEST_BYTES),
        mk_digest_salt=salt,
        mk_digest_iterations=digest_iterations,
        uuid=str(uuid.uuid4()).encode(),
    )
    slot_key = hashlib.pbkdf2_hmac("sha256", secret, slot_salt, _ITERATIONS, length)
    material = SectorCipher("aes", "xts-plain64", slot_key).encrypt(split(key, _STRIPES, "sha256"), 0)
    start = header.pack() + b"".join(slot.pack() for slot in slots)
    return (start.ljust(_ALIGNMENT, b"\0") + material).ljust(places.stop, b"\0")


def split(key: bytes, stripes: int, hash: str) -> bytes:
    """So many stripes that merge into the key (AFsplit): random, but for the last."""
    material = os.urandom(len(key) * (stripes - 1))
    return material + _xor(merge(material + bytes(len(key)), len(key), hash), key)


def merge(material: bytes, length: int, hash: str) -> bytes:
    """The key that was split into stripes of `length` bytes (AFmerge)."""
    key = bytes(length)
    last = len(material) - length
    for at in range(0, last, length):
        key = _diffuse(_xor(key, material[at : at + length]), hash)
    return _xor(key, material[last:])


def _diffuse(data: bytes, hash: str) -> bytes:
    """Each piece of the hash's length becomes the hash of its number and itself."""
    digest = digest_of(hash)
    size = digest(b"").digest_size
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    return b"".join(digest(n.to_bytes(4, "big") + piece).digest()[: len(piece)] for n, piece in enumerate(pieces))


def _xor(one: bytes, two: bytes) -> bytes:
    return (int.from_bytes(one, "big") ^ int.from_bytes(two, "big")).to_bytes(len(one), "big")


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("ascii", errors="replace")
