"""One mapped LUN: images -> disk -> logical unit, opened and closed as one.

    descriptors --> formats.Image ... --> vstore.disk.Disk --> vstore.scsi.LogicalUnit --> endpoint
                    where blocks lie       moves the bytes      what a CDB means

Whatever fails on the way up, everything below it is closed again before the error is told.
"""

import asyncio
import copy
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any, Self
from uuid import UUID

from formats.errors import HostRefusal, ImageError, ImageInUse, SecretNeeded, SecretWrong
from formats.image import Discard, Image, Kept
from vstore.disk import Disk
from vstore.scsi.identity import Identity
from vstore.scsi.logical_unit import LogicalUnit
from vstore.target.chain import name_of
from vstore.target.errors import ErrorCode, TargetError
from vstore.target.state_file import Opener, StateFile
from vstore.target.verbs import BitmapList, BitmapLun, BitmapRow, MapLun, SnapshotLun, SnapshotRow, Snapshots

if TYPE_CHECKING:
    from vstore.target.port import TargetPort

_CODES: dict[type[ImageError], ErrorCode] = {
    ImageInUse: ErrorCode.IMAGE_LOCKED,
    HostRefusal: ErrorCode.HOST_ERROR,
    SecretNeeded: ErrorCode.SECRET_NEEDED,
    SecretWrong: ErrorCode.SECRET_WRONG,
}


class MappedLun:
    """What stands behind one LUN, as it was asked for (`settings`) and as it is."""

    def __init__(self, settings: MapLun, disk: Disk, unit: LogicalUnit, state: StateFile | None = None) -> None:
        self.settings = settings
        self.disk = disk
        self.unit = unit
        self._state = state
        self.places = [self]  # of the same disk and unit; shared by all of them
        self.port: TargetPort | None = None  # that it is put behind
        self._changing = threading.Lock()
        self._doing = ""

    def beside(self, settings: MapLun) -> Self:
        """Another place of the same disk and unit."""
        place = copy.copy(self)
        place.settings, place.port = settings, None
        self.places.append(place)
        return place

    @property
    def address(self) -> tuple[int, int]:
        """Target and LUN."""
        return self.settings.target, self.settings.lun

    @classmethod
    async def open(
        cls, settings: MapLun, open_images: Callable[[], list[Image]], open_state: Opener | None = None
    ) -> Self:
        """Raises TargetError. `open_images`: the image, then its parents; it may raise ImageError and OSError too.
        `open_state`: the file beside the image; without it the unit keeps nothing over a restart. Opening may wait for
        the images' bytes, so it happens beside the event loop."""
        mapped = await asyncio.to_thread(cls._open, settings, open_images, open_state)
        try:
            await mapped.unit.resume()
        except OSError as error:
            with suppress(TargetError):
                await mapped.close()
            raise refusal(error) from error
        return mapped

    @classmethod
    def _open(cls, settings: MapLun, open_images: Callable[[], list[Image]], open_state: Opener | None) -> Self:
        try:
            with ExitStack() as undo:
                disk = Disk(*_images(settings, open_images))
                undo.callback(disk.close)
                _check_length(disk.length, settings)
                _check_alignment(disk, settings)
                state = StateFile(open_state) if open_state else None
                if state:
                    undo.callback(state.close)
                unit = _logical_unit(settings, disk, state)
                undo.pop_all()
        except (ImageError, OSError) as error:
            raise refusal(error) from error
        return cls(settings, disk, unit, state)

    async def resize(self, length: int, settled: Callable[[], Awaitable[None]]) -> None:
        """Raises TargetError. `settled` returns when every command that came before has ended: those may still use
        what is cut off, and a write there would make the file long again."""
        _check_length(length, self.settings)
        if self.unit.operation:
            # it has its own idea of where the disk ends
            detail = f"{name_of(self.settings.image)} is busy with a FORMAT UNIT or SANITIZE of its guest; try again"
            raise TargetError(ErrorCode.BUSY, f"{detail} when that is done")
        with self._alone("its new length"), self.unit.limited(length):
            if length < self.disk.length:
                await settled()
            try:
                await asyncio.to_thread(self.disk.resize, length)
            except (ImageError, OSError) as error:
                raise refusal(error) from error

    async def snapshots(self, request: SnapshotLun) -> Snapshots:
        """Takes or forgets a snapshot, and lists them. Raises TargetError. The guest's commands go on meanwhile; only
        writes wait for the moment that `pause_us` tells."""
        pause = None
        try:
            if request.action != "list":
                _check_snapshot_name(request.name)
                pause = await asyncio.to_thread(self._change_snapshots, request)
            found = await asyncio.to_thread(self.disk.snapshots)
        except (ImageError, OSError) as error:
            raise refusal(error) from error
        return Snapshots(snapshots=tuple(map(_snapshot_row, found)), pause_us=pause)

    def _change_snapshots(self, request: SnapshotLun) -> int | None:
        with self._alone(f"the snapshot {request.name!r}"):
            if request.action == "create":
                return self.disk.snapshot(request.name)[1]
            self.disk.delete_snapshot(request.name)
        return None

    async def bitmaps(self, request: BitmapLun) -> BitmapList:
        """Changes a bitmap, and lists them. Raises TargetError. The guest's writes wait for it."""
        try:
            if request.action != "list":
                await asyncio.to_thread(self._change_bitmap, request)
            found = await asyncio.to_thread(self.disk.bitmaps)
        except (ImageError, OSError) as error:
            raise refusal(error) from error
        return BitmapList(bitmaps=tuple(BitmapRow(**row) for row in found))

    def _change_bitmap(self, request: BitmapLun) -> None:
        how = {"granularity": request.granularity, "enabled": request.enabled}
        with self._alone(f"the bitmap {request.name!r}"):
            sources = [source.name for source in request.sources]
            self.disk.change_bitmap(request.action, request.name, sources=sources, **how)

    @contextmanager
    def _alone(self, doing: str) -> Iterator[None]:
        """One change of the image's structure at a time. Raises TargetError (busy) while there is another."""
        if not self._changing.acquire(blocking=False):
            detail = f"{name_of(self.settings.image)} is busy with {self._doing}; try again when that is done"
            raise TargetError(ErrorCode.BUSY, detail)
        self._doing = doing
        try:
            yield
        finally:
            self._changing.release()

    async def close(self) -> None:
        """Makes everything durable, and closes even if that fails; the last place does. Raises TargetError."""
        self.places.remove(self)
        if self.places:
            return
        if self._state:
            await self._state.settle()
            self._state.close()
        try:
            await asyncio.to_thread(self.disk.close)
        except OSError as error:
            lost = "the last flush failed, so writes since the one before may be lost"
            detail = f"{name_of(self.settings.image)}: {lost}: {error.strerror}"
            raise TargetError(ErrorCode.HOST_ERROR, detail) from error


