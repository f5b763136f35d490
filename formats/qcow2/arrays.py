"""Tables and counts as numpy arrays, for walks over a whole image: millions of words at a time instead of one by one.

Only what walks whole images imports this, and only when it does: numpy takes longer to load than an image to open.
"""

import os
from array import array
from collections.abc import Iterable, Sequence

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # its threads serve linear algebra, of which there is none here

import numpy as np
from numpy.typing import NDArray

from formats.errors import CorruptImage
from formats.qcow2.entries import Entries
from formats.qcow2.structures import COMPRESSED, COPIED, OFFSET

Words = NDArray[np.uint64]
Truths = NDArray[np.bool_]

_COMPRESSED, _COPIED, _OFFSET, _ZERO = (np.uint64(word) for word in (COMPRESSED, COPIED, OFFSET, 0))
NOT_COPIED = np.uint64(COPIED ^ (1 << 64) - 1)


def words(data: bytes) -> Words:
    """The 64-bit words of a table, to be changed at will."""
    return np.frombuffer(data, ">u8").astype(np.uint64)


def pack(table: Words) -> bytes:
    """The bytes of a table."""
    return table.astype(">u8").tobytes()


def join(parts: Sequence[Words]) -> Words:
    """One after the other."""
    return np.concatenate(parts)


def counts(data: bytes, bits: int) -> Words:
    """The refcounts of a page; below 8 bits the first is in the lowest bits."""
    if bits >= 8:
        return np.frombuffer(data, f">u{bits // 8}").astype(np.uint64)
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    each = np.frombuffer(data, np.uint8)[:, None] >> shifts & np.uint8((1 << bits) - 1)
    return each.ravel().astype(np.uint64)


def pack_counts(values: Words, bits: int) -> bytes:
    """The bytes of a page of refcounts that fit their width."""
    if bits >= 8:
        return values.astype(f">u{bits // 8}").tobytes()
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    joined: NDArray[np.uint8] = np.bitwise_or.reduce(values.astype(np.uint8).reshape(-1, 8 // bits) << shifts, axis=1)
    return joined.tobytes()


def placed(descriptors: Words) -> Truths:
    """Which of them name a host cluster of their own."""
    found: Truths = (descriptors & _OFFSET != _ZERO) & (descriptors & _COMPRESSED == _ZERO)
    return found


def copied(descriptors: Words) -> Truths:
    """Which of them have the COPIED flag."""
    found: Truths = descriptors & _COPIED != _ZERO
    return found


def wrong_l1(entries: Words, cluster_size: int, end: int) -> tuple[Truths, Truths]:
    """Which have reserved bits, or flags without a table; and whose tables can lie nowhere in a file of `end` bytes."""
    tables = entries & _OFFSET
    strange: Truths = (entries & ~(_OFFSET | _COPIED) != _ZERO) | ((tables == _ZERO) & (entries != _ZERO))
    misplaced: Truths = (tables & np.uint64(cluster_size - 1) != _ZERO) | (tables >= np.uint64(end))
    return strange, misplaced


def parted(numbers: Sequence[int], length: int, pieces: Iterable[int], room: int) -> tuple["array[int]", "array[int]"]:
    """Those in these pieces of `length` numbers, or in the first `room` others that they lie in; and the rest."""
    each = np.array(numbers, np.uint64)
    theirs, known = each // np.uint64(length), np.fromiter(pieces, np.uint64)
    if room > 0:
        known = np.concatenate([known, np.setdiff1d(theirs, known)[:room]])
    inside = np.isin(theirs, known)
    return array("Q", each[inside].tobytes()), array("Q", each[~inside].tobytes())


def block_words(table: "array[int]", most: int, allowed: int) -> list[int]:
    """Places of the words of a refcount table that have other bits than those allowed, or name more than `most`."""
    each = np.array(table, np.uint64)
    wrong = (each & ~np.uint64(allowed) != _ZERO) | (each > np.uint64(most))
    found: list[int] = wrong.nonzero()[0].tolist()
    return found


def in_order(table: "array[int]", unit: int) -> "array[int]":
    """Those that are not 0, sorted, in units of so many."""
    each = np.array(table, np.uint64)
    return array("Q", (np.sort(each[each != _ZERO]) // np.uint64(unit)).tobytes())


def alike(one: Words, two: Words) -> Truths:
    """Where both name the same place, whatever the flags and sub-clusters."""
    difference = one ^ two
    packed = (one | two) & _COMPRESSED != _ZERO
    found: Truths = np.where(packed, difference, difference & _OFFSET) == _ZERO
    return found


def hosts(descriptors: Words, entries: Entries) -> Words:
    """Numbers of the host clusters that the descriptors refer to, each as often as one does. CorruptImage where a
    place is no cluster's beginning."""
    plain = descriptors[placed(descriptors)] & _OFFSET
    if np.any(plain & np.uint64(entries.cluster_size - 1)):
        raise CorruptImage(f"an L2 table names a place that is not at a multiple of {entries.cluster_size}")
    found = [plain >> np.uint64(entries.cluster_bits)]
    packed = descriptors[descriptors & _COMPRESSED != _ZERO]
    if len(packed):
        first, last = _spans(packed, entries)
        longest = int((last - first).max())
        found += [first[first + np.uint64(n) <= last] + np.uint64(n) for n in range(longest + 1)]
    return np.concatenate(found)


def _spans(packed: Words, entries: Entries) -> tuple[Words, Words]:
    """First and last host cluster of compressed data, as `Entries.compressed_span` has it."""
    shift = np.uint64(62 - (entries.cluster_bits - 8))
    start = packed & np.uint64((1 << int(shift)) - 1)
    sectors = ((packed & np.uint64(COMPRESSED - 1)) >> shift) + np.uint64(1)
    end = (start >> np.uint64(9)) + sectors << np.uint64(9)
    bits = np.uint64(entries.cluster_bits)
    return start >> bits, end - np.uint64(1) >> bits


def runs(bits: bytes, count: int) -> list[tuple[int, int]]:
    """First and end of each run of ones among the first `count` bits, the lowest bit of a byte being the first."""
    each = np.unpackbits(np.frombuffer(bits, np.uint8), count=count, bitorder="little")
    edges = np.flatnonzero(np.diff(each, prepend=0, append=0))
    return [(int(first), int(end)) for first, end in edges.reshape(-1, 2)]
