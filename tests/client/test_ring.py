"""Vring against a device played by the test, which reads and writes the ring's memory as virtio 1.2 2.7 prints it."""

import struct
from collections.abc import Iterator

import pytest

from vstore.client.errors import BackendFault, RingFull
from vstore.client.memory import MIB, GuestMemory
from vstore.client.ring import Segment, Used, Vring

SIZE = 8


class Device:
    """The device's side: byte offsets counted by hand from the three structures."""

    def __init__(self, memory: GuestMemory, ring: Vring) -> None:
        self._memory = memory
        self._offset = memory.user_address(memory.regions[0].guest_address) - memory.regions[0].guest_address
        self._ring = ring
        self.seen = 0
        self.used = 0

    def available_index(self) -> int:
        return self._u16(self._ring.available_at + 2)

    def used_event(self) -> int:
        return self._u16(self._ring.available_at + 4 + 2 * SIZE)

    def set_used_flags(self, flags: int) -> None:
        self._write(self._ring.used_at, struct.pack("<H", flags))

    def set_available_event(self, index: int) -> None:
        self._write(self._ring.used_at + 4 + 8 * SIZE, struct.pack("<H", index))

    def fetch(self) -> list[tuple[int, int, bool]]:
        """The next chain: address, length, writable of each buffer, an indirect table followed."""
        head = self._u16(self._ring.available_at + 4 + 2 * (self.seen % SIZE))
        self.seen = (self.seen + 1) & 0xFFFF
        address, length, flags, _ = struct.unpack("<QIHH", self._read(self._ring.descriptors_at + 16 * head, 16))
        if flags & 4:
            return self._chain(self._memory.read(address, length), 0)
        return self._chain(self._read(self._ring.descriptors_at, 16 * SIZE), head)

    def use(self, head: int, length: int) -> None:
        self._write(self._ring.used_at + 4 + 8 * (self.used % SIZE), struct.pack("<II", head, length))
        self.used = (self.used + 1) & 0xFFFF
        self._write(self._ring.used_at + 2, struct.pack("<H", self.used))

    def jump(self, used_index: int) -> None:
        self._write(self._ring.used_at + 2, struct.pack("<H", used_index))

    @staticmethod
    def _chain(table: bytes, at: int) -> list[tuple[int, int, bool]]:
        chain = []
        while True:
            address, length, flags, following = struct.unpack_from("<QIHH", table, 16 * at)
            chain.append((address, length, bool(flags & 2)))
            if not flags & 1:
                return chain
            at = following

    def _u16(self, user_address: int) -> int:
        return int(struct.unpack("<H", self._read(user_address, 2))[0])

    def _read(self, user_address: int, length: int) -> bytes:
        return self._memory.read(user_address - self._offset, length)

    def _write(self, user_address: int, data: bytes) -> None:
        self._memory.write(user_address - self._offset, data)


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory([MIB]) as memory:
        yield memory


def _ring(memory: GuestMemory, *, event_index: bool = False, indirect: bool = False) -> tuple[Vring, Device]:
    ring = Vring(memory, SIZE, event_index=event_index, indirect=indirect)
    return ring, Device(memory, ring)


SEGMENTS = [Segment(0x1000, 51, False), Segment(0x2000, 108, True), Segment(0x3000, 512, True)]
CHAIN = [(0x1000, 51, False), (0x2000, 108, True), (0x3000, 512, True)]


@pytest.mark.parametrize("indirect", [False, True])
def test_the_device_reads_the_chain_that_was_added(memory: GuestMemory, indirect: bool) -> None:
    ring, device = _ring(memory, indirect=indirect)
    for round_ in range(20):
        head = ring.add(SEGMENTS)
        assert device.available_index() == round_
        ring.publish()
        assert device.available_index() == round_ + 1
        assert device.fetch() == CHAIN
        device.use(head, 620)
        assert ring.collect() == [Used(head, 620)]
    ring.close()


def test_chains_may_come_back_in_any_order(memory: GuestMemory) -> None:
    ring, device = _ring(memory)
    heads = [ring.add(SEGMENTS[:2]) for _ in range(4)]
    ring.publish()
    for head in reversed(heads):
        device.use(head, head)
    assert ring.collect() == [Used(head, head) for head in reversed(heads)]
    assert ring.in_flight == 0
    ring.close()