def _images(settings: MapLun, open_images: Callable[[], list[Image]]) -> list[Image]:
    images = open_images()
    try:
        images[0].place_discarded(Discard(settings.discard))
    except BaseException:
        for image in images:
            image.close()
        raise
    return images


def _check_snapshot_name(name: str) -> None:
    if not name:
        raise TargetError(ErrorCode.INVALID_REQUEST, "name is missing: which snapshot is meant?")


def _snapshot_row(snapshot: Kept) -> SnapshotRow:
    told: dict[str, Any] = snapshot.as_json()
    return SnapshotRow(
        id=snapshot.id,
        name=snapshot.name,
        created=told["date-sec"] + told["date-nsec"] / 1e9,
        vm_state_bytes=told["vm-state-size"],
    )


def _logical_unit(settings: MapLun, disk: Disk, state: StateFile | None) -> LogicalUnit:
    return LogicalUnit(
        disk,
        Identity(
            serial=settings.serial,
            uuid=UUID(settings.uuid) if settings.uuid else None,
            vendor=settings.vendor,
            product=settings.product,
        ),
        logical_block_length=settings.logical_block_length,
        physical_block_exponent=settings.physical_block_exponent,
        thin=settings.thin,
        read_only=settings.read_only,
        write_cache=settings.write_cache,
        state=state,
        shared=settings.shared,
    )


def _check_length(length: int, settings: MapLun) -> None:
    """A logical unit has whole logical blocks only (SBC-4 5.18: the capacity is told as an LBA)."""
    block = settings.logical_block_length
    if length % block:
        below = length - length % block
        nearest = f"{below} or {below + block}" if below else f"{block}"
        detail = (
            f"{name_of(settings.image)}: {length} bytes are not a multiple of "
            f"the {block}-byte logical block; {nearest} bytes would be"
        )
        raise TargetError(ErrorCode.IMAGE_REFUSED, detail)


def _check_alignment(disk: Disk, settings: MapLun) -> None:
    """A block that direct I/O cannot write alone is read with its neighbours, changed, and written back: two such
    writes at once could undo each other."""
    block, unit = settings.logical_block_length, disk.alignment
    if block % unit:
        detail = (
            f"{name_of(settings.image)}: direct I/O here moves {unit} bytes at once, which the {block}-byte "
            f"logical block is no multiple of; map it with blocks of {unit} bytes, or open it without direct I/O"
        )
        raise TargetError(ErrorCode.IMAGE_REFUSED, detail)


def refusal(error: ImageError | OSError) -> TargetError:
    if isinstance(error, OSError):
        return TargetError(ErrorCode.HOST_ERROR, error.strerror or str(error))
    code = next((code for kind, code in _CODES.items() if isinstance(error, kind)), ErrorCode.IMAGE_REFUSED)
    return TargetError(code, str(error))
