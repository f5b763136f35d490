"""One front-end's connection: a message comes in, its method obeys or refuses, the answer goes out; one by one.

    GET_FEATURES ... SET_FEATURES    what both sides speak            Session
    ADD_MEM_REG, SET_MEM_TABLE       where guest memory lies          GuestMemory
    SET_VRING_*, GET_VRING_BASE      rings: set up, run, stop         Vrings
    RESET_DEVICE, end of connection  the nexus is lost                Endpoint

Three kinds of trouble, three answers. A value that cannot be obeyed is refused: a negative acknowledgement where one
was asked for, else a line in the log, and the connection lives, because QEMU up to 8.1 never connects a second time.
A message that contradicts its own declaration is refused the same way if it can be, else it ends the connection: what
the front-end believes about us is then unknown. An unknown message is refused where that was asked for, else ignored:
extensions are gated by feature bits, so an honest front-end sends none, and for a dishonest one nothing is lost.

Whatever ends the connection, its rings are stopped, nothing stays in flight, and guest memory is let go before another
connection is served.
"""

import asyncio
import contextlib
import inspect
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from typing import Any

from vstore.vhost_user.channel import Channel, Message
from vstore.vhost_user.complaints import Complaints
from vstore.vhost_user.endpoint import Endpoint
from vstore.vhost_user.errors import ProtocolError, RefusalError
from vstore.vhost_user.guest_memory import GuestMemory, Region, describe
from vstore.vhost_user.inflight import Attached, InflightRegion
from vstore.vhost_user.keeping import BEGUN, Keeping, Kept
from vstore.vhost_user.kept_messages import forget_connection, in_order, note
from vstore.vhost_user.messages import (
    CONFIG_SPACE,
    MESSAGES,
    NO_DESCRIPTOR,
    VRING_INDEX,
    Answer,
    DeviceConfig,
    Feature,
    Inflight,
    Integer,
    LogDescription,
    MemoryRegion,
    MemoryTable,
    Nothing,
    Payload,
    ProtocolFeature,
    Row,
    SingleMemoryRegion,
    VringAddress,
    VringState,
)
from vstore.vhost_user.structure import StructureError
from vstore.vhost_user.vrings import Vrings

log = logging.getLogger(__name__)

# QEMU offers these to the guest whatever the back-end says; only its command line takes them away.
REMEDIES = {
    Feature.T10_PI: "t10_pi=off",
    Feature.ACCESS_PLATFORM: "iommu_platform=off",
    Feature.RING_PACKED: "packed=off",
}

ACCEPTED = 0
REFUSED = 1


Reply = Payload | Attached | None
Method = Callable[["Session", Any, list[int]], Reply | Awaitable[Reply]]


