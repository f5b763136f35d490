"""A real target process per test, steered over its control socket and used through its vhost-user socket."""

import contextlib
import os
import queue
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from vstore.client import VstoreDevice
from vstore.target.client import TargetClient
from vstore.target.spawn import spawn
from vstore.target.verbs import Configure, Event, ImageSource, MapLun

MIB = 1 << 20
VSTORE = [sys.executable, "-m", "api.cli"]


@dataclass
class Running:
    """A spawned process and one connection to it."""

    process: subprocess.Popen[bytes]
    client: TargetClient
    folder: Path
    events: "queue.Queue[Event]" = field(default_factory=queue.Queue)

    @property
    def socket(self) -> str:
        return str(self.folder / "vhost.sock")

    @property
    def control(self) -> str:
        return str(self.folder / "control.sock")

    def configure(self, **settings: object) -> None:
        self.client.configure(Configure(name="vm0", socket=self.socket, **settings))  # type: ignore[arg-type]

    def map_file(self, path: Path, lun: int = 0, **settings: object) -> None:
        """As the daemon does: opens, hands over, closes."""
        flags = os.O_RDONLY if settings.get("read_only") else os.O_RDWR
        descriptor = os.open(path, flags | os.O_CLOEXEC)
        try:
            self.client.map_lun(request(lun, str(path), **settings), descriptor)
        finally:
            os.close(descriptor)

    def device(self, lun: int = 0) -> VstoreDevice:
        return VstoreDevice(self.socket, lun=lun, timeout=10)

    def event(self, timeout: float = 5) -> Event:
        return self.events.get(timeout=timeout)

    def descriptors(self) -> list[str]:
        """What the process has open, by kind."""
        found = []
        for entry in Path(f"/proc/{self.process.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # it was closed meanwhile
                found.append(os.readlink(entry).split("[")[0])
        return sorted(found)

    def wait(self) -> int:
        return self.process.wait(timeout=15)


def request(lun: int, name: str = "disk", **settings: object) -> MapLun:
    source = ImageSource(format="raw", name=name)
    return MapLun(lun=lun, serial=f"SERIAL{lun}", **{"image": source, **settings})  # type: ignore[arg-type]


def until(condition: Callable[[], object], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.01)


def running(folder: Path, spawn: Callable[[str, Path], "subprocess.Popen[bytes]"] = spawn) -> Iterator[Running]:
    events: queue.Queue[Event] = queue.Queue()
    control = str(folder / "control.sock")
    process = spawn(control, folder / "target.log")
    try:
        with TargetClient(control, on_event=events.put, timeout=15) as client:
            yield Running(process, client, folder, events)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                raise


@contextlib.contextmanager
def exporting(*arguments: object, pass_fds: tuple[int, ...] = ()) -> Iterator[subprocess.Popen[str]]:
    """Started, and ready to be connected to; killed at the end if it still runs."""
    words = [*VSTORE, "export", *map(str, arguments)]
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, pass_fds=pass_fds
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def hint(process: subprocess.Popen[str]) -> str:
    """The line on stdout, which comes once the socket listens."""
    assert process.stdout
    return process.stdout.readline()


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Running]:
    yield from running(tmp_path)


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk.raw"
    with path.open("wb") as file:
        file.truncate(8 * MIB)
    return path