def test_a_full_ring_refuses_and_takes_again_what_came_back(memory: GuestMemory) -> None:
    ring, device = _ring(memory)
    heads = [ring.add(SEGMENTS) for _ in range(2)]
    with pytest.raises(RingFull, match="a chain of 3 descriptors on a virtqueue that has 2 free of 8"):
        ring.add(SEGMENTS)
    ring.publish()
    device.use(heads[0], 0)
    ring.collect()
    ring.add(SEGMENTS)
    ring.close()


def test_indirect_chains_take_one_descriptor_each(memory: GuestMemory) -> None:
    ring, _ = _ring(memory, indirect=True)
    assert len({ring.add(SEGMENTS) for _ in range(SIZE)}) == SIZE
    with pytest.raises(RingFull):
        ring.add(SEGMENTS)
    ring.close()


def test_closing_gives_all_memory_back(memory: GuestMemory) -> None:
    ring, _ = _ring(memory, indirect=True)
    ring.add(SEGMENTS)
    ring.close()
    assert memory.allocate(MIB).length == MIB


def test_without_event_index_the_used_flags_say_whether_to_kick(memory: GuestMemory) -> None:
    ring, device = _ring(memory)
    ring.add(SEGMENTS)
    assert ring.publish()
    device.set_used_flags(1)
    ring.add(SEGMENTS)
    assert not ring.publish()
    ring.close()


@pytest.mark.parametrize(("event", "chains", "kick"), [(0, 1, True), (1, 1, False), (1, 2, True), (0xFFFF, 2, False)])
def test_with_event_index_the_kick_comes_when_the_index_passes_the_event(
    memory: GuestMemory, event: int, chains: int, kick: bool
) -> None:
    ring, device = _ring(memory, event_index=True)
    device.set_available_event(event)
    device.set_used_flags(1)  # means nothing with event index
    for _ in range(chains):
        ring.add(SEGMENTS[:1])
    assert ring.publish() is kick
    ring.close()


def test_arming_asks_for_the_next_used_element_and_tells_when_it_is_there_already(memory: GuestMemory) -> None:
    ring, device = _ring(memory, event_index=True)
    heads = [ring.add(SEGMENTS[:2]) for _ in range(2)]
    ring.publish()
    device.use(heads[0], 1)
    ring.collect()
    assert ring.arm()
    assert device.used_event() == 1
    device.use(heads[1], 1)
    assert not ring.arm()
    ring.collect()
    ring.close()


def test_a_used_element_for_a_chain_that_is_not_in_flight_is_a_fault(memory: GuestMemory) -> None:
    ring, device = _ring(memory)
    head = ring.add(SEGMENTS[:1])
    ring.publish()
    device.use(head ^ 1, 0)
    with pytest.raises(BackendFault, match="heads no chain in flight"):
        ring.collect()
    ring.close()


def test_a_chain_that_comes_back_twice_is_a_fault(memory: GuestMemory) -> None:
    ring, device = _ring(memory)
    heads = [ring.add(SEGMENTS[:1]) for _ in range(2)]
    ring.publish()
    device.use(heads[0], 0)
    device.use(heads[0], 0)
    with pytest.raises(BackendFault, match=f"names descriptor {heads[0]}"):
        ring.collect()
    ring.close()


def test_a_used_index_that_jumps_is_a_fault(memory: GuestMemory) -> None:
    ring, device = _ring(memory)
    ring.add(SEGMENTS)
    ring.publish()
    device.jump(2)
    with pytest.raises(BackendFault, match="advanced by 2 with 1 chains in flight"):
        ring.collect()
    ring.close()


def test_more_bytes_written_than_the_chain_has_room_for_is_a_fault(memory: GuestMemory) -> None:
    ring, device = _ring(memory)
    head = ring.add(SEGMENTS)
    ring.publish()
    device.use(head, 108 + 512 + 1)
    with pytest.raises(BackendFault, match="621 bytes were written to a chain that has room for 620"):
        ring.collect()
    ring.close()
