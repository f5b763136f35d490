"""The vhost-user front-end's side of the socket: messages told, answers awaited, features negotiated.

The structures are declared here a second time and not taken from the back-end's declarations: this client is the oracle
that the back-end is tested with, and a fault in a shared table would be a fault in both and so be seen by neither.
Every message waits for its acknowledgement where the back-end can give one (REPLY_ACK), so an error names its message.
"""

import os
import socket
import struct
import time
from collections.abc import Sequence
from enum import IntEnum, IntFlag
from typing import Self

from vstore.client.errors import BackendFault, BackendGone, BackendRefused, BackendTimeout
from vstore.client.memory import Region


class Request(IntEnum):
    """Front-end message types (vhost-user, "Front-end message types")."""

    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    SET_MEM_TABLE = 5
    SET_LOG_BASE = 6
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    SET_VRING_ERR = 14
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    GET_QUEUE_NUM = 17
    SET_VRING_ENABLE = 18
    GET_CONFIG = 24
    RESET_DEVICE = 34
    GET_MAX_MEM_SLOTS = 36
    ADD_MEM_REG = 37
    REM_MEM_REG = 38


class Feature(IntFlag):
    """Virtio feature bits that mean the same for every device, and vhost-user's own two."""

    LOG_ALL = 1 << 26
    RING_INDIRECT_DESC = 1 << 28
    RING_EVENT_IDX = 1 << 29
    PROTOCOL_FEATURES = 1 << 30
    VERSION_1 = 1 << 32


class ProtocolFeature(IntFlag):
    """vhost-user protocol feature bits that this front-end knows."""

    MQ = 1 << 0
    LOG_SHMFD = 1 << 1
    REPLY_ACK = 1 << 3
    CONFIG = 1 << 9
    RESET_DEVICE = 1 << 13
    CONFIGURE_MEM_SLOTS = 1 << 15


KNOWN_PROTOCOL_FEATURES = ProtocolFeature(sum(ProtocolFeature))

_HEADER = struct.Struct("<III")  # request, flags, size of the payload
_U64 = struct.Struct("<Q")
_VRING_STATE = struct.Struct("<II")  # index, number
_VRING_ADDRESSES = struct.Struct("<IIQQQQ")  # index, flags, descriptor, used, available, log
_REGION = struct.Struct("<QQQQ")  # guest address, size, user address, mmap offset
_CONFIG = struct.Struct("<III")  # offset, size, flags
_VERSION = 1
_VERSION_MASK = 3
_REPLY = 1 << 2
_NEED_REPLY = 1 << 3
_NO_DESCRIPTOR = 1 << 8
_MAX_PAYLOAD = 4096
_MEM_TABLE_REGIONS = 8


