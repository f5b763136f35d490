"""GuestMemory: addresses, borders, and an allocator that never gives a byte twice."""

import random

import pytest

from vstore.client.errors import ClientError
from vstore.client.memory import GuestMemory, Span

PAGE = 4096


def test_what_is_written_across_a_border_is_read_back_and_lies_in_both_files() -> None:
    with GuestMemory([PAGE, PAGE], gap=0, mmap_offset=PAGE) as memory:
        first, second = memory.regions
        memory.write(second.guest_address - 3, b"abcdef")
        assert memory.read(second.guest_address - 3, 6) == b"abcdef"
        assert first.mapping[-3:] == b"abc"
        assert second.mapping[:3] == b"def"


def test_user_addresses_are_not_in_step_with_guest_addresses() -> None:
    with GuestMemory([PAGE, PAGE], gap=0) as memory:
        first, second = (memory.user_address(region.guest_address) for region in memory.regions)
        assert abs(second - first) != PAGE


def test_a_gap_belongs_to_no_region() -> None:
    with GuestMemory([PAGE, PAGE], gap=PAGE) as memory, pytest.raises(AssertionError, match="lies in a gap"):
        memory.read(memory.regions[0].guest_address + PAGE - 1, 2)


def test_a_span_for_one_region_moves_behind_the_border_that_it_would_cross() -> None:
    with GuestMemory([PAGE, PAGE], gap=0) as memory:
        memory.allocate(PAGE - 16)
        assert memory.allocate(64, one_region=True).address == memory.regions[1].guest_address
        assert memory.allocate(16).end == memory.regions[1].guest_address


def test_full_memory_says_what_was_asked_and_what_is_left() -> None:
    with GuestMemory([PAGE]) as memory:
        memory.allocate(PAGE - 32)
        with pytest.raises(ClientError, match=r"no room for 64 bytes in a row \(32 bytes are free\)"):
            memory.allocate(64)


@pytest.mark.parametrize("seed", range(20))
def test_allocations_never_overlap_and_all_comes_back(seed: int) -> None:
    choice = random.Random(seed)
    with GuestMemory([PAGE * 4, PAGE * 4, PAGE * 4], gap=choice.choice([0, PAGE])) as memory:
        taken: list[Span] = []
        for _ in range(300):
            if taken and choice.random() < 0.5:
                memory.release(taken.pop(choice.randrange(len(taken))))
                continue
            try:
                span = memory.allocate(choice.randrange(1, 3000))
            except ClientError:
                continue
            assert span.address % 16 == 0
            assert all(span.end <= other.address or other.end <= span.address for other in taken)
            taken.append(span)
        for span in taken:
            memory.release(span)
        for region in memory.regions:
            assert memory.allocate(region.size, one_region=True).address == region.guest_address
