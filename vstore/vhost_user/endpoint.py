"""What a session needs of the device behind it."""

from typing import Protocol

from vstore.dataplane import Device
from vstore.vhost_user.keeping import Kept
from vstore.vhost_user.messages import Feature, ProtocolFeature


class Endpoint(Protocol):
    """The device behind a session: what it offers, and what it must hear."""

    device: Device
    name: str
    features: Feature
    protocol_features: ProtocolFeature
    vrings: int
    memory_slots: int

    def connected(self) -> None: ...
    def resumed(self, kept: Kept, *, connected: bool) -> None:
        """Instead of connected(): goes on where another process was killed. Nothing of the data plane is taken yet."""

    def serve_notices(self) -> None:
        """Of a connection that goes on, from now on."""

    def negotiated(self, features: Feature) -> None: ...
    def read_config(self, offset: int, length: int) -> bytes: ...
    def write_config(self, offset: int, data: bytes) -> None:
        """Raises RefusalError."""

    async def idle(self, vring: int) -> None:
        """Returns when nothing that was fetched from this (stopped) ring is in flight."""

    async def abort(self) -> None:
        """Ends every command that is not yet with the driver."""

    def reset(self) -> None: ...
    def disconnected(self) -> None: ...
