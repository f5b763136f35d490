"""What the model needs of a disk, and a disk in memory for tests and fuzzers."""

from typing import Protocol


class Medium(Protocol):
    """Bytes on a disk. Every call raises OSError on failure; its errno decides the sense data.

    Offsets and lengths are bytes inside the medium: to check them is the caller's duty.
    """

    @property
    def length(self) -> int:
        """Bytes."""
        ...

    @property
    def read_only(self) -> bool: ...

    @property
    def deallocates(self) -> bool:
        """Whether deallocating gives space back; deallocated bytes read as zeros."""
        ...

    async def read(self, offset: int, length: int) -> bytes: ...

    async def write(self, offset: int, data: bytes | bytearray | memoryview) -> None: ...

    async def write_zeroes(self, offset: int, length: int, *, deallocate: bool) -> None: ...

    async def flush(self) -> None:
        """Returns when everything written before the call is durable."""
        ...


class MemoryMedium:
    """A disk in memory; its coroutines never suspend."""

    def __init__(self, length: int, *, read_only: bool = False, deallocates: bool = True) -> None:
        self.data = bytearray(length)
        self.read_only = read_only
        self.deallocates = deallocates
        self.flushes = 0

    @property
    def length(self) -> int:
        return len(self.data)

    async def read(self, offset: int, length: int) -> bytes:
        assert 0 <= offset <= offset + length <= len(self.data)
        return bytes(self.data[offset : offset + length])

    async def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        assert 0 <= offset <= offset + len(data) <= len(self.data)
        assert not self.read_only
        self.data[offset : offset + len(data)] = data

    async def write_zeroes(self, offset: int, length: int, *, deallocate: bool) -> None:  # noqa: ARG002
        await self.write(offset, bytes(length))

    async def flush(self) -> None:
        self.flushes += 1