class Frontend:
    """One connection to a back-end that listens at `path`; `timeout`: seconds that any one message may take.

    Every method raises BackendGone, BackendTimeout, BackendRefused or BackendFault.
    """

    def __init__(self, path: str | os.PathLike[str], timeout: float = 10.0) -> None:
        self.path = os.fspath(path)
        self.features = Feature(0)
        self.protocol_features = ProtocolFeature(0)
        self._timeout = timeout
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(timeout)
        try:
            self._socket.connect(self.path)
        except OSError as error:
            self._socket.close()
            raise BackendGone(f"no back-end answers at {self.path}: {error.strerror or error}") from error

    def negotiate(self, wanted: int, required: int, protocol_wanted: ProtocolFeature = KNOWN_PROTOCOL_FEATURES) -> None:
        """Acknowledges what both sides know of `wanted` virtio features; all of `required` must be among them."""
        offered = self._ask_u64(Request.GET_FEATURES)
        if missing := required & ~offered:
            raise BackendRefused(f"the back-end offers features {offered:#x} and lacks the needed {missing:#x}")
        self.features = Feature(offered & (wanted | required))
        if self.features & Feature.PROTOCOL_FEATURES:
            known = ProtocolFeature(self._ask_u64(Request.GET_PROTOCOL_FEATURES) & protocol_wanted)
            self._send(Request.SET_PROTOCOL_FEATURES, _U64.pack(known))
            self.protocol_features = known
        self.tell(Request.SET_OWNER)
        self.set_features(self.features)

    def set_features(self, features: int) -> None:
        self.tell(Request.SET_FEATURES, _U64.pack(features))

    def queue_num(self) -> int:
        """Queues that the back-end serves, all kinds counted; 1 says a back-end without MQ."""
        return self._ask_u64(Request.GET_QUEUE_NUM) if self.protocol_features & ProtocolFeature.MQ else 1

    def set_memory(self, regions: Sequence[Region]) -> None:
        if self.protocol_features & ProtocolFeature.CONFIGURE_MEM_SLOTS:
            self._check_slots(len(regions), self._ask_u64(Request.GET_MAX_MEM_SLOTS))
            for region in regions:
                self.add_memory(region)
        else:
            self._check_slots(len(regions), _MEM_TABLE_REGIONS)
            table = b"".join(_region(region) for region in regions)
            descriptors = [region.descriptor for region in regions]
            self.tell(Request.SET_MEM_TABLE, _VRING_STATE.pack(len(regions), 0) + table, descriptors)

    def add_memory(self, region: Region) -> None:
        self.tell(Request.ADD_MEM_REG, _U64.pack(0) + _region(region), [region.descriptor])

    def remove_memory(self, region: Region) -> None:
        # QEMU sends the descriptor along, which the specification frees the back-end from needing.
        self.tell(Request.REM_MEM_REG, _U64.pack(0) + _region(region), [region.descriptor])

    def set_vring_num(self, vring: int, size: int) -> None:
        self.tell(Request.SET_VRING_NUM, _VRING_STATE.pack(vring, size))

    def set_vring_base(self, vring: int, base: int) -> None:
        self.tell(Request.SET_VRING_BASE, _VRING_STATE.pack(vring, base))

    def set_vring_addresses(self, vring: int, descriptors: int, used: int, available: int) -> None:
        """User addresses."""
        self.tell(Request.SET_VRING_ADDR, _VRING_ADDRESSES.pack(vring, 0, descriptors, used, available, 0))

    def set_vring_descriptor(self, request: Request, vring: int, descriptor: int | None) -> None:
        """`request`: SET_VRING_KICK, SET_VRING_CALL or SET_VRING_ERR."""
        if descriptor is None:
            self.tell(request, _U64.pack(vring | _NO_DESCRIPTOR))
        else:
            self.tell(request, _U64.pack(vring), [descriptor])

    def set_vring_enable(self, vring: int, *, enabled: bool) -> None:
        self.tell(Request.SET_VRING_ENABLE, _VRING_STATE.pack(vring, enabled))

    def get_vring_base(self, vring: int) -> int:
        """Stops the ring; returns the next available index that the back-end would have fetched."""
        answer = self.ask(Request.GET_VRING_BASE, _VRING_STATE.pack(vring, 0))
        index, base = self._unpack(_VRING_STATE, Request.GET_VRING_BASE, answer)
        if index != vring:
            raise BackendFault(f"GET_VRING_BASE for vring {vring} was answered for vring {index}")
        return int(base)

    def get_config(self, offset: int, length: int) -> bytes:
        """Bytes of the device's configuration space."""
        answer = self.ask(Request.GET_CONFIG, _CONFIG.pack(offset, length, 0) + bytes(length))
        if len(answer) != _CONFIG.size + length:
            raise BackendRefused(f"GET_CONFIG of {length} bytes at {offset} was answered with {len(answer)} bytes")
        return answer[_CONFIG.size :]

    def tell(self, request: Request, payload: bytes = b"", descriptors: Sequence[int] = ()) -> None:
        """Sends a message that has no reply of its own, and awaits its acknowledgement where there is one."""
        acknowledged = bool(self.protocol_features & ProtocolFeature.REPLY_ACK)
        self._send(request, payload, descriptors, _NEED_REPLY if acknowledged else 0)
        if acknowledged and (code := self._unpack(_U64, request, self._receive(request))[0]):
            raise BackendRefused(f"the back-end refused {request.name} with {code:#x}")

    def ask(self, request: Request, payload: bytes = b"") -> bytes:
        """Sends a message that has a reply of its own; returns the reply's payload."""
        self._send(request, payload)
        return self._receive(request)

    def fileno(self) -> int:
        return self._socket.fileno()

    def check_alive(self) -> None:
        """Call when the socket is readable with nothing asked: the back-end is gone, or says what nobody asked."""
        self._read(1, "nothing")
        raise BackendFault("the back-end sent a message that nobody had asked for")

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask_u64(self, request: Request) -> int:
        return int(self._unpack(_U64, request, self.ask(request))[0])

    @staticmethod
    def _unpack(structure: struct.Struct, request: Request, payload: bytes) -> tuple[int, ...]:
        if len(payload) != structure.size:
            raise BackendFault(f"{request.name} was answered with {len(payload)} bytes instead of {structure.size}")
        return structure.unpack(payload)

    @staticmethod
    def _check_slots(regions: int, slots: int) -> None:
        if regions > slots:
            raise BackendRefused(f"the back-end takes {slots} memory regions and guest memory has {regions}")

    def _send(self, request: Request, payload: bytes = b"", descriptors: Sequence[int] = (), flags: int = 0) -> None:
        message = _HEADER.pack(request, _VERSION | flags, len(payload)) + payload
        try:
            if not descriptors:
                self._socket.sendall(message)
            elif (sent := socket.send_fds(self._socket, [message], descriptors)) < len(message):
                self._socket.sendall(message[sent:])  # The descriptors went with the first byte.
        except TimeoutError as error:
            raise BackendTimeout(f"the back-end took no {request.name} for {self._timeout} s") from error
        except OSError as error:
            raise BackendGone(f"the back-end went away before {request.name}: {error.strerror}") from error

    def _receive(self, request: Request) -> bytes:
        answered, flags, size = _HEADER.unpack(self._read(_HEADER.size, request.name))
        if answered != request or flags & _VERSION_MASK != _VERSION or not flags & _REPLY or size > _MAX_PAYLOAD:
            raise BackendFault(
                f"{request.name} was answered by request {answered}, flags {flags:#x}, {size} bytes of payload"
            )
        return self._read(size, request.name)

    def _read(self, length: int, awaited: str) -> bytes:
        deadline = time.monotonic() + self._timeout
        data = b""
        while len(data) < length:
            data += self._read_some(length - len(data), deadline, awaited)
        return data

    def _read_some(self, length: int, deadline: float, awaited: str) -> bytes:
        self._socket.settimeout(max(deadline - time.monotonic(), 1e-3))
        try:
            data = self._socket.recv(length)
        except TimeoutError as error:
            raise BackendTimeout(f"the back-end did not answer {awaited} within {self._timeout} s") from error
        except OSError as error:
            raise BackendGone(f"the connection broke while {awaited} was awaited: {error.strerror}") from error
        if not data:
            raise BackendGone(f"the back-end closed the connection while {awaited} was awaited")
        return data


def _region(region: Region) -> bytes:
    return _REGION.pack(region.guest_address, region.size, region.user_address, region.mmap_offset)
