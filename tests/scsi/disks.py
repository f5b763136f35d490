"""Disks that tests of the block commands want."""

from tests.scsi.faulty import FaultyMedium
from tests.scsi.initiator import Initiator, make_unit
from vstore.scsi.medium import MemoryMedium


class HugeMedium(MemoryMedium):
    """Claims a length; holds only zeros."""

    def __init__(self, length: int) -> None:
        super().__init__(0)
        self.claimed = length
        self.zeroed: list[tuple[int, int, bool]] = []

    @property
    def length(self) -> int:
        return self.claimed

    async def read(self, offset: int, length: int) -> bytes:
        assert offset + length <= self.claimed
        return bytes(length)

    async def write_zeroes(self, offset: int, length: int, *, deallocate: bool) -> None:
        self.zeroed.append((offset, length, deallocate))


def patterned(**settings: int) -> Initiator:
    """Each block is filled with its number."""
    initiator = Initiator(make_unit(**settings))
    size = initiator.unit.logical_block_length
    for block in range(initiator.unit.blocks):
        initiator.data[block * size : (block + 1) * size] = bytes([block & 0xFF]) * size
    return initiator


def with_log(**settings: bool) -> tuple[Initiator, FaultyMedium]:
    medium = FaultyMedium()
    initiator = Initiator(make_unit(medium=medium, **settings))
    return initiator, medium
