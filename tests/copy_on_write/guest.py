"""Guest: the disk as a virtual machine has it, behind `vstore export` of the whole chain, over vhost-user.

parts of an operation, one per request queue --> SCSI commands, one under way on each queue --> export process
                                                                        SIGTERM: an orderly end, SIGKILL: a crash
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tests.copy_on_write.layer import KEY
from tests.copy_on_write.operations import Operation
from vstore.client import DriverSettings, ScsiDriver
from vstore.client.errors import BackendGone
from vstore.client.request import CommandResult, Pending
from vstore.client.virtio_scsi import LunFormat, encode_lun

SECTOR = 512
PATIENCE = 30  # seconds for anything to happen

_READ, _WRITE, _WRITE_SAME, _SYNCHRONIZE_CACHE, _READ_CAPACITY = 0x88, 0x8A, 0x93, 0x91, 0x9E
_LUN = encode_lun(0, 0, LunFormat.FLAT)


class GuestError(AssertionError):
    """A command failed, or the process did not do what it should."""


class Guest:
    """Raises GuestError. Everything it is given to do begins and ends at logical blocks."""

    def __init__(self, process: subprocess.Popen[bytes], driver: ScsiDriver) -> None:
        self._process, self._driver = process, driver
        while self._command(bytes(6)).status:
            pass  # unit attentions
        told = self._good(_cdb(_READ_CAPACITY, 0, 32, 0x10), data_in_length=32)
        self._thin = bool(told.data_in[14] & 0x80)
        self.length = (int.from_bytes(told.data_in[:8], "big") + 1) * int.from_bytes(told.data_in[8:12], "big")

    def _command(self, cdb: bytes, data_in_length: int = 0) -> CommandResult:
        return self._driver.wait(self._driver.submit(_LUN, cdb, data_in_length=data_in_length), PATIENCE)

    def _good(self, cdb: bytes, data_in_length: int = 0) -> CommandResult:
        return _checked(self._command(cdb, data_in_length), cdb)

    def flush(self) -> None:
        """SYNCHRONIZE CACHE (16) of the whole disk."""
        self._good(_cdb(_SYNCHRONIZE_CACHE, 0, 0))

    def drive(self, parts: Sequence[Sequence[Operation]], done: Callable[[Operation, bytes], None]) -> None:
        """Does each part on a queue of its own, all at once. `done` is told each operation and what it read."""
        waiting = [iter(part) for part in parts]
        running: dict[int, tuple[Operation, Pending[CommandResult]]] = {}
        end = time.monotonic() + PATIENCE
        for queue in range(len(parts)):
            self._next(queue, waiting[queue], running)
        while running:
            if time.monotonic() > end:
                raise GuestError(f"not done after {PATIENCE} s: {[str(one) for one, _ in running.values()]}")
            self._driver.poll(0.1)
            for queue, (operation, pending) in list(running.items()):
                if pending.done:
                    result = _checked(pending.result, str(operation).encode())
                    done(operation, result.data_in)
                    del running[queue]
                    self._next(queue, waiting[queue], running)

    def _next(
        self,
        queue: int,
        part: Iterator[Operation],
        running: dict[int, tuple[Operation, Pending[CommandResult]]],
    ) -> None:
        for operation in part:
            cdb, data_out, data_in = self._meant(operation)
            running[queue] = operation, self._driver.submit(_LUN, cdb, data_out, data_in, queue=queue)
            return

    def _meant(self, operation: Operation) -> tuple[bytes, bytes, int]:
        lba, blocks = operation.offset // SECTOR, operation.length // SECTOR
        if operation.kind == "read":
            return _cdb(_READ, lba, blocks), b"", operation.length
        if operation.kind == "write":
            return _cdb(_WRITE, lba, blocks), operation.data(operation.length), 0
        unmap = 8 if operation.kind == "discard" and self._thin else 0
        return _cdb(_WRITE_SAME, lba, blocks, unmap), bytes(SECTOR), 0

    def end(self, number: int) -> None:
        """Sends the process a signal, and waits for its end."""
        self._process.send_signal(number)
        code = self._process.wait(PATIENCE)
        if number == signal.SIGTERM and code:
            raise GuestError(f"the target ended with exit code {code}")


def _cdb(code: int, lba: int, blocks: int, flags: int = 0) -> bytes:
    return bytes([code, flags, *lba.to_bytes(8, "big"), *blocks.to_bytes(4, "big"), 0, 0])


def _checked(result: CommandResult, what: bytes) -> CommandResult:
    if result.status:
        raise GuestError(f"{what!r} ended with status {result.status:#x} and sense {result.sense.hex(' ')}")
    return result


@contextlib.contextmanager
def started(path: Path, format: str, queues: int, *, direct: bool) -> Iterator[Guest]:
    """A target process that serves the chain, and a guest with so many request queues."""
    socket, log = path.parent / "vhost.sock", path.parent / "export.log"
    key = path.parent / "key"
    key.write_bytes(KEY)
    argv = [sys.executable, "-m", "api.cli", "export", str(path), "--format", format, "--socket", str(socket)]
    argv += ["--secret-file", str(key)]
    with log.open("wb") as output:
        process = subprocess.Popen([*argv, "--direct"] if direct else argv, stdout=output, stderr=output)
    try:
        with _connected(socket, process, log, queues) as driver:
            yield Guest(process, driver)
    finally:
        process.kill()
        process.wait()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(socket)


def _connected(socket: Path, process: "subprocess.Popen[bytes]", log: Path, queues: int) -> ScsiDriver:
    """The driver, as soon as somebody listens: the socket has its name a moment before."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            return ScsiDriver(socket, DriverSettings(request_queues=queues))
        except BackendGone:
            if process.poll() is not None or time.monotonic() > end:
                raise GuestError(f"the target does not start: {log.read_text()[-2000:]}") from None
        time.sleep(0.01)
