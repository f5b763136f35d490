"""Gives each front-end that connects a Session, one at a time.

A vhost-user device has one front-end. A second one is turned away while the first lives; one that comes when the first
is gone but not yet cleaned up after waits its turn: that is how a front-end reconnects.
"""

import asyncio
import contextlib
import logging
import os
import socket
import struct
from collections.abc import Callable, Collection

from vstore.vhost_user.endpoint import Endpoint
from vstore.vhost_user.keeping import CONNECTION, Keeping, Kept
from vstore.vhost_user.listener import Listener, Permissions
from vstore.vhost_user.session import Session

log = logging.getLogger(__name__)

_CREDENTIALS = struct.Struct("3i")  # struct ucred: process, user, group
_PAUSE = 0.1  # seconds after accept() failed, for want of descriptors perhaps


class Server:
    """Serves front-ends from start() to stop().

    Give one of: `path`, where it listens (with `permissions`); `listener`, a socket that listens or is connected
    already; `descriptor`, the same by number. Both of the latter are taken over. `users`: none but these user ids may
    connect. A connected socket is served once.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        path: str | os.PathLike[str] | None = None,
        *,
        listener: socket.socket | None = None,
        descriptor: int | None = None,
        permissions: Permissions | None = None,
        users: Collection[int] | None = None,
        keeping: Keeping | None = None,
    ) -> None:
        if [path, listener, descriptor].count(None) != 2:
            raise ValueError("a server has a path, a listener or a descriptor: one of them")
        self._endpoint = endpoint
        self._path = path
        self._given = socket.socket(fileno=descriptor) if descriptor is not None else listener
        self._permissions = permissions
        self._users = users
        self._keeping = keeping
        self._file: Listener | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._session: Session | None = None
        self._serving: asyncio.Task[None] | None = None
        self._listeners: list[Callable[[bool], None]] = []

    @property
    def connected(self) -> bool:
        """Whether a front-end is there, or still being cleaned up after."""
        return self._serving is not None and not self._serving.done()

    def on_connection(self, listener: Callable[[bool], None]) -> None:
        """Calls it with True when a front-end has come, with False when it is gone and cleaned up after."""
        self._listeners.append(listener)

    async def start(self, kept: Kept | None = None) -> None:
        """`kept`: goes on with that connection first; it is the caller's. Raises ValueError for an impossible path,
        OSError where nobody can listen."""
        if self._path is not None:
            self._file = Listener(self._path, self._permissions)
            self._given = self._file.socket
        assert self._given
        if kept is not None and CONNECTION in kept:
            self._serve(socket.socket(fileno=os.dup(kept[CONNECTION].descriptors[0])), kept)
            assert self._session
            await self._session.resumed.wait()
        elif kept is not None:
            self._endpoint.resumed(kept, connected=False)
        if self._given.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            self._given.setblocking(False)
            self._accepting = asyncio.create_task(self._accept(self._given))
        else:
            self._serve(self._given)

    async def stop(self) -> None:
        """Listens no more and ends the session; returns when nothing of it is in flight."""
        if self._accepting:
            self._accepting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._accepting
        if self._session:
            self._session.close()
        await self.ended()
        if self._file:
            self._file.close()
        elif self._given:
            self._given.close()

    async def ended(self) -> None:
        """Returns when there is no session (any more)."""
        if self._serving:
            await asyncio.wait([self._serving])

    async def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = await asyncio.get_running_loop().sock_accept(listener)
            except OSError as error:
                log.warning("%s: cannot accept a front-end: %s", self._endpoint.name, error)
                await asyncio.sleep(_PAUSE)
                continue
            admitted = False
            try:
                admitted = await self._admits(connection)
            finally:
                if admitted:
                    self._serve(connection)
                else:
                    connection.close()

    async def _admits(self, connection: socket.socket) -> bool:
        process, user, _ = _CREDENTIALS.unpack(
            connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        )
        if self._users is not None and user not in self._users:
            log.warning("%s: process %d of user %d may not connect", self._endpoint.name, process, user)
            return False
        if self.connected and self._session and not self._session.left:
            log.warning("%s: process %d turned away: a front-end is connected", self._endpoint.name, process)
            return False
        await self.ended()
        return True

    def _serve(self, connection: socket.socket, kept: Kept | None = None) -> None:
        if self._keeping:
            self._keeping.put(CONNECTION, descriptors=[connection.fileno()])
        self._session = Session(self._endpoint, connection, self._keeping, kept)
        self._serving = asyncio.create_task(self._session.run())
        self._serving.add_done_callback(self._left)
        self._tell(True)

    def _left(self, serving: asyncio.Task[None]) -> None:
        if not serving.cancelled() and (error := serving.exception()):
            log.error("%s: session failed", self._endpoint.name, exc_info=error)
        self._tell(False)

    def _tell(self, connected: bool) -> None:
        for listener in self._listeners:
            listener(connected)
