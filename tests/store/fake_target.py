"""A target process without rings: it speaks the control channel, keeps descriptors, and fails when it is told to.

`python -m tests.store.fake_target CONTROL`. A file `faults.json` beside CONTROL maps a verb to a fault: an error code
to answer with, `die` (before doing it), or `hang`; a code and `die` also with `_after`: once it is done.
"""

import json
import os
import select
import socket
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from formats.host_file import HostFile
from formats.qcow2 import bitmap_verbs
from formats.qcow2.image import Qcow2
from vstore.target.declaration import parse, plain
from vstore.target.errors import ErrorCode, TargetError
from vstore.target.packet import Packet, encode, receive, send
from vstore.target.sockets import adopt, listen
from vstore.target.verbs import (
    VERBS,
    BitmapList,
    BitmapLun,
    BitmapRow,
    Configure,
    Empty,
    Keep,
    LunAddress,
    LunStatus,
    MapLun,
    Mapped,
    Resized,
    ResizeLun,
    SnapshotLun,
    Snapshots,
    Status,
    StatusRequest,
)


class FakeTarget:
    def __init__(self) -> None:
        self.configuration: Configure | None = None
        self.listener: socket.socket | None = None
        self.luns: dict[tuple[int, int], tuple[LunStatus, int | None]] = {}
        self.stopped = False
        self.kept: list[socket.socket] = []

    def configure(self, request: Configure, fd: int | None) -> Empty:
        if self.configuration is None:
            assert fd is not None, "no socket came along"
            self.listener = adopt(fd)
            self.configuration = request
        elif request != self.configuration:
            raise TargetError(ErrorCode.ALREADY_CONFIGURED, "configured otherwise")
        return Empty()

    def map_lun(self, request: MapLun, fd: int | None) -> Mapped:
        if (request.target, request.lun) in self.luns:
            raise TargetError(ErrorCode.LUN_EXISTS, "there is one")
        length = request.image.length or 0 if fd is None else _length(request.image.format, fd)
        status = LunStatus(settings=request, length=length, read_only=request.read_only, thin=True, in_flight=0)
        self.luns[request.target, request.lun] = (status, fd)
        return Mapped(length=length, read_only=request.read_only, thin=True)

    def unmap_lun(self, request: LunAddress, _fd: int | None) -> Empty:
        if (request.target, request.lun) not in self.luns:
            raise TargetError(ErrorCode.NO_SUCH_LUN, "there is none")
        _, fd = self.luns.pop((request.target, request.lun))
        if fd is not None:
            os.close(fd)
        return Empty()

    def resize_lun(self, request: ResizeLun, _fd: int | None) -> Resized:
        status, fd = self.luns[request.target, request.lun]
        if fd is not None and status.settings.image.format == "raw":
            os.ftruncate(fd, request.length)
        self.luns[request.target, request.lun] = (replace(status, length=request.length), fd)
        return Resized(length=request.length)

    def snapshot_lun(self, request: SnapshotLun, _fd: int | None) -> Snapshots:
        _, fd = self.luns[request.target, request.lun]
        assert fd is not None
        with Qcow2(HostFile.from_descriptor(os.dup(fd), lock=False)) as image:
            if request.action == "create":
                image.snapshots.take(request.name)
            if request.action == "delete":
                image.snapshots.delete(request.name)
        return Snapshots(snapshots=(), pause_us=750 if request.action == "create" else None)

    def bitmap_lun(self, request: BitmapLun, _fd: int | None) -> BitmapList:
        _, fd = self.luns[request.target, request.lun]
        assert fd is not None
        with Qcow2(HostFile.from_descriptor(os.dup(fd), lock=False), track_writes=True) as image:
            if request.action != "list":
                how = {"granularity": request.granularity, "enabled": request.enabled}
                sources = [source.name for source in request.sources]
                bitmap_verbs.change(image, request.action, request.name, sources=sources, **how)
            return BitmapList(bitmaps=tuple(BitmapRow(**row) for row in bitmap_verbs.told(image)))

    def status(self, _request: StatusRequest, _fd: int | None) -> Status:
        return Status(
            protocol=1,
            version="fake",
            pid=os.getpid(),
            state="listening" if self.configuration else "new",
            configuration=self.configuration,
            vrings=(),
            luns=tuple(status for status, _ in self.luns.values()),
            next_lun=None,
        )

    def keep(self, _request: Keep, fd: int | None) -> Empty:
        assert fd is not None, "no socket came along"
        self.kept.append(socket.socket(fileno=fd))
        return Empty()

    def stop(self, _request: Empty, _fd: int | None) -> Empty:
        self.stopped = True
        return Empty()


def _length(format: str, fd: int) -> int:
    return os.fstat(fd).st_size if format == "raw" else int.from_bytes(os.pread(fd, 8, 24), "big")


def answer(target: FakeTarget, packet: Packet, faults: Path) -> dict[str, Any]:
    message = packet.message()
    number, verb = message.pop("id"), VERBS[message.pop("verb")]
    fault = json.loads(faults.read_text()).get(verb.name) if faults.exists() else None
    if fault == "die":
        os._exit(9)
    if fault == "hang":
        select.select([], [], [])
    try:
        if fault and not fault.endswith("_after"):
            raise TargetError(ErrorCode(fault), f"{verb.name} fails as it was told to")
        if message.get("state"):
            state = packet.descriptors.take()
            assert state is not None, "no state came along"
            os.close(state)
        outcome = getattr(target, verb.name)(parse(verb.request, message), packet.descriptors.take())
        if fault and fault != "die_after":
            raise TargetError(ErrorCode(fault.removesuffix("_after")), f"{verb.name} fails once it is done")
    except TargetError as error:
        return {"id": number, "error": {"code": error.code, "detail": error.detail}}
    if fault == "die_after":
        os._exit(9)
    return {"id": number, "ok": plain(outcome)}


def main(control: str) -> None:
    target, listener = FakeTarget(), listen(control, socket.SOCK_SEQPACKET)
    print("ready", flush=True)
    open_sockets = [listener.socket]
    while not target.stopped:
        for ready in select.select(open_sockets, [], [])[0]:
            if ready is listener.socket:
                open_sockets.append(ready.accept()[0])
                continue
            packet = receive(ready)
            if packet is None:
                open_sockets.remove(ready)
                ready.close()
                continue
            with packet.descriptors:
                send(ready, encode(answer(target, packet, Path(control).parent / "faults.json")))
    listener.close()
    if target.listener:
        target.listener.close()


if __name__ == "__main__":
    main(sys.argv[1])
