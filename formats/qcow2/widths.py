"""Refcounts as numbers and as bytes, for each width from 1 to 64 bits; below 8 the first is in the lowest bits."""

import sys
from array import array
from collections.abc import Sequence

_TYPES = {8: "B", 16: "H", 32: "I", 64: "Q"}


def unpack(data: bytes, bits: int) -> Sequence[int]:
    """All counts in `data`."""
    if bits < 8:
        mask = (1 << bits) - 1
        return [byte >> shift & mask for byte in data for shift in range(0, 8, bits)]
    return big_endian(array(_TYPES[bits], data))


def pack(counts: Sequence[int], bits: int) -> bytes:
    """The bytes of whole bytes' worth of counts."""
    if bits >= 8:
        return big_endian(array(_TYPES[bits], counts)).tobytes()
    step = 8 // bits
    return bytes(
        sum(count << place * bits for place, count in enumerate(counts[at : at + step]))
        for at in range(0, len(counts), step)
    )


def big_endian(words: "array[int]") -> "array[int]":
    """The array turned, in place, between the host's order and the file's."""
    if sys.byteorder == "little":
        words.byteswap()
    return words


def words_of(data: bytes) -> "array[int]":
    """64-bit words of a table."""
    return big_endian(array("Q", data[: len(data) // 8 * 8]))
