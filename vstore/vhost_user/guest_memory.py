"""Guest memory as the front-end describes it, region by region; the data plane maps it.

A table that replaces another one leaves alone the regions that are the same in both, so that most changes stop no ring.
"""

import os
from collections.abc import Sequence

from vstore.dataplane import Device
from vstore.record import Record
from vstore.vhost_user.errors import RefusalError
from vstore.vhost_user.messages import MemoryRegion


class Region(Record):
    """A mapped region. `file`: device and inode of what backs it."""

    guest_address: int
    size: int
    user_address: int
    mmap_offset: int
    file: tuple[int, int]

    @property
    def name(self) -> tuple[int, int, int]:
        """By this the front-end takes it away again (vhost-user, REM_MEM_REG)."""
        return self.guest_address, self.size, self.user_address


class Change(Record):
    """From the present regions to a new table: what goes, and what comes with its descriptor."""

    gone: list[Region]
    new: list[tuple[Region, int]]


class GuestMemory:
    """Methods raise RefusalError, or OSError from the data plane."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._regions: list[Region] = []

    def add(self, region: Region, descriptor: int) -> None:
        """The data plane judges overlaps, wrap-around and files that are too short."""
        self._device.memory_add(region.guest_address, region.size, region.user_address, descriptor, region.mmap_offset)
        self._regions.append(region)

    def find(self, guest_address: int, size: int, user_address: int) -> Region:
        for region in self._regions:
            if region.name == (guest_address, size, user_address):
                return region
        raise RefusalError(f"no memory region of {size:#x} bytes at guest address {guest_address:#x}")

    def remove(self, region: Region) -> None:
        """No ring may run, nor anything be in flight."""
        self._device.memory_remove(*region.name)
        self._regions.remove(region)

    def compare(self, table: Sequence[MemoryRegion], descriptors: Sequence[int]) -> Change:
        if len(table) != len(descriptors):
            raise RefusalError(f"{len(table)} memory regions with {len(descriptors)} descriptors")
        wanted = [(describe(row, descriptor), descriptor) for row, descriptor in zip(table, descriptors, strict=True)]
        if len({region.name for region, _ in wanted}) != len(wanted):
            raise RefusalError("the same memory region twice in one table")
        kept = {region for region, _ in wanted} & set(self._regions)
        return Change(
            gone=[region for region in self._regions if region not in kept],
            new=[(region, descriptor) for region, descriptor in wanted if region not in kept],
        )

    def apply(self, change: Change) -> None:
        """If a new region is refused, those before it stay: the front-end then sees its rings fail, not its memory."""
        for region in change.gone:
            self.remove(region)
        for region, descriptor in change.new:
            self.add(region, descriptor)

    def clear(self) -> None:
        for region in list(self._regions):
            self.remove(region)


def describe(row: MemoryRegion, descriptor: int) -> Region:
    status = os.fstat(descriptor)
    return Region(row.guest_address, row.size, row.user_address, row.mmap_offset, (status.st_dev, status.st_ino))
