import random

import pytest

from vstore.transfer.blocks import first_difference, is_zero, joined, nonzero, same, unlike


def buffer(length: int, *written: int) -> memoryview:
    data = bytearray(length)
    for at in written:
        data[at] = 1
    return memoryview(data)


@pytest.mark.parametrize("length", [1, 511, 4096, 5000, 1 << 20, (1 << 20) + 1, 3 << 20])
def test_zeros_are_zeros_up_to_the_last_byte(length: int) -> None:
    assert is_zero(buffer(length))
    assert not is_zero(buffer(length, length - 1))
    assert not is_zero(buffer(length, 0))


@pytest.mark.parametrize("length", [4096, 40960, 40960 + 512, 512])
@pytest.mark.parametrize("seed", range(20))
def test_pieces_that_hold_anything_are_found(length: int, seed: int) -> None:
    draw = random.Random(seed)
    view = buffer(length, *(draw.randrange(length) for _ in range(draw.randrange(6))))
    pieces = [(at, min(at + 4096, length)) for at in range(0, length, 4096)]
    assert list(nonzero(view, 4096)) == list(joined(p for p in pieces if any(view[slice(*p)])))


@pytest.mark.parametrize("seed", range(20))
def test_pieces_that_differ_are_found(seed: int) -> None:
    draw = random.Random(seed)
    length = draw.randrange(1, 40000)
    one, two = (buffer(length, *(draw.randrange(length) for _ in range(draw.randrange(3)))) for _ in range(2))
    pieces = [(at, min(at + 4096, length)) for at in range(0, length, 4096)]
    assert list(unlike(one, two, 4096)) == list(joined(p for p in pieces if one[slice(*p)] != two[slice(*p)]))
    first = next((at for at in range(length) if one[at] != two[at]), None)
    assert first_difference(one, two) == first
    assert same(one, two) is (first is None)
