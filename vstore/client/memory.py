"""Guest memory of a front-end: memfd regions that the back-end maps too, and a first-fit allocator over them.

    guest address   0x40000000        +size 0       +gap      +size 1
                        | region 0      |            | region 1 |
    user address    each region somewhere else, never in step with the guest addresses

A region's user address is made up: it is the name by which vhost-user messages call the memory, and a back-end must
translate it. Regions without a gap are contiguous for the guest and apart for everyone else, so that buffers
cross the border; the allocator gives them out without regard to borders unless asked.
"""

import fcntl
import mmap
import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

from vstore.client.errors import ClientError

MIB = 1 << 20
_ALIGNMENT = 16  # what a descriptor table needs, the most of all (virtio 1.2 2.7)
_FIRST_GUEST_ADDRESS = 1 << 30
_USER_OFFSET = 0x7E00_0000_0000
_USER_STRIDE = 1 << 40


@dataclass(frozen=True, slots=True)
class Region:
    """One memory region: addresses and sizes in bytes, `mapping` shared with whoever receives `descriptor`."""

    guest_address: int
    size: int
    user_address: int
    descriptor: int
    mmap_offset: int
    mapping: mmap.mmap


@dataclass(frozen=True, slots=True)
class Span:
    """A piece of guest memory: guest address and length in bytes."""

    address: int
    length: int

    @property
    def end(self) -> int:
        return self.address + self.length


class GuestMemory:
    """Regions of `sizes` bytes (multiples of the page size), `gap` bytes apart in guest addresses.

    `mmap_offset`: bytes of each memfd before the region begins. Raises OSError when the host has no memory to give,
    ClientError when `allocate` finds no room.
    """

    def __init__(self, sizes: Sequence[int] = (64 * MIB,), *, gap: int = MIB, mmap_offset: int = 0) -> None:
        self.regions: list[Region] = []
        self._views: list[memoryview] = []
        address = _FIRST_GUEST_ADDRESS
        for index, size in enumerate(sizes):
            user_address = _USER_OFFSET + index * _USER_STRIDE + address
            self.regions.append(_map_region(address, size, user_address, mmap_offset))
            address += size + gap
        self._starts = [region.guest_address for region in self.regions]
        self._free: list[Span] = []
        for region in self.regions:
            self.release(Span(region.guest_address, region.size))

    def read(self, address: int, length: int) -> bytes:
        return b"".join(bytes(mapping[at : at + count]) for mapping, at, count in self._pieces(address, length))

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        done = 0
        for mapping, at, count in self._pieces(address, len(data)):
            mapping[at : at + count] = data[done : done + count]
            done += count

    def view(self, span: Span) -> memoryview:
        """A writable view of a span that lies in one region; `close` releases it."""
        region, at = self._locate(span.address)
        assert at + span.length <= region.size, f"{span} crosses the end of its region"
        self._views.append(memoryview(region.mapping)[at : at + span.length])
        return self._views[-1]

    def user_address(self, address: int) -> int:
        region, at = self._locate(address)
        return region.user_address + at

    def allocate(self, length: int, *, one_region: bool = False) -> Span:
        """First fit, aligned to 16 bytes; with `one_region` the span does not cross a region's border."""
        rounded = _round_up(length)
        for index, free in enumerate(self._free):
            if free.length < rounded:
                continue
            address = self._fit(free, rounded, one_region)
            if address is not None:
                self._free[index : index + 1] = _around(free, Span(address, rounded))
                return Span(address, length)
        room = sum(free.length for free in self._free)
        raise ClientError(f"guest memory has no room for {length} bytes in a row ({room} bytes are free)")

    def release(self, span: Span) -> None:
        """Gives back what `allocate` gave; it joins the free spans beside it."""
        span = Span(span.address, _round_up(span.length))
        place = bisect_right(self._free, span.address, key=_address)
        if place < len(self._free) and self._free[place].address == span.end:
            span = Span(span.address, span.length + self._free.pop(place).length)
        if place and self._free[place - 1].end == span.address:
            place -= 1
            span = Span(self._free[place].address, self._free.pop(place).length + span.length)
        self._free.insert(place, span)

    def close(self) -> None:
        """Unmaps all regions; every view is dead afterwards."""
        for view in self._views:
            view.release()
        for region in self.regions:
            region.mapping.close()
            os.close(region.descriptor)
        self._views.clear()
        self.regions.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _locate(self, address: int) -> tuple[Region, int]:
        index = bisect_right(self._starts, address) - 1
        assert index >= 0, f"guest address {address:#x} lies below guest memory"
        region = self.regions[index]
        assert address < region.guest_address + region.size, f"guest address {address:#x} lies in a gap"
        return region, address - region.guest_address

    def _pieces(self, address: int, length: int) -> Iterator[tuple[mmap.mmap, int, int]]:
        while length:
            region, at = self._locate(address)
            count = min(length, region.size - at)
            yield region.mapping, at, count
            address += count
            length -= count

    def _fit(self, free: Span, length: int, one_region: bool) -> int | None:
        """The lowest fit address of a free span: its start, or, not to cross a border, the start of a region in it."""
        if not (one_region and self._crosses(free.address, length)):
            return free.address
        later = (start for start in self._starts if free.address < start and start + length <= free.end)
        return next((start for start in later if not self._crosses(start, length)), None)

    def _crosses(self, address: int, length: int) -> bool:
        region, at = self._locate(address)
        return at + length > region.size


def _round_up(length: int) -> int:
    return -(-length // _ALIGNMENT) * _ALIGNMENT


def _address(span: Span) -> int:
    return span.address


def _around(free: Span, taken: Span) -> list[Span]:
    """What is left of a free span."""
    before = Span(free.address, taken.address - free.address)
    after = Span(taken.end, free.end - taken.end)
    return [span for span in (before, after) if span.length]


def _map_region(guest_address: int, size: int, user_address: int, mmap_offset: int) -> Region:
    assert size % mmap.PAGESIZE == 0, "a region is whole pages"
    assert mmap_offset % mmap.ALLOCATIONGRANULARITY == 0, "mmap takes offsets of whole pages"
    descriptor = os.memfd_create("vstore-client", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, mmap_offset + size)
    # As VMMs do: a back-end may refuse memory that could be truncated under its feet.
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    mapping = mmap.mmap(descriptor, size, offset=mmap_offset)
    return Region(guest_address, size, user_address, descriptor, mmap_offset, mapping)
