import pytest

from vstore.scsi.medium import MemoryMedium


async def test_bytes_written_are_read_again() -> None:
    medium = MemoryMedium(100)
    await medium.write(10, b"abc")
    await medium.write(13, memoryview(b"de"))
    assert await medium.read(9, 7) == b"\0abcde\0"
    await medium.write_zeroes(11, 2, deallocate=True)
    assert await medium.read(9, 7) == b"\0a\0\0de\0"
    await medium.flush()
    assert (medium.length, medium.flushes) == (100, 1)


async def test_a_range_outside_the_medium_is_a_defect_of_the_caller() -> None:
    medium = MemoryMedium(100)
    for offset, length in ((100, 1), (-1, 1), (0, 101)):
        with pytest.raises(AssertionError):
            await medium.read(offset, length)
        with pytest.raises(AssertionError):
            await medium.write(offset, bytes(length))


async def test_so_is_writing_to_a_read_only_one() -> None:
    with pytest.raises(AssertionError):
        await MemoryMedium(100, read_only=True).write(0, b"a")
