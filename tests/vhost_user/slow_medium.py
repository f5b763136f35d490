"""A disk in memory whose every access waits until the test lets it go on."""

import asyncio

from vstore.scsi.medium import MemoryMedium


class SlowMedium(MemoryMedium):
    """`begun`: accesses that have started, `ended`: those that came to an end, by success or by cancellation.

    As a real disk does, an access that is cancelled ends only when what it has under way has ended: see `stubborn`.
    """

    def __init__(self, length: int) -> None:
        super().__init__(length)
        self.gate = asyncio.Event()
        self.stubborn: asyncio.Event | None = None
        self.begun = 0
        self.ended = 0

    async def read(self, offset: int, length: int) -> bytes:
        await self._wait()
        return await super().read(offset, length)

    async def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        await self._wait()
        await super().write(offset, data)

    async def _wait(self) -> None:
        self.begun += 1
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            if self.stubborn:
                await self.stubborn.wait()
            raise
        finally:
            self.ended += 1
