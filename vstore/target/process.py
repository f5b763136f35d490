"""TargetProcess: one target port and its LUNs, with one method per verb of the control channel.

    new --configure--> listening <--VMM connects, VMM leaves--> connected
                           \\________________ stop ________________/ --> stopping --> `stopped` is set

`vstore export` and the daemon's target processes run the same class; they differ in who calls its verbs. Verbs that
change something run one after the other; `status` answers also while another verb waits for I/O.
"""

import asyncio
import logging
import os
from collections.abc import Callable
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
from vstore.target.state_file import Opener

_log = logging.getLogger(__name__)


class TargetProcess:
    """Errors of every verb: TargetError. Descriptors that a verb does not keep stay the caller's to close."""

    def __init__(self) -> None:
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
            self._port = await TargetPort.open(request, descriptors, self._luns.values(), self._emit)
            self._configuration = request
        _log.info("target_configured", extra={"target": request.name, "socket": request.socket})
        return verbs.Empty()

    async def map_lun(self, request: verbs.MapLun, descriptors: Descriptors) -> verbs.Mapped:
        return await self.map_images(request, lambda: images_handed(request, descriptors))

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
            mapped = await MappedLun.open(request, open_images, open_state)
            try:
                if self._port:
                    self._port.put(mapped)
            except BaseException:
                await mapped.close()
                raise
            self._luns[address] = mapped
        _log.info("lun_mapped", extra=_told(mapped))
        return verbs.Mapped(length=mapped.disk.length, read_only=mapped.unit.read_only, thin=mapped.unit.thin)

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
            await mapped.resize(request.length, lambda: self._settled(mapped))
            if self._port:
                self._port.capacity_changed(mapped)
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
            self.stopped.set()

    async def _drop_at_end(self, mapped: MappedLun) -> None:
        try:
            await self._drop(mapped)
        except TargetError as error:
            _log.error("flush_failed", extra={"detail": error.detail})
            self.unflushed.append(error.detail)

    async def _settled(self, mapped: MappedLun) -> None:
        if self._port:
            await self._port.settled(mapped)

    async def _drop(self, mapped: MappedLun) -> None:
        if self._port:
            await self._port.take(mapped)
        del self._luns[mapped.address]
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
