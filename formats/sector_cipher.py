"""SectorCipher: AES over sectors of 512 bytes, each with an IV of its number, as dm-crypt and QEMU lay disks out.

    xts    tweak T of the sector = E2(IV); block j: P = D1(C ^ T·a^j) ^ T·a^j      (IEEE 1619)
    cbc    block j: P = D(C) ^ block j - 1 of C, and the IV before the first

A library call for each sector would cost ten times what AES does, so all sectors go through one ECB call, and what
surrounds it is done by numpy for all at once.
"""

import hashlib
from collections.abc import Callable

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from formats.errors import UnsupportedFeature

SECTOR = 512
_BLOCK = 16
_PER_SECTOR = SECTOR // _BLOCK

_ONE, _TOP, _REDUCED = np.uint64(1), np.uint64(63), np.uint64(0x87)

Blocks = NDArray[np.uint64]  # a row of two words for each block of 16 bytes


class SectorCipher:
    """`name`: as LUKS says it: aes; `mode`: xts-plain64, cbc-essiv:sha256 ... Raises UnsupportedFeature for others."""

    def __init__(self, name: str, mode: str, key: bytes) -> None:
        chaining, _, self._iv = mode.partition("-")
        if name != "aes" or chaining not in ("xts", "cbc"):
            raise UnsupportedFeature(f"cipher {name}-{mode} is not known; aes-xts and aes-cbc are")
        self._xts = chaining == "xts"
        data, second = (key[: len(key) // 2], key[len(key) // 2 :]) if self._xts else (key, b"")
        if len(data) not in (16, 24, 32):
            raise UnsupportedFeature(f"cipher {name}-{mode} with a key of {len(key)} bytes is not known")
        self._data = Cipher(algorithms.AES(data), modes.ECB())
        self._second = Cipher(algorithms.AES(second), modes.ECB()) if second else None
        self._salted: Cipher[modes.ECB] | None = None
        if self._iv.startswith("essiv:"):
            self._salted = Cipher(algorithms.AES(digest_of(self._iv[6:])(data).digest()), modes.ECB())
        elif self._iv not in ("plain", "plain64"):
            raise UnsupportedFeature(f"cipher {name}-{mode}: initialisation by {self._iv!r} is not known")

    def _ivs(self, first: int, count: int) -> Blocks:
        """One for each sector from number `first` on; little-endian, as dm-crypt counts."""
        ivs = np.zeros((count, 2), "<u8")
        ivs[:, 0] = np.arange(first, first + count, dtype=np.uint64) & np.uint64(
            0xFFFF_FFFF if self._iv == "plain" else (1 << 64) - 1
        )
        return _through(self._salted, ivs) if self._salted else ivs

    def decrypt(self, data: bytes, first: int) -> bytes:
        """The plain bytes of whole sectors, the first of which has this number."""
        blocks = np.frombuffer(data, "<u8").reshape(-1, 2)
        ivs = self._ivs(first, len(data) // SECTOR)
        if self._xts:
            tweaks = self._tweaks(ivs)
            return (_through(self._data, blocks ^ tweaks, decrypt=True) ^ tweaks).tobytes()
        before = np.empty_like(blocks)
        before[1:] = blocks[:-1]
        before[::_PER_SECTOR] = ivs
        return (_through(self._data, blocks, decrypt=True) ^ before).tobytes()

    def encrypt(self, data: bytes, first: int) -> bytes:
        """The other way."""
        blocks = np.frombuffer(data, "<u8").reshape(-1, 2)
        ivs = self._ivs(first, len(data) // SECTOR)
        if self._xts:
            tweaks = self._tweaks(ivs)
            return (_through(self._data, blocks ^ tweaks) ^ tweaks).tobytes()
        sectors, before = blocks.reshape(-1, _PER_SECTOR, 2).copy(), ivs
        for place in range(_PER_SECTOR):  # block by block, but in all sectors at once
            sectors[:, place] = before = _through(self._data, sectors[:, place] ^ before)
        return sectors.tobytes()

    def _tweaks(self, ivs: Blocks) -> Blocks:
        """One for each block: each the one before times a in GF(2^128)."""
        assert self._second is not None
        words = np.empty((2, _PER_SECTOR, len(ivs)), np.uint64)  # low and high, a row for each place in a sector
        words[:, 0] = _through(self._second, ivs).T
        low, high = words
        for place in range(1, _PER_SECTOR):
            before_low, before_high = low[place - 1], high[place - 1]
            low[place] = before_low << _ONE ^ (before_high >> _TOP) * _REDUCED
            high[place] = before_high << _ONE | before_low >> _TOP
        return np.ascontiguousarray(words.transpose(2, 1, 0), "<u8").reshape(-1, 2)


class PlacedCipher:
    """A cipher by places in a file: the sector at byte `origin` has number 0."""

    def __init__(self, cipher: SectorCipher, origin: int = 0) -> None:
        self._cipher, self._origin = cipher, origin

    def encrypt(self, offset: int, data: bytes) -> bytes:
        """What is to be written at byte `offset`; whole sectors."""
        return self._cipher.encrypt(data, self._number(offset))

    def decrypt(self, offset: int, data: bytes) -> bytes:
        """What `data`, read at byte `offset`, means; whole sectors."""
        return self._cipher.decrypt(data, self._number(offset))

    def _number(self, offset: int) -> int:
        number, rest = divmod(offset - self._origin, SECTOR)
        assert not rest
        return number


def _through(cipher: "Cipher[modes.ECB]", blocks: Blocks, *, decrypt: bool = False) -> Blocks:
    """Each block by itself."""
    context = cipher.decryptor() if decrypt else cipher.encryptor()
    return np.frombuffer(context.update(np.ascontiguousarray(blocks, "<u8").tobytes()), "<u8").reshape(-1, 2)


def digest_of(name: str) -> "Callable[[bytes], hashlib._Hash]":
    """The hash function of this name. UnsupportedFeature."""
    found = {"sha1": hashlib.sha1, "sha224": hashlib.sha224, "sha256": hashlib.sha256, "sha512": hashlib.sha512}
    if name not in found:
        raise UnsupportedFeature(f"hash {name!r} is not known; {', '.join(found)} are")
    return found[name]
