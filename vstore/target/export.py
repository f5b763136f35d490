"""`vstore export`: the same target process in the foreground, with its LUNs mapped before the first VMM can connect."""

import asyncio
import contextlib
import hashlib
import logging
import os
import socket
import stat
from collections.abc import Callable, Sequence
from functools import partial

from formats.errors import ImageError, ReferenceOutside
from formats.host_file import HostFile, Path
from formats.image import Image
from formats.registry import open_chain, open_image, probe
from vstore.descriptor_limit import raise_descriptor_limit
from vstore.record import Record
from vstore.target import log
from vstore.target.beginning import begun
from vstore.target.errors import TargetError
from vstore.target.lun import refusal
from vstore.target.main import DONE, FAILED, end_on_signals
from vstore.target.packet import Descriptors
from vstore.target.process import TargetProcess
from vstore.target.state_file import Opener
from vstore.target.verbs import Configure, FrontendDisconnected, MapLun


class Export(Record):
    """What to serve: the endpoint, each LUN with its file's path if it has one, and a socket that was handed in."""

    endpoint: Configure
    luns: Sequence[tuple[MapLun, Path | None]]
    secrets: Sequence[bytes] = ()  # that open images which are encrypted
    beneath: Sequence[Path] = ()  # directories in which parents and data files may lie, besides each image's own
    handed_socket: int | None = None


def export(request: Export, announce: Callable[[], None]) -> int:
    """Serves until a signal ends it; calls `announce` once the socket listens. Returns the exit code.

    Raises TargetError when it cannot start; then nothing is left behind.
    """
    log.set_up(logging.WARNING)
    raise_descriptor_limit()
    return asyncio.run(_serve(request, announce))


async def _serve(request: Export, announce: Callable[[], None]) -> int:
    process = TargetProcess()
    end = end_on_signals(process)
    try:
        for lun, path in request.luns:
            await process.map_images(lun, partial(_opened, lun, path, request), _state(path, read_only=lun.read_only))
        if request.handed_socket is not None and not _listens(request.handed_socket):
            process.on_event(lambda event: end() if isinstance(event, FrontendDisconnected) else None)
        with Descriptors([] if request.handed_socket is None else [request.handed_socket]) as descriptors:
            await process.configure(request.endpoint, descriptors)
    except BaseException:
        with contextlib.suppress(TargetError):
            await process.end()
        raise
    finally:
        begun()
    announce()
    await process.stopped.wait()
    return FAILED if process.unflushed else DONE


def _listens(descriptor: int) -> bool:
    """A socket that is connected already is served once, and then nobody can come any more."""
    handed = socket.socket(fileno=descriptor)
    try:
        return bool(handed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    finally:
        handed.detach()


def stable_serial(name: str) -> str:
    """The same for the same name, so that a guest knows its disk again."""
    return hashlib.sha256(os.path.realpath(name).encode()).hexdigest()[:20]


def looks_like(path: Path) -> str:
    """The format that the file's bytes look like: for a sentence to a person, never to open by. Raises TargetError."""
    try:
        with HostFile.from_path(path, read_only=True, lock=False) as file:
            return probe(file)
    except (ImageError, OSError) as error:
        raise refusal(error) from error


def state_beside(image: str | os.PathLike[str]) -> Opener:
    """Opens the file with what the unit of this image keeps over a restart: IMAGE.vstore-state."""

    def open_file(make: bool) -> int | None:
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_CREAT if make else 0)
        with contextlib.suppress(FileNotFoundError):
            descriptor = os.open(f"{os.fspath(image)}.vstore-state", flags, 0o600)
            if make:
                _keep_name(image)
            return descriptor
        return None

    return open_file


def _keep_name(image: str | os.PathLike[str]) -> None:
    """A file that was made is durable when its directory is."""
    directory = os.open(os.path.dirname(os.path.abspath(image)), os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _state(path: Path | None, *, read_only: bool = False) -> Opener | None:
    """Beside the image itself, not a link to it. Not beside a device: what is made in /dev is gone after the next boot,
    with reservations that were promised. Nor of a disk that is only read: others may keep theirs in the same file,
    which has the image's lock alone."""
    try:
        if path is None or read_only or stat.S_ISBLK(os.stat(path).st_mode):
            return None
        return state_beside(os.path.realpath(path))
    except OSError:  # to open the image tells why
        return None


def _opened(lun: MapLun, path: Path | None, request: Export) -> list[Image]:
    """The image and its parents."""
    source = lun.image
    if path is None:
        return [open_image(source.format, length=source.length)]
    try:
        return open_chain(
            source.format,
            path,
            read_only=lun.read_only,
            direct=source.direct,
            beneath=request.beneath,
            secrets=request.secrets,
        )
    except ReferenceOutside as error:
        raise ReferenceOutside(f"{error}: --beneath DIR") from error
