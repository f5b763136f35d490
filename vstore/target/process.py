"""TargetProcess: one target port and its LUNs, with one method per verb of the control channel.

    new --configure--> listening <--VMM connects, VMM leaves--> connected
                           \\________________ stop ________________/ --> stopping --> `stopped` is set

`vstore export` and the daemon's target processes run the same class; they differ in who calls its verbs. Verbs that
change something run one after the other; `status` answers also while another verb waits for I/O.
"""

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import fields
from typing import Any

from formats.image import Image
from vstore import __version__
from vstore.target import verbs
from vstore.target.chain import images_handed
from vstore.target.errors import ErrorCode, TargetError
from vstore.target.lun import MappedLun
from vstore.target.packet import Descriptors
from vstore.target.port import TargetPort
from vstore.target.shared import SharedLuns
from vstore.target.state_file import Opener
from vstore.vhost_user.keeping import Keeping, Kept, KeptMessage

_log = logging.getLogger(__name__)

Host = Callable[[str], Awaitable[None]]  # (control socket): one more target in this process


class TargetProcess:
    """Errors of every verb: TargetError. Descriptors that a verb does not keep stay the caller's to close."""

    def __init__(
        self,
        shared: SharedLuns | None = None,
        host: Host | None = None,
        *,
        hosted: bool = False,
        keeping: Keeping | None = None,
    ) -> None:
        """`shared`, `host`: of a process that may have several targets; `hosted`: it was started for another one.
        `keeping`: of a process that another one may have to follow."""
        self._keeping = keeping
        self._kept: Kept | None = None
        self._shared = shared or SharedLuns()
        self._host = host
        self._hosted = hosted
        self.stopped = asyncio.Event()
        self.unflushed: list[str] = []  # what `stop` could not make durable, a sentence each
        self._configuration: verbs.Configure | None = None
        self._port: TargetPort | None = None
        self._luns: dict[tuple[int, int], MappedLun] = {}
        self._changing = asyncio.Lock()
        self._stopping = False
        self._tell: list[Callable[[verbs.Event], None]] = []

    def on_event(self, listener: Callable[[verbs.Event], None]) -> None:
        self._tell.append(listener)

    async def run(self, verb: verbs.Verb, request: Any, descriptors: Descriptors) -> Any:
        """Runs the method that has the verb's name."""
        return await getattr(self, verb.name)(request, descriptors)

    async def configure(self, request: verbs.Configure, descriptors: Descriptors) -> verbs.Empty:
        """Again with the same settings it changes nothing. LUNs mapped before are there when the first VMM comes."""
        async with self._changing:
            self._refuse_if_stopping()
            if self._configuration is not None:
                _refuse_difference(self._configuration, request)
                return verbs.Empty()
            luns = self._luns.values()
            self._port = await TargetPort.open(
                request, descriptors, luns, self._emit, keeping=self._keeping, kept=self._kept
            )
            self._forget_kept()
            self._configuration = request
        _log.info("target_configured", extra={"target": request.name, "socket": request.socket})
        return verbs.Empty()

    async def keep(self, request: verbs.Keep, descriptors: Descriptors) -> verbs.Empty:
        del request
        sink = descriptors.take()
        assert sink is not None
        if self._keeping is None:
            os.close(sink)
            raise TargetError(ErrorCode.INVALID_REQUEST, "this process keeps nothing")
        self._keeping.attach(sink)
        return verbs.Empty()

    async def resume(self, request: verbs.Resume, descriptors: Descriptors) -> verbs.Empty:
        if self._configuration is not None or self._keeping is None:
            raise TargetError(ErrorCode.ALREADY_CONFIGURED, "only a process that is not configured yet can go on")
        if sum(row.descriptors for row in request.kept) != len(descriptors):
            raise TargetError(ErrorCode.INVALID_REQUEST, f"{len(descriptors)} descriptors are not those of the rows")
        self._forget_kept()
        self._kept = Kept()
        for row in request.kept:
            own = [taken for _ in range(row.descriptors) if (taken := descriptors.take()) is not None]
            message = KeptMessage(row.request, row.flags, bytes.fromhex(row.payload), tuple(own))
            self._kept.hold(row.name, message)
        return verbs.Empty()

    def _forget_kept(self) -> None:
        kept, self._kept = self._kept, None
        if kept:
            kept.close()

    async def host(self, request: verbs.Host, descriptors: Descriptors) -> verbs.Empty:
        del descriptors
        self._refuse_if_stopping()
        if self._host is None:
            raise TargetError(ErrorCode.INVALID_REQUEST, "this process serves one target only")
        await self._host(request.control)
        return verbs.Empty()

    async def map_lun(self, request: verbs.MapLun, descriptors: Descriptors) -> verbs.Mapped:
        state = descriptors.take() if request.state else None

        def images() -> list[Image]:
            if request.shared and not len(descriptors) and request.image.length is None:
                detail = f"no other target of this process shares {request.image.name}; send its files"
                raise TargetError(ErrorCode.NOT_OPEN, detail)
            return images_handed(request, descriptors)

        try:
            return await self.map_images(request, images, None if state is None else lambda _: os.dup(state))
        finally:
            if state is not None:
                os.close(state)

    async def map_images(
        self, request: verbs.MapLun, open_images: Callable[[], list[Image]], open_state: Opener | None = None
    ) -> verbs.Mapped:
        """As `map_lun`, with images that `open_images` opens: the image, then its parents; `open_state`: the file with
        what the unit keeps over a restart."""
        address = (request.target, request.lun)
        async with self._changing:
            self._refuse_if_stopping()
            if address in self._luns:
                detail = f"LUN {request.target}:{request.lun} has an image; unmap it first or choose another LUN"
                raise TargetError(ErrorCode.LUN_EXISTS, detail)
            async with self._sharing(request.shared):
                mapped = await self._opened(request, open_images, open_state)
                try:
                    if self._port:
                        self._port.put(mapped)
                except BaseException:
                    await mapped.close()
                    raise
                self._luns[address] = mapped
                if request.shared:
                    self._shared.add(mapped)
        _log.info("lun_mapped", extra=_told(mapped))
        return verbs.Mapped(length=mapped.disk.length, read_only=mapped.unit.read_only, thin=mapped.unit.thin)

    async def _opened(
        self, request: verbs.MapLun, open_images: Callable[[], list[Image]], open_state: Opener | None
    ) -> MappedLun:
        """A place of what others share already, or a unit of its own."""
        if request.shared:
            for address, other in self._luns.items():
                if other.settings.image.name == request.image.name:
                    detail = f"{request.image.name} is LUN {address[0]}:{address[1]} of this target already"
                    raise TargetError(ErrorCode.LUN_EXISTS, detail)
            place = self._shared.place(request)
            if place is not None:
                return place
        return await MappedLun.open(request, open_images, open_state)

    @contextlib.asynccontextmanager
    async def _sharing(self, shared: bool) -> AsyncIterator[None]:
        """Around changes of what other targets of this process see too."""
        async with self._shared.changing if shared else contextlib.nullcontext():
            yield

    async def unmap_lun(self, request: verbs.LunAddress, descriptors: Descriptors) -> verbs.Empty:
        """Waits for the commands in flight, and makes durable what they wrote."""
        del descriptors
        async with self._changing:
            self._refuse_if_stopping()
            mapped = self._lun(request.target, request.lun)
            await self._drop(mapped)
        _log.info("lun_unmapped", extra=_told(mapped))
        return verbs.Empty()

    async def resize_lun(self, request: verbs.ResizeLun, descriptors: Descriptors) -> verbs.Resized:
        del descriptors
        async with self._changing:
            self._refuse_if_stopping()
            mapped = self._lun(request.target, request.lun)
            await mapped.resize(request.length, lambda: _settled(mapped))
            for place in mapped.places:
                if place.port:
                    place.port.capacity_changed(place)
        self._emit(verbs.LunCapacityChanged(target=request.target, lun=request.lun, length=mapped.disk.length))
        return verbs.Resized(length=mapped.disk.length)

    async def snapshot_lun(self, request: verbs.SnapshotLun, descriptors: Descriptors) -> verbs.Snapshots:
        """Other verbs go on meanwhile: it may take long for a large image. Unmapping or stopping ends it early."""
        del descriptors
        self._refuse_if_stopping()
        return await self._lun(request.target, request.lun).snapshots(request)

    async def bitmap_lun(self, request: verbs.BitmapLun, descriptors: Descriptors) -> verbs.BitmapList:
        del descriptors
        self._refuse_if_stopping()
        return await self._lun(request.target, request.lun).bitmaps(request)

    async def status(self, request: verbs.StatusRequest, descriptors: Descriptors) -> verbs.Status:
        """The vrings come with the first page of LUNs only."""
        del descriptors
        first, end = request.first_lun, request.first_lun + verbs.MOST_LUNS_PER_ANSWER
        return verbs.Status(
            protocol=verbs.PROTOCOL,
            version=__version__,
            pid=os.getpid(),
            state=self._state(),
            configuration=self._configuration,
            vrings=tuple(self._port.vrings()) if self._port and first == 0 else (),
            luns=tuple(self._lun_status(mapped) for mapped in list(self._luns.values())[first:end]),
            hosted=self._hosted,
            next_lun=end if end < len(self._luns) else None,
        )

    async def stop(self, request: verbs.Empty, descriptors: Descriptors) -> verbs.Empty:
        """Ends the process in order, also when something cannot be made durable; then it raises TargetError."""
        del request, descriptors
        await self.end()
        return verbs.Empty()

    async def end(self) -> None:
        """What `stop` does, for a signal. Raises TargetError."""
        self._stopping = True
        async with self._changing:
            if not self.stopped.is_set():
                await self._end()
        if self.unflushed:
            raise TargetError(ErrorCode.HOST_ERROR, "; ".join(self.unflushed))

    def abandon(self) -> None:
        """Removes what is left in the file system; all that a process may still do that cannot wait for its I/O."""
        if self._port:
            self._port.remove_socket()

    async def _end(self) -> None:
        """Rings first, so that nothing new comes; then the images; what was made is removed whatever fails."""
        try:
            if self._port:
                await self._port.stop()
            for mapped in list(self._luns.values()):
                await self._drop_at_end(mapped)
            if self._port:
                await self._port.close()
        except Exception:
            _log.exception("stop_failed")
            self.unflushed.append("stopping failed; the log tells more")
        finally:
            self.abandon()
            self._port = None
            self._forget_kept()
            if self._keeping:
                self._keeping.close()
            self.stopped.set()

    async def _drop_at_end(self, mapped: MappedLun) -> None:
        try:
            await self._drop(mapped)
        except TargetError as error:
            _log.error("flush_failed", extra={"detail": error.detail})
            self.unflushed.append(error.detail)

    async def _drop(self, mapped: MappedLun) -> None:
        async with self._sharing(mapped.settings.shared):
            if self._port:
                await self._port.take(mapped)
            del self._luns[mapped.address]
            if mapped.settings.shared:
                self._shared.remove(mapped)
            await mapped.close()

    def _lun_status(self, mapped: MappedLun) -> verbs.LunStatus:
        return verbs.LunStatus(
            settings=mapped.settings,
            length=mapped.disk.length,
            read_only=mapped.unit.read_only,
            thin=mapped.unit.thin,
            in_flight=self._port.in_flight(mapped) if self._port else 0,
        )

    def _state(self) -> str:
        if self._stopping:
            return "stopping"
        if self._configuration is None:
            return "new"
        return "connected" if self._port and self._port.connected else "listening"

    def _refuse_if_stopping(self) -> None:
        if self._stopping:
            raise TargetError(ErrorCode.STOPPING, "this target is stopping; start another one")

    def _lun(self, target: int, lun: int) -> MappedLun:
        mapped = self._luns.get((target, lun))
        if mapped is None:
            known = ", ".join(f"{t}:{n}" for t, n in list(self._luns)[:20]) or "none"
            raise TargetError(ErrorCode.NO_SUCH_LUN, f"LUN {target}:{lun} has no image; those that have one: {known}")
        return mapped

    def _emit(self, event: verbs.Event) -> None:
        for tell in self._tell:
            tell(event)


async def _settled(mapped: MappedLun) -> None:
    """Of every place of the LUN."""
    for place in list(mapped.places):
        if place.port:
            await place.port.settled(place)


def _refuse_difference(present: verbs.Configure, asked: verbs.Configure) -> None:
    for field in fields(verbs.Configure):
        old, new = getattr(present, field.name), getattr(asked, field.name)
        if old != new:
            detail = (
                f"{field.name} is {old!r} since this target was configured and cannot become {new!r}; start another"
            )
            raise TargetError(ErrorCode.ALREADY_CONFIGURED, detail)


def _told(mapped: MappedLun) -> dict[str, object]:
    """What the log says of a LUN."""
    settings = mapped.settings
    return {"target": settings.target, "lun": settings.lun, "image": settings.image.name or settings.image.format}