class Session:
    """run() serves a connected socket until either side ends it. Owns the socket."""

    def __init__(
        self,
        endpoint: Endpoint,
        connection: socket.socket,
        keeping: Keeping | None = None,
        resumes: Kept | None = None,
    ) -> None:
        """`keeping`: who is told what it takes to go on after this process was killed; `resumes`: goes on with that."""
        self._keeping = keeping
        self._resumes = resumes
        self.resumed = asyncio.Event()  # set at once where there is nothing to go on with
        self._endpoint = endpoint
        self._device = endpoint.device
        self._channel = Channel(connection)
        self._memory = GuestMemory(endpoint.device)
        self._inflight = InflightRegion(endpoint.device, endpoint.name)
        self._features = Feature(0)
        self._protocol_features = ProtocolFeature(0)
        complaints = Complaints(log, endpoint.name)
        self._complain = complaints.tell
        self._vrings = Vrings(endpoint.device, endpoint.vrings, endpoint.idle, complaints)
        self._serving: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def left(self) -> bool:
        """Whether the front-end is gone; run() may still be busy with what it left."""
        return self._channel.hung_up

    def close(self) -> None:
        """Ends the connection from this side; run() returns when that is done."""
        self._closed = True
        if self._serving:
            self._serving.cancel()

    async def run(self) -> None:
        """Returns when the connection has ended and everything that it had set up is gone. Call it once."""
        try:
            await self._begin()
            if not self._closed:
                self._serving = asyncio.create_task(self._serve())
                await asyncio.wait([self._serving])
        finally:
            self.close()
            await self._end()

    async def _begin(self) -> None:
        try:
            if self._resumes is None:
                self._endpoint.connected()
            else:
                await self._resume(self._resumes)
        finally:
            self.resumed.set()

    async def _resume(self, kept: Kept) -> None:
        """What the front-end said to another process is obeyed once more, and nothing of that is answered."""
        self._endpoint.resumed(kept, connected=True)
        for row, message in in_order(kept):
            with Message(row.id, 0, message.payload, [os.dup(each) for each in message.descriptors]) as again:
                payload = self._parse(row, again)
                method = METHODS.get(row.id)
                if payload is not None and method is not None:
                    await self._obey(row, method, payload, again)
        self._endpoint.serve_notices()
        if BEGUN in kept:
            begun = kept[BEGUN]
            with Message(
                begun.request, begun.flags, begun.payload, [os.dup(each) for each in begun.descriptors]
            ) as last:
                await self._answer(last)

    async def _serve(self) -> None:
        try:
            while message := await self._channel.receive():
                with message:
                    await self._answer(message)
                await asyncio.sleep(0)  # a flood of messages leaves turns for everything else
        except ProtocolError as error:
            log.warning("%s: connection ended: %s", self._endpoint.name, error)
        except OSError as error:
            log.info("%s: connection lost: %s", self._endpoint.name, error)
        except Exception:
            log.exception("%s: connection ended by a defect of vstore", self._endpoint.name)

    async def _end(self) -> None:
        self._channel.close()
        self._vrings.halt()
        await self._endpoint.abort()
        await self._vrings.clear()
        self._vrings.forget_descriptors()
        with contextlib.suppress(OSError):
            self._device.set_log(-1, 0, 0)
        self._inflight.clear()
        self._memory.clear()
        self._endpoint.disconnected()
        if self._keeping:
            forget_connection(self._keeping)

    async def _answer(self, message: Message) -> None:
        # Judged by what was negotiated before: SET_PROTOCOL_FEATURES itself may change it.
        acknowledged = message.need_reply and ProtocolFeature.REPLY_ACK in self._protocol_features
        row, method = self._find(message.request)
        if self._keeping:
            flags, payload_bytes, attached = message.flags, message.payload, message.descriptors
            self._keeping.put(BEGUN, payload_bytes, request=message.request, flags=flags, descriptors=attached)
        if row is None or method is None:
            self._complain("message %d is not spoken here", message.request)
            reply: Reply = Integer(REFUSED) if acknowledged else None
        else:
            payload = self._parse(row, message)
            if payload is None and not (acknowledged and row.answer is Answer.ON_DEMAND):
                raise ProtocolError(f"{row.name} contradicts its declaration, and no acknowledgement was asked for")
            code, reply = (REFUSED, None) if payload is None else await self._obey(row, method, payload, message)
            if reply is None and (acknowledged or row.answer is Answer.ALWAYS):
                reply = Integer(code)
        if reply is not None:
            with reply if isinstance(reply, Attached) else contextlib.nullcontext():
                descriptors = [reply.descriptor] if isinstance(reply, Attached) else []
                await self._channel.send(message.request, reply.pack(), descriptors)
        if self._keeping:
            self._keeping.drop(BEGUN)

    def _find(self, request: int) -> tuple[Row | None, Method | None]:
        row = MESSAGES.get(request)
        if row and row.feature and row.feature not in self._protocol_features:
            row = None
        return row, METHODS.get(request)

    def _parse(self, row: Row, message: Message) -> Payload | None:
        fewest, most = row.descriptors
        if not fewest <= len(message.descriptors) <= most:
            self._complain("%s with %d descriptors instead of %d..%d", row.name, len(message.descriptors), fewest, most)
            return None
        try:
            return row.payload.unpack(message.payload)
        except StructureError as error:
            self._complain("%s: %s", row.name, error)
            return None

    async def _obey(self, row: Row, method: Method, payload: Payload, message: Message) -> tuple[int, Reply]:
        try:
            answer = method(self, payload, message.descriptors)
            reply = await answer if inspect.isawaitable(answer) else answer
        except (RefusalError, OSError) as error:
            self._complain("%s refused: %s", row.name, error)
            return REFUSED, None
        if self._keeping:
            note(self._keeping, row, payload, message)
        return ACCEPTED, reply

    # ---- what both sides speak ----

    def get_features(self, _: Nothing, __: list[int]) -> Reply:
        return Integer(self._endpoint.features)

    async def set_features(self, wanted: Integer, _: list[int]) -> Reply:
        features = Feature(wanted.value)
        if foreign := beyond(features, self._endpoint.features):
            remedies = [option for feature, option in REMEDIES.items() if feature in foreign]
            raise RefusalError(f"features {foreign:#x} are not offered" + "".join(f"; use {o}" for o in remedies))
        if beyond(features ^ self._features, Feature.LOG_ALL) and not await self._vrings.quiet():
            raise RefusalError("features other than logging cannot change while rings run")
        self._device.set_features(features)
        if Feature.LOG_ALL in self._features & ~features:
            self._device.set_log(-1, 0, 0)
        self._features = features
        if self._keeping and not self._inflight.there:
            self._inflight.provide(self._endpoint.vrings, self._keeping)
        self._endpoint.negotiated(features)
        if Feature.PROTOCOL_FEATURES not in features:  # vhost-user, "Ring states"
            self._vrings.enable_all()
        self._vrings.negotiated = True
        self._vrings.start_complete()
        return None

    def get_protocol_features(self, _: Nothing, __: list[int]) -> Reply:
        return Integer(self._endpoint.protocol_features)

    def set_protocol_features(self, wanted: Integer, _: list[int]) -> Reply:
        # What was offered counts even if more was asked for: whether acknowledgements flow must never be in doubt.
        self._protocol_features = ProtocolFeature(wanted.value) & self._endpoint.protocol_features
        if beyond(wanted.value, self._endpoint.protocol_features):
            raise RefusalError(f"protocol features {wanted.value:#x} are more than is offered")
        return None

    def set_owner(self, _: Nothing, __: list[int]) -> Reply:
        return None

    def reset_owner(self, _: Nothing, __: list[int]) -> Reply:
        """Deprecated, and best ignored (vhost-user, RESET_OWNER)."""

    def get_queue_num(self, _: Nothing, __: list[int]) -> Reply:
        return Integer(self._endpoint.vrings)

    def get_config(self, wanted: DeviceConfig, _: list[int]) -> Reply:
        if wanted.offset + len(wanted.data) > CONFIG_SPACE:
            return Nothing()  # vhost-user: a payload of zero length says that there is no such thing
        return DeviceConfig(wanted.offset, wanted.flags, self._endpoint.read_config(wanted.offset, len(wanted.data)))

    def set_config(self, wanted: DeviceConfig, _: list[int]) -> Reply:
        self._endpoint.write_config(wanted.offset, wanted.data)
        return None

    # ---- guest memory ----

    async def set_mem_table(self, table: MemoryTable, descriptors: list[int]) -> Reply:
        change = self._memory.compare(table.regions, descriptors)
        async with self._vrings.suspended() if change.gone else contextlib.nullcontext():
            self._memory.apply(change)
        self._vrings.start_complete()
        return None

    def get_max_mem_slots(self, _: Nothing, __: list[int]) -> Reply:
        return Integer(self._endpoint.memory_slots)

    def add_mem_reg(self, row: SingleMemoryRegion, descriptors: list[int]) -> Reply:
        self._memory.add(_region(row, descriptors[0]), descriptors[0])
        self._vrings.start_complete()
        return None

    async def rem_mem_reg(self, row: SingleMemoryRegion, _: list[int]) -> Reply:
        region = self._memory.find(row.guest_address, row.size, row.user_address)
        async with self._vrings.suspended():
            self._memory.remove(region)
        return None

    def set_log_base(self, area: LogDescription, descriptors: list[int]) -> Reply:
        self._device.set_log(descriptors[0], area.size, area.offset)
        return None

    def set_log_fd(self, _: Nothing, __: list[int]) -> Reply:
        """Optional: QEMU never sends it, and nobody would wait for its signal."""

    def get_inflight_fd(self, wanted: Inflight, _: list[int]) -> Reply:
        return self._inflight.made(wanted)

    async def set_inflight_fd(self, told: Inflight, descriptors: list[int]) -> Reply:
        if not await self._vrings.quiet():
            raise RefusalError("the memory of what is in flight cannot change while rings run")
        self._inflight.adopt(told, descriptors[0])
        return None

    # ---- rings ----

    async def set_vring_num(self, state: VringState, _: list[int]) -> Reply:
        await self._vrings.set_size(state.index, state.num)
        return None

    async def set_vring_base(self, state: VringState, _: list[int]) -> Reply:
        await self._vrings.set_base(state.index, state.num)
        return None

    def set_vring_addr(self, address: VringAddress, _: list[int]) -> Reply:
        self._vrings.set_addresses(address)
        return None

    def set_vring_kick(self, word: Integer, descriptors: list[int]) -> Reply:
        self._vrings.set_kick(*_vring_descriptor(word, descriptors))
        return None

    def set_vring_call(self, word: Integer, descriptors: list[int]) -> Reply:
        index, descriptor = _vring_descriptor(word, descriptors)
        if self._serves(index):
            self._device.vring_set_call(index, descriptor)
        return None

    def set_vring_err(self, word: Integer, descriptors: list[int]) -> Reply:
        index, descriptor = _vring_descriptor(word, descriptors)
        if self._serves(index):
            self._device.vring_set_error(index, descriptor)
        return None

    def set_vring_enable(self, state: VringState, _: list[int]) -> Reply:
        if state.num > 1:
            raise RefusalError(f"vring {state.index}: enable is 0 or 1, not {state.num}")
        if self._serves(state.index):
            self._vrings.enable(state.index, enabled=bool(state.num))
        return None

    async def get_vring_base(self, state: VringState, _: list[int]) -> Reply:
        # A ring that is not here was never used: its base is where it began.
        return VringState(state.index, await self._vrings.base(state.index) if self._serves(state.index) else 0)

    async def reset_device(self, _: Nothing, __: list[int]) -> Reply:
        self._vrings.halt()
        await self._endpoint.abort()
        await self._vrings.clear()
        self._endpoint.reset()
        return None

    def _serves(self, index: int) -> bool:
        """QEMU tells such things of every queue that it has, also of those that no guest uses: that is no error."""
        if index not in self._vrings:
            self._complain("vring %d of a device with %d vrings: lower num_queues", index, self._endpoint.vrings)
        return index in self._vrings


METHODS: dict[int, Method] = {
    row.id: vars(Session)[row.method] for row in MESSAGES.values() if row.method in vars(Session)
}


def beyond(bits: int, allowed: int) -> Feature:
    """The bits that are not allowed. By plain integers: the inverse of an IntFlag has no bits that it cannot name."""
    return Feature(int(bits) & ~int(allowed))


def _vring_descriptor(word: Integer, descriptors: list[int]) -> tuple[int, int]:
    """Index and descriptor (-1: none) of SET_VRING_KICK, CALL and ERR."""
    if word.value & ~(VRING_INDEX | NO_DESCRIPTOR):
        raise RefusalError(f"unknown bits in {word.value:#x}")
    if bool(word.value & NO_DESCRIPTOR) == bool(descriptors):
        raise RefusalError(
            f"vring {word.value & VRING_INDEX}: the descriptor flag and {len(descriptors)} descriptors disagree"
        )
    return word.value & VRING_INDEX, descriptors[0] if descriptors else -1


def _region(row: SingleMemoryRegion, descriptor: int) -> Region:
    return describe(MemoryRegion(row.guest_address, row.size, row.user_address, row.mmap_offset), descriptor)
