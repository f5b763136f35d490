"""TargetPort: where the target meets its initiator (SAM-5 4.5.7): a vhost-user socket and the endpoint behind it."""

import contextlib
import socket
from collections.abc import Callable, Iterable, Iterator
from typing import Self

from vstore.target.errors import ErrorCode, TargetError
from vstore.target.lun import MappedLun
from vstore.target.packet import Descriptors
from vstore.target.sockets import adopt, listen
from vstore.target.verbs import Configure, Event, FrontendConnected, FrontendDisconnected, RingBroken, VringStatus
from vstore.vhost_user.keeping import Keeping, Kept
from vstore.vhost_user.server import Server
from vstore.vhost_user.virtio_scsi import POLL_NS, ScsiEndpoint

_Tell = Callable[[Event], None]


class TargetPort:
    """Made by `open`. Its LUNs are the process's to open and close."""

    def __init__(self, endpoint: ScsiEndpoint, server: Server, remove_socket: Callable[[], None]) -> None:
        self._endpoint = endpoint
        self._server = server
        self.remove_socket = remove_socket  # what was made in the file system; twice does no harm

    @classmethod
    async def open(
        cls,
        request: Configure,
        descriptors: Descriptors,
        luns: Iterable[MappedLun],
        tell: _Tell,
        *,
        keeping: Keeping | None = None,
        kept: Kept | None = None,
    ) -> Self:
        """Listens, with `luns` there already, and goes on with what was kept of another process.

        Raises TargetError, and leaves nothing behind.
        """
        async with contextlib.AsyncExitStack() as undo:
            listening, remove_socket = _listening(request, descriptors)
            undo.callback(remove_socket)
            endpoint = _endpoint(request, keeping)
            undo.push_async_callback(endpoint.close)
            port = cls(endpoint, Server(endpoint, listener=listening, keeping=keeping), remove_socket)
            for mapped in luns:
                port.put(mapped)
            endpoint.on_ring_broken(lambda vring: tell(RingBroken(vring=vring)))
            port._server.on_connection(lambda there: tell(FrontendConnected() if there else FrontendDisconnected()))
            await port._server.start(kept)
            undo.pop_all()
        return port

    @property
    def connected(self) -> bool:
        return self._server.connected

    def put(self, mapped: MappedLun) -> None:
        """Hot: a running guest is told."""
        self._endpoint.map_lun(*mapped.address, mapped.unit, mapped.disk.volume)
        mapped.port = self

    async def take(self, mapped: MappedLun) -> None:
        """Hot: returns when no command uses the LUN any more."""
        await self._endpoint.unmap_lun(*mapped.address)
        mapped.port = None

    async def settled(self, mapped: MappedLun) -> None:
        """Returns when every command for the LUN that came before has ended."""
        await self._endpoint.settled(*mapped.address)

    def capacity_changed(self, mapped: MappedLun) -> None:
        self._endpoint.capacity_changed(*mapped.address)

    def in_flight(self, mapped: MappedLun) -> int:
        """Commands that are under way; of a LUN that is leaving nobody counts them any more."""
        try:
            return self._endpoint.in_flight(*mapped.address)
        except LookupError:
            return 0

    def vrings(self) -> Iterator[VringStatus]:
        for vring, counters in enumerate(self._endpoint.counters()):
            flags = {name: bool(getattr(counters, name)) for name in ("started", "enabled", "broken")}
            yield VringStatus(vring=vring, **{**counters._asdict(), **flags})

    async def stop(self) -> None:
        """Ends the session, and listens no more; nothing is in flight afterwards."""
        await self._server.stop()
        self.remove_socket()

    async def close(self) -> None:
        """Call it when it is stopped."""
        await self._endpoint.close()


def _listening(request: Configure, descriptors: Descriptors) -> tuple[socket.socket, Callable[[], None]]:
    """A socket, and what undoes that: one that was handed in is only closed, its path is not ours."""
    handed = descriptors.take()
    if handed is not None:
        adopted = adopt(handed)
        return adopted, adopted.close
    listener = listen(request.socket, socket.SOCK_STREAM)
    return listener.socket, listener.close


def _endpoint(request: Configure, keeping: Keeping | None) -> ScsiEndpoint:
    try:
        return ScsiEndpoint(
            request_queues=request.request_queues,
            threads=request.threads,
            config_space=request.config_space,
            name=request.name,
            port=request.port,
            poll_ns=POLL_NS if request.poll_us is None else request.poll_us * 1000,
            keeping=keeping,
        )
    except OSError as error:
        raise TargetError(ErrorCode.HOST_ERROR, f"the data plane cannot start: {error.strerror}") from error
