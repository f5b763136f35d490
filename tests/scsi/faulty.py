"""A disk in memory that fails, or waits, where a test wants it to; and a state that cannot be kept."""

import asyncio
import os
from collections.abc import Callable

from vstore.scsi.kept_state import Section
from vstore.scsi.medium import MemoryMedium


class FaultyMedium(MemoryMedium):
    """`errors`: errno by operation (`read`, `write`, `write_zeroes`, `flush`); `calls`: what was asked for."""

    def __init__(self, length: int = 1 << 20, **settings: bool) -> None:
        super().__init__(length, **settings)
        self.errors: dict[str, int | Exception] = {}
        self.calls: list[tuple[object, ...]] = []
        self.gate: asyncio.Event | None = None
        self.called = asyncio.Event()
        self.on_write: Callable[[bytes | bytearray | memoryview], None] = lambda _: None

    async def _called(self, *call: object) -> None:
        self.calls.append(call)
        self.called.set()
        if self.gate:
            await self.gate.wait()
        error = self.errors.get(str(call[0]))
        if isinstance(error, Exception):
            raise error
        if error:
            raise OSError(error, os.strerror(error))

    async def read(self, offset: int, length: int) -> bytes:
        await self._called("read", offset, length)
        return await super().read(offset, length)

    async def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        await self._called("write", offset, len(data))
        self.on_write(data)
        await super().write(offset, data)

    async def write_zeroes(self, offset: int, length: int, *, deallocate: bool) -> None:
        await self._called("write_zeroes", offset, length, deallocate)
        self.data[offset : offset + length] = bytes(length)

    async def replace_key(self) -> None:
        await self._called("replace_key")
        await super().replace_key()

    async def flush(self) -> None:
        await self._called("flush")
        await super().flush()


class FailingState:
    """Nothing can be kept any more."""

    def __init__(self, number: int) -> None:
        self.number = number

    def section(self, _: str) -> Section:
        return self

    def load(self) -> bytes | None:
        return None

    async def save(self, _: bytes) -> None:
        raise OSError(self.number, "the host fails")

    def save_blocking(self, _: bytes) -> None:
        raise OSError(self.number, "the host fails")
