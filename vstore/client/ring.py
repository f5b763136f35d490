"""The driver's side of a split virtqueue (virtio 1.2, 2.7), with indirect descriptors and event index.

    descriptor table   16 bytes a descriptor: address, length, flags, next      written by us, read by the device
    available ring     flags, idx, ring[n], used_event                          written by us, read by the device
    used ring          flags, idx, ring[n] of (id, length), avail_event         written by the device, read by us

Memory order in CPython's terms. The interpreter runs one byte code after the other, so only the processor may reorder.
Each index is one aligned 16-bit load or store (a memoryview cast to "H"). x86-64 keeps loads among loads and
stores among stores; other processors do not, so a fence stands wherever the specification asks for a barrier. The one
reordering that every processor does, a store passing a later load, is where a lost notification comes from:
between publishing an index and reading whether the other side wants to be told. See `_fence`.

What the device writes is checked: a used element must name a chain in flight and a length that the chain has room for.
"""

import struct
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from vstore.client.errors import BackendFault, RingFull
from vstore.client.memory import GuestMemory, Span

_DESCRIPTOR = struct.Struct("<QIHH")
_NEXT = 1
_WRITE = 2
_INDIRECT = 4
_NO_NOTIFY = 1
_U16 = 0xFFFF

_FENCE = threading.Lock()


def _fence() -> None:
    """A full memory barrier.

    CPython's lock is a semaphore: an atomic compare-and-exchange to acquire, an atomic add to release. On x86-64 each
    is a locked instruction, which is a full barrier. On arm64 they are an acquire and a release, between which a store
    and a load may still change places; the second pair ends that, because an acquire never passes an earlier release.
    """
    with _FENCE:
        pass
    with _FENCE:
        pass


@dataclass(frozen=True, slots=True)
class Segment:
    """A buffer for one descriptor: guest address and length in bytes; the device reads it, or writes it."""

    address: int
    length: int
    device_writes: bool


@dataclass(frozen=True, slots=True)
class Used:
    """A chain that the device has given back: its head, and how many bytes the device says it wrote."""

    head: int
    length: int


@dataclass(slots=True)
class _Chain:
    """A chain in flight: its descriptors in the table, its indirect table, and the room it gives the device."""

    descriptors: list[int]
    table: Span | None
    room: int


