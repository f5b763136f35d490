"""Programs that speak to a SCSI disk by SG_IO, run against the model: sg_io.c is preloaded, and asks here.

sg_inq DISK --SG_IO--> sg_io.so --socket--> Disk --CDB--> Initiator, target, logical unit
"""

import os
import socketserver
import struct
import subprocess
import threading
from pathlib import Path
from typing import Any

from tests.scsi.initiator import Initiator
from vstore.scsi.logical_unit import ResetCause

_NUMBERS = struct.Struct("@III")


def built(folder: Path) -> Path:
    """The library to preload."""
    library = folder / "sg_io.so"
    source = Path(__file__).with_name("sg_io.c")
    warnings = ["-Wall", "-Wextra", "-Werror"]
    subprocess.run(["cc", "-shared", "-fPIC", *warnings, "-o", library, source, "-ldl"], check=True, timeout=60)
    return library


class _Connection(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        disk: Any = self.server
        while head := self.rfile.read(_NUMBERS.size):
            cdb_length, out, room = _NUMBERS.unpack(head)
            cdb, data_out = self.rfile.read(cdb_length), self.rfile.read(out)
            with disk.lock:
                status, sense, data_in = disk.answer(cdb, data_out, room)
            self.wfile.write(_NUMBERS.pack(status, len(sense), len(data_in)) + sense + data_in)


class Disk(socketserver.ThreadingUnixStreamServer):
    """A context manager: inside, programs can be run against the unit."""

    daemon_threads = True

    def __init__(self, folder: Path, initiator: Initiator, library: Path) -> None:
        self.path = folder / "disk"
        self.path.touch()
        super().__init__(str(folder / "socket"), _Connection)
        self._initiator = initiator
        self._environment = {
            **os.environ,
            "LD_PRELOAD": str(library),
            "SG_IO_DISK": str(self.path),
            "SG_IO_SOCKET": str(folder / "socket"),
        }
        self.lock = threading.Lock()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def answer(self, cdb: bytes, data_out: bytes, room: int) -> tuple[int, bytes, bytes]:
        if not cdb:
            self._initiator.unit.reset(ResetCause.LOGICAL_UNIT_RESET)
            return 0, b"", b""
        response = self._initiator.send(cdb, data_out, room)
        return int(response.status), response.sense, response.data_in

    def run(self, command: str, folder: Path) -> "subprocess.CompletedProcess[str]":
        """Through the shell; standard error with standard output."""
        return subprocess.run(
            command,
            shell=True,
            env=self._environment,
            cwd=folder,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=30,
            check=False,
        )

    def server_close(self) -> None:
        self.shutdown()
        super().server_close()
