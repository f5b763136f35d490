"""Which pieces of a buffer are zeros, and which differ from another: told as (start, end), neighbours joined.

A piece that is all zeros begins with one, so only those whose first byte is zero are looked at further: in most data
that is one in a few hundred. Comparing calls memcmp(3), without the GIL.
"""

import ctypes
from collections.abc import Iterable, Iterator

_libc = ctypes.CDLL(None)
_libc.memcmp.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
_libc.memcmp.restype = ctypes.c_int

_zeros = bytearray(1 << 20)  # a bytearray, because it is compared with any buffer as memory and not item by item

Span = tuple[int, int]


def is_zero(view: memoryview) -> bool:
    """Whether all its bytes are zeros."""
    if len(view) <= len(_zeros):
        return _zeros_like(len(view)) == view
    return all(is_zero(view[at : at + len(_zeros)]) for at in range(0, len(view), len(_zeros)))


def _zeros_like(length: int) -> bytearray:
    return _zeros if length == len(_zeros) else _zeros[:length] if length not in _SIZES else _SIZES[length]


_SIZES = {1 << bits: bytearray(1 << bits) for bits in range(9, 20)}


def nonzero(view: memoryview, unit: int) -> Iterator[Span]:
    """The pieces of `unit` bytes (the last may be shorter) that hold anything but zeros."""
    return joined(_nonzero(view, unit))


def _nonzero(view: memoryview, unit: int) -> Iterator[Span]:
    firsts, at, length = bytes(view[::unit]), 0, len(view)
    while (found := firsts.find(0, -(-at // unit))) >= 0:
        start = found * unit
        end = min(start + unit, length)
        if is_zero(view[start:end]):
            if at < start:
                yield at, start
        else:
            yield at, end
        at = end
    if at < length:
        yield at, length


def same(one: memoryview, two: memoryview) -> bool:
    """Whether two writable buffers of the same length hold the same."""
    return not _libc.memcmp(_address(one), _address(two), len(one))


def _address(view: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(view))


def unlike(one: memoryview, two: memoryview, unit: int) -> Iterator[Span]:
    """The pieces of `unit` bytes in which two writable buffers of the same length differ."""
    length = len(one)
    if same(one, two):
        return iter(())
    spans = ((at, min(at + unit, length)) for at in range(0, length, unit))
    return joined(span for span in spans if not same(one[slice(*span)], two[slice(*span)]))


def joined(spans: Iterable[Span]) -> Iterator[Span]:
    """Spans that touch as one."""
    begin = stop = -1
    for start, end in spans:
        if start != stop:
            if stop > begin:
                yield begin, stop
            begin = start
        stop = end
    if stop > begin:
        yield begin, stop


def first_difference(one: memoryview, two: memoryview) -> int | None:
    """The first byte in which two writable buffers of the same length differ."""
    if same(one, two):
        return None
    low, high = 0, len(one)
    while high - low > 1:
        middle = (low + high) // 2
        if same(one[low:middle], two[low:middle]):
            low = middle
        else:
            high = middle
    return low
