"""A live back-end in this process: ScsiEndpoint and Server on an event loop in a thread of their own.

The client blocks its thread while it waits, so the endpoint needs another. Everything that touches the endpoint goes
through `call` or `run`, which execute in that thread.
"""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Self, TypeVar

from formats.image import Image
from vstore.disk import Disk
from vstore.scsi.identity import Identity
from vstore.scsi.logical_unit import LogicalUnit
from vstore.vhost_user.server import Server
from vstore.vhost_user.virtio_scsi import ScsiEndpoint

T = TypeVar("T")


class LiveEndpoint:
    """Serves at `path` until closed. `fast` False takes the fast path's table away: Python answers everything."""

    def __init__(self, path: Path, *, request_queues: int = 1, threads: int = 1, fast: bool = True) -> None:
        self.path = path
        self.disks: dict[tuple[int, int], Disk] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self.endpoint = self.call(lambda: ScsiEndpoint(request_queues=request_queues, threads=threads))
        if not fast:
            self.endpoint.device.set_fast_rows([])
        self._server = self.call(lambda: Server(self.endpoint, path=path))
        self.run(self._server.start())

    def map(self, image: Image, target: int = 0, lun: int = 0, *, serial: str = "LIVE", **options: Any) -> LogicalUnit:
        """Makes a unit of an image that is then the endpoint's; `options` are LogicalUnit's."""
        return self.map_disk(Disk(image), target, lun, serial=serial, **options)

    def map_disk(
        self, disk: Disk, target: int = 0, lun: int = 0, *, serial: str = "LIVE", **options: Any
    ) -> LogicalUnit:
        """The same of a disk that was opened already."""
        return self.call(lambda: self._map(disk, target, lun, serial, options))

    def unmap(self, target: int = 0, lun: int = 0) -> None:
        self.run(self.endpoint.unmap_lun(target, lun))
        self.call(self.disks.pop((target, lun)).close)

    def resize(self, length: int, target: int = 0, lun: int = 0) -> None:
        """Bytes. Commands that came before have ended when what they may still use is cut off."""
        self.run(self._resize(length, target, lun))

    async def _resize(self, length: int, target: int, lun: int) -> None:
        with self.endpoint.targets[target].luns[lun].limited(length):
            await self.endpoint.settled(target, lun)
            await asyncio.to_thread(self.disks[target, lun].resize, length)
        self.endpoint.capacity_changed(target, lun)

    def await_no_session(self) -> None:
        """Returns when the endpoint has let the last connection go."""
        self.run(self._server.ended())

    def call(self, function: Callable[[], T]) -> T:
        async def inside() -> T:
            return function()

        return self.run(inside())

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(30)

    def close(self) -> None:
        try:
            self.run(self._server.stop())
            self.run(self.endpoint.close())
            for disk in self.disks.values():
                self.call(disk.close)
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(30)
            self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _map(self, disk: Disk, target: int, lun: int, serial: str, options: dict[str, Any]) -> LogicalUnit:
        self.disks[target, lun] = disk
        unit = LogicalUnit(disk, Identity(serial), **options)
        self.endpoint.map_lun(target, lun, unit, disk.volume)
        return unit