class Vring:
    """One virtqueue of `size` descriptors (a power of two) in guest memory; both its indexes start at `first_index`.

    `add` any number of chains, then `publish` them at once: True says that the device is to be kicked.
    """

    def __init__(
        self, memory: GuestMemory, size: int, *, event_index: bool, indirect: bool, first_index: int = 0
    ) -> None:
        assert sys.byteorder == "little", "split rings are little-endian, and so must the host be"
        assert size > 0, "a virtqueue has descriptors"
        assert size & (size - 1) == 0, "a split virtqueue's size is a power of two (virtio 1.2 2.7)"
        self.size = size
        self.event_index = event_index
        self.indirect = indirect
        self._memory = memory
        self._spans = [
            memory.allocate(16 * size, one_region=True),
            memory.allocate(6 + 2 * size, one_region=True),
            memory.allocate(6 + 8 * size, one_region=True),
        ]
        self.descriptors_at, self.available_at, self.used_at = (
            memory.user_address(span.address) for span in self._spans
        )
        table, available, used = (memory.view(span) for span in self._spans)
        for view in (table, available, used):
            view[:] = bytes(len(view))
        self._table = table
        self._available = available.cast("H")
        self._used = used.cast("H")
        self._free = list(range(size))
        self._chains: dict[int, _Chain] = {}
        self._available_index = self._published = self._used_index = first_index
        # As the memory would stand after that many chains: indexes and event indexes in step on both sides.
        self._available[1] = self._used[1] = first_index
        self._available[2 + size] = self._used[2 + 4 * size] = first_index

    @property
    def in_flight(self) -> int:
        return len(self._chains)

    @property
    def base(self) -> int:
        """The index up to which chains have been published: what a device that fetched all of them answers as base."""
        return self._published

    def add(self, segments: Sequence[Segment]) -> int:
        """Puts a chain on the available ring, still unpublished; returns its head. Raises RingFull."""
        indirect = self.indirect and len(segments) > 1
        needed = 1 if indirect else len(segments)
        if needed > len(self._free):
            raise RingFull(
                f"a chain of {needed} descriptors on a virtqueue that has {len(self._free)} free of {self.size}"
            )
        taken = [self._free.pop() for _ in range(needed)]
        table = self._write_indirect(taken[0], segments) if indirect else None
        if not indirect:
            self._write_chain(taken, segments)
        room = sum(segment.length for segment in segments if segment.device_writes)
        self._chains[taken[0]] = _Chain(taken, table, room)
        self._available[2 + self._available_index % self.size] = taken[0]
        self._available_index = (self._available_index + 1) & _U16
        return taken[0]

    def publish(self) -> bool:
        """Shows all added chains to the device; returns whether it wants to be notified of them (virtio 1.2 2.7.10)."""
        old, new = self._published, self._available_index
        _fence()  # The chains, and only then the index that names them.
        self._available[1] = new
        self._published = new
        _fence()  # The index, and only then the look at what the device wants.
        if not self.event_index:
            return not self._used[0] & _NO_NOTIFY
        event = self._used[2 + 4 * self.size]
        return (new - event - 1) & _U16 < (new - old) & _U16

    def collect(self) -> list[Used]:
        """Takes what the device has given back. Raises BackendFault when that cannot be true."""
        end = self._used[1]
        _fence()  # The index, and only then the elements that it covers.
        count = (end - self._used_index) & _U16
        if count > len(self._chains):
            raise BackendFault(f"the used index advanced by {count} with {len(self._chains)} chains in flight")
        return [self._take_used() for _ in range(count)]

    def arm(self) -> bool:
        """Asks for a notification of the next used element; False when one is there already and none will come."""
        if self.event_index:
            self._available[2 + self.size] = self._used_index
        _fence()  # The wish, and only then the look whether the device was faster.
        return self._used[1] == self._used_index

    def close(self) -> None:
        """Gives the ring's memory back; the device must have been stopped."""
        for chain in self._chains.values():
            self._release_table(chain)
        self._chains.clear()
        for view in (self._available, self._used):
            view.release()
        for span in self._spans:
            self._memory.release(span)

    def _take_used(self) -> Used:
        at = 2 + self._used_index % self.size * 4
        head = self._used[at] | self._used[at + 1] << 16
        length = self._used[at + 2] | self._used[at + 3] << 16
        self._used_index = (self._used_index + 1) & _U16
        chain = self._chains.pop(head, None)
        if chain is None:
            raise BackendFault(f"a used element names descriptor {head}, which heads no chain in flight")
        if length > chain.room:
            raise BackendFault(
                f"a used element says {length} bytes were written to a chain that has room for {chain.room}"
            )
        self._free.extend(chain.descriptors)
        self._release_table(chain)
        return Used(head, length)

    def _write_chain(self, taken: Sequence[int], segments: Sequence[Segment]) -> None:
        for place, entry in zip(taken, _entries(segments, taken), strict=True):
            _DESCRIPTOR.pack_into(self._table, 16 * place, *entry)

    def _write_indirect(self, place: int, segments: Sequence[Segment]) -> Span:
        span = self._memory.allocate(16 * len(segments))
        entries = _entries(segments, range(len(segments)))
        self._memory.write(span.address, b"".join(_DESCRIPTOR.pack(*entry) for entry in entries))
        _DESCRIPTOR.pack_into(self._table, 16 * place, span.address, span.length, _INDIRECT, 0)
        return span

    def _release_table(self, chain: _Chain) -> None:
        if chain.table is not None:
            self._memory.release(chain.table)


def _entries(segments: Sequence[Segment], places: Sequence[int]) -> list[tuple[int, int, int, int]]:
    """Descriptors (address, length, flags, next) that link `segments` in a row through `places`."""
    following = [*places[1:], 0]
    return [
        (
            segment.address,
            segment.length,
            (_WRITE if segment.device_writes else 0) | (_NEXT if index + 1 < len(segments) else 0),
            following[index],
        )
        for index, segment in enumerate(segments)
    ]
