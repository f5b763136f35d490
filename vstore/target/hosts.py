"""The targets of one process: the one that it was started for, and those that it was asked to host beside that.

    control socket A --> ControlServer --> TargetProcess A --+                    each with a vhost-user socket and a
    control socket B --> ControlServer --> TargetProcess B --+--> SharedLuns      virtual machine of its own

An image that several virtual machines write to has to be one logical unit, and a logical unit lives in one process: it
holds the image's locks, its map and its reservations. To whoever steers them hosted targets are targets like any other.
"""

import asyncio
import logging
import socket

from vstore.target.control import ControlServer
from vstore.target.process import TargetProcess
from vstore.target.shared import SharedLuns
from vstore.target.sockets import listen
from vstore.vhost_user.keeping import Keeping
from vstore.vhost_user.listener import Listener

_log = logging.getLogger(__name__)


class Hosts:
    def __init__(self) -> None:
        self._shared = SharedLuns()
        self._serving: dict[TargetProcess, asyncio.Task[None]] = {}
        self.unflushed: list[str] = []

    def serve(self, listener: Listener, *, hosted: bool = False) -> TargetProcess:
        """One more target, steered through this socket until it is stopped."""
        process = TargetProcess(self._shared, self.host, hosted=hosted, keeping=Keeping())
        self._serving[process] = asyncio.get_running_loop().create_task(self._serve(process, listener))
        return process

    async def host(self, control: str) -> None:
        """Raises TargetError."""
        self.serve(listen(control, socket.SOCK_SEQPACKET), hosted=True)
        _log.info("target_hosted", extra={"control": control})

    async def ended(self) -> None:
        """Returns when every target has ended."""
        while self._serving:
            await asyncio.wait(list(self._serving.values()))

    async def end(self) -> None:
        """Ends all of them in order."""
        await asyncio.gather(*(process.end() for process in list(self._serving)), return_exceptions=True)

    def abandon(self) -> None:
        for process in self._serving:
            process.abandon()

    async def _serve(self, process: TargetProcess, listener: Listener) -> None:
        control = ControlServer(process, listener.socket)
        accepting = asyncio.get_running_loop().create_task(control.serve())
        try:
            await process.stopped.wait()
        finally:
            accepting.cancel()
            await control.close()
            listener.close()
            self.unflushed.extend(process.unflushed)
            del self._serving[process]
