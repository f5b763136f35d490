"""Disk: an image opened on the data plane, as the SCSI model, the fast path and jobs use it.

    scsi.LogicalUnit -- await read, write ... --+                        +-- Image: where each block lies
                                                +--> Disk ---------------+
    jobs ------------- read_blocking ... -------+      few own threads   +-- Volume: moves the bytes

The fast path uses `volume` directly and never comes here. Each disk has threads of its own, so that one that hangs
holds up no other. Bytes fail as OSError, whose errno becomes sense data; structure (resize) fails as ImageError.
"""

import asyncio
import contextlib
import errno
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, ParamSpec, Protocol, TypeVar

from formats.errors import ImageError, UnsupportedFeature
from formats.image import Discard, Image, Kept, LayerFlags, Reference, check_length
from formats.qcow2 import bitmap_verbs
from vstore import anchoring
from vstore.block_io import BlockIo, Keeper
from vstore.block_map import BlockMap
from vstore.chain import Chain
from vstore.cipher_io import CipherIo
from vstore.dataplane import Volume
from vstore.live_snapshot import LiveSnapshots

_P = ParamSpec("_P")
_T = TypeVar("_T")

_MOST_ROWS = 256  # of one look at what has room: so many a GET LBA STATUS tells at most
_THREADS = 4  # slow-path calls of one disk under way at once; the rest wait their turn

Bytes = bytes | bytearray | memoryview


class Held(Protocol):
    """The disk, for a thread that holds a range of it."""

    def read(self, offset: int, length: int) -> bytes: ...

    def write(self, offset: int, data: Bytes) -> None: ...

    def flush(self) -> None: ...


class Space(NamedTuple):
    """Bytes: what the image takes of its file system, and what is free there."""

    used: int
    available: int


