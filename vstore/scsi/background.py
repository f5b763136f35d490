"""Work of a logical unit that goes on whatever becomes of the command that began it."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

_T = TypeVar("_T")


class Background:
    def __init__(self) -> None:
        self._running: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        return len(self._running)

    def start(self, work: Coroutine[Any, Any, _T]) -> asyncio.Task[_T] | None:
        """None without an event loop: the work is still the caller's then."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return None
        running = loop.create_task(work)
        self._running.add(running)
        running.add_done_callback(self._ended)
        return running

    def _ended(self, work: asyncio.Task[Any]) -> None:
        self._running.discard(work)
        if not work.cancelled():
            work.exception()  # whoever waited for it has it, or wanted no more of it

    async def finish(self, work: Coroutine[Any, Any, _T]) -> _T:
        """What the work returns, or raises; a caller that is cancelled goes, and the work goes on."""
        running = self.start(work)
        return await (work if running is None else asyncio.shield(running))

    async def settled(self) -> None:
        """Returns when nothing is left."""
        while self._running:
            await asyncio.wait(self._running)