class Disk:
    """Satisfies vstore.scsi.medium.Medium. Offsets and lengths are in bytes and may have any alignment."""

    def __init__(self, image: Image, *parents: Image) -> None:
        """Takes over the image and its parents, nearest first, and closes them, also when this fails. Errors:
        ImageError, OSError."""
        self.image = image
        self._parents = parents
        with contextlib.ExitStack() as undo:
            undo.callback(self._close_images)
            self.volume = Volume(image.geometry.length, image.geometry.block_size)
            undo.callback(self.volume.close)
            chain = Chain([image, *parents])
            self._map = BlockMap(self.volume, chain)
            undo.pop_all()
        self._ciphers: CipherIo | None = None  # where the data plane must not write, because it does not encrypt
        if image.cipher is not None and not image.read_only:
            self._ciphers = CipherIo(self.volume, chain, image.cipher, self._map.lock)
        self._io: BlockIo | CipherIo = self._ciphers or BlockIo(self.volume, self._map, image.geometry.block_size)
        self._keeper = Keeper(self.volume, self._map.commits) if self._map.allocates and not self._ciphers else None
        self._snapshots = LiveSnapshots(image, self.volume, self._map)
        self._closed = False
        self._users = 0
        self._idle = threading.Condition()
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="disk")

    @property
    def length(self) -> int:
        """Bytes of the disk."""
        return self.image.geometry.length

    @property
    def alignment(self) -> int:
        """Bytes below which a write reads and rewrites its surroundings (O_DIRECT): no logical block may be shorter,
        because two such writes at once could undo each other."""
        return max(layer.alignment for image in (self.image, *self._parents) for layer in image.layers)

    @property
    def read_only(self) -> bool:
        """Whether every change is refused with EROFS."""
        return self.image.read_only

    @property
    def deallocates(self) -> bool:
        """Whether a deallocated range gives its space back; it reads as zeros then."""
        return self.image.deallocates

    @property
    def caches(self) -> bool:
        """Whether the host keeps what was read: not where an image is opened with O_DIRECT."""
        flags = (layer.flags for image in (self.image, *self._parents) for layer in image.layers)
        return not any(LayerFlags.DIRECT in each for each in flags)

    async def read(self, offset: int, length: int) -> bytes:
        """The bytes of a range inside the disk."""
        return await self._in_thread(self.read_blocking, offset, length)

    async def write(self, offset: int, data: Bytes) -> None:
        """Writes a range inside the disk; durable after the next flush."""
        await self._in_thread(self.write_blocking, offset, data)

    async def write_zeroes(self, offset: int, length: int, *, deallocate: bool) -> None:
        """Zeroes a range inside the disk; with `deallocate` its space goes back to the host where it can."""
        await self._in_thread(self.write_zeroes_blocking, offset, length, deallocate=deallocate)

    @property
    def anchors(self) -> bool:
        """Whether a range can be zeroed and have room on the host all the same, which no one else takes: blocks keep
        their places in the image, and those are never punched."""
        return self.deallocates and self.image.discard is Discard.KEEP

    async def anchor(self, offset: int, length: int) -> None:
        """Zeroes a range, whose whole blocks have room on the host then. OSError (ENOSPC): they do not. `anchors`."""
        await self._in_thread(self.anchor_blocking, offset, length)

    async def status(self, offset: int, length: int) -> list[tuple[int, int]]:
        """Rows of bytes in order, from `offset` on, and of each 0: it has no room on the host, and reads as zeros; 1:
        it has room; 2: both. They may end before the range does: what is looked at in one call is bounded."""
        return await self._in_thread(self.status_blocking, offset, length)

    @property
    def encrypted(self) -> bool:
        """Whether what is written is encrypted."""
        return self._ciphers is not None

    @property
    def replaces_key(self) -> bool:
        """Whether `replace_key` makes all that can be read unreadable: what a parent has is not of this disk's key."""
        return self._ciphers is not None and not self._parents and self.image.replaces_key

    async def replace_key(self) -> None:
        """Destroys the key that the disk is encrypted with: what was written is noise from there on. After an OSError
        nothing can be read or written until another call succeeds."""
        await self._in_thread(self.replace_key_blocking)

    def replace_key_blocking(self) -> None:
        """As `replace_key`, for threads that may wait."""
        assert self._ciphers
        with self._moving(change=True):
            self._ciphers.replace_key()

    async def space(self) -> Space | None:
        """None where no file system says: an image in memory, a block device."""
        return await self._in_thread(self.space_blocking)

    async def alone(self, offset: int, length: int, work: Callable[[Held], _T], *, exclusive: bool = False) -> _T:
        """What `work` returns; it runs in a thread, and meanwhile nobody else writes to the range, on whatever path;
        with `exclusive` nobody else reads there either."""
        return await self._in_thread(self.alone_blocking, offset, length, work, exclusive=exclusive)

    async def flush(self) -> None:
        """Makes everything written so far durable."""
        await self._in_thread(self.flush_blocking)

    def read_blocking(self, offset: int, length: int) -> bytes:
        """As `read`, for threads that may wait."""
        with self._moving():
            return self._io.read(offset, length)

    def write_blocking(self, offset: int, data: Bytes) -> None:
        """As `write`, for threads that may wait."""
        with self._moving(change=True):
            self._io.write(offset, data)

    def write_zeroes_blocking(self, offset: int, length: int, *, deallocate: bool) -> None:
        """As `write_zeroes`, for threads that may wait."""
        with self._moving(change=True):
            self._io.zero(offset, length, deallocate=deallocate and self.deallocates)

    def anchor_blocking(self, offset: int, length: int) -> None:
        """As `anchor`, for threads that may wait."""
        with self._moving(change=True):
            anchoring.anchor(self._io, offset, length, self.image.geometry.block_size, self.length)

    def status_blocking(self, offset: int, length: int) -> list[tuple[int, int]]:
        """As `status`, for threads that may wait."""
        rows: list[tuple[int, int]] = []
        with self._moving():
            while length and len(rows) < _MOST_ROWS:
                done, status = self._io.status(offset, length)
                rows.append((done, status if self.anchors else status % 2))
                offset, length = offset + done, length - done
        return rows

    def space_blocking(self) -> Space | None:
        """As `space`, for threads that may wait. A data file counts too; parents do not, which are others'."""
        unsaid = LayerFlags.MEMORY | LayerFlags.NULL | LayerFlags.BLOCK_DEVICE
        with self._use():
            if any(layer.flags & unsaid for layer in self.image.layers):
                return None
            files = {layer.descriptor for layer in self.image.layers}
            used = sum(os.fstat(descriptor).st_blocks * 512 for descriptor in files)
            free = [os.fstatvfs(descriptor) for descriptor in files]
            return Space(used, min(each.f_bavail * each.f_frsize for each in free))

    def alone_blocking(self, offset: int, length: int, work: Callable[[Held], _T], *, exclusive: bool = False) -> _T:
        """As `alone`, for threads that may wait. `work` calls nothing of this disk but what it is given."""
        with self._moving(change=True), self._io.held(offset, length, exclusive=exclusive):
            return work(self._io)

    def flush_blocking(self) -> None:
        """As `flush`, for threads that may wait."""
        with self._moving():
            self._flush()

    def _flush(self) -> None:
        if not self.read_only:
            self._io.flush()

    @contextlib.contextmanager
    def _use(self, *, change: bool = False) -> Iterator[None]:
        """Keeps `close` from pulling the volume from under a call that is on its way."""
        if change and self.read_only:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        with self._idle:
            if self._closed:
                raise OSError(errno.EBADF, "the disk is closed")
            self._users += 1
        try:
            yield
        finally:
            with self._idle:
                self._users -= 1
                self._idle.notify_all()

    @contextlib.contextmanager
    def _moving(self, *, change: bool = False) -> Iterator[None]:
        """As `_use`. What an image contradicts itself about is an I/O error to those who want its bytes."""
        with self._use(change=change):
            try:
                yield
            except ImageError as error:
                raise OSError(errno.EIO, str(error)) from error

    async def _in_thread(self, call: Callable[_P, _T], *arguments: _P.args, **options: _P.kwargs) -> _T:
        """Runs `call` beside the event loop. A caller that is cancelled goes on only when the call has ended or can no
        longer start, so that an aborted command never touches the medium after its abort was reported."""
        try:
            job = self._threads.submit(call, *arguments, **options)
        except RuntimeError as error:
            raise OSError(errno.EBADF, "the disk is closed") from error
        result = asyncio.wrap_future(job)
        try:
            return await asyncio.shield(result)
        except asyncio.CancelledError:
            if not job.cancel():
                await _ended(result)
            raise

    def resize(self, length: int) -> None:
        """Makes the disk `length` bytes long, a multiple of 512; blocks, so call it in a thread. Errors: ImageError.

        Nobody may use what is cut off any more. What is new reads as zeros.
        """
        check_length(length)
        with self._use():
            before = self.length
            if self._ciphers:
                self._ciphers.flush()
            try:
                if length > before and self._map.allocates and self.image.resizes:
                    self._clear_tail(min(length, before - before % -self.image.geometry.block_size))
                self._map.resize(length)
            except BaseException:
                self.volume.resize(self.length)
                raise

    def _clear_tail(self, end: int) -> None:
        """What the last block has behind the disk's end, up to `end`, becomes zeros: bytes cut off once, or those of a
        longer parent. Only then may the image say that they are there, or a crash would show them."""
        before = self.length
        if end > before:
            self.volume.resize(end)
            self._io.zero(before, end - before, deallocate=False)
            self._io.flush()

    def snapshots(self) -> Sequence[Kept]:
        """The internal snapshots, in the image's order."""
        with self._use():
            return self._snapshots.list()

    def snapshot(self, name: str) -> tuple[Kept, int]:
        """Keeps the disk as it is now, in the image itself, while others go on using it; blocks, so call it in a
        thread. Returns the snapshot and the microseconds that writes had to wait. Errors: OSError, ImageError."""
        self._refuse_encrypted()
        with self._use(change=True):
            return self._snapshots.take(name)

    def delete_snapshot(self, which: str) -> None:
        """Forgets the snapshot of this ID or name; as `snapshot`."""
        self._refuse_encrypted()
        with self._use(change=True):
            self._snapshots.delete(which)

    def bitmaps(self) -> list[dict[str, Any]]:
        """The image's persistent dirty bitmaps, as `formats.qcow2.bitmap_verbs` tells them. Errors: ImageError."""
        with self._use(), self._map.lock:
            return bitmap_verbs.told(self.image)

    def change_bitmap(self, action: str, name: str, **how: Any) -> None:
        """Changes one while others go on using the disk, whose writes wait meanwhile; blocks. What they wrote before
        counts as before. Arguments and errors as of `formats.qcow2.bitmap_verbs.change`."""
        with self._use(change=True), self._map.telling_anew():
            bitmap_verbs.change(self.image, action, name, **how)

    def _refuse_encrypted(self) -> None:
        if self._ciphers:
            raise UnsupportedFeature("the image is encrypted: take and delete its snapshots while nobody uses it")

    def name_parent(self, reference: Reference | None) -> None:
        """Makes all durable, then names another parent of the image, or none. This disk still reads the old one, so it
        is to be closed then. Blocks. Errors: ImageError, OSError."""
        with self._use(change=True), self._map.editing():
            if self._ciphers:
                self._ciphers.flush()
            self.image.name_parent(reference)

    def close(self) -> None:
        """Waits for what runs, flushes, and releases descriptors and locks; blocks. A second call does nothing.

        A logical unit that still serves `volume` keeps the files open, and locked, until it is removed; where writes
        allocate it can only read. Errors: OSError of the flush, after everything was released.
        """
        self._snapshots.stop()
        self._threads.shutdown(wait=True)  # what already waits for a thread is still done
        with self._idle:
            if self._closed:
                return
            self._closed = True
            self._idle.wait_for(lambda: not self._users)
        if self._keeper:
            self._keeper.stop()
        try:
            if self._map.allocates:
                self.volume.quiesce()  # no commit would ever tell of what a logical unit still wrote
            self._map.tell()
            self._flush()
            self._map.commits.kept.punch()
            self._map.commits.close()
            if self._ciphers:
                self._ciphers.close()
        finally:
            self.volume.close()
            self._close_images()

    def _close_images(self) -> None:
        with contextlib.ExitStack() as closing:
            for image in (*reversed(self._parents), self.image):
                closing.callback(image.close)


async def _ended(result: asyncio.Future[_T]) -> None:
    """Waits for `result`, however often the waiting is cancelled meanwhile."""
    while not result.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait([result])
