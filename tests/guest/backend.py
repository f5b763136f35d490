"""vstore as the guest tests run it: `vstore export` in the foreground, and `vstore serve` with its REST API.

Both run as processes of their own, with every path in a directory of the test's choosing, and end with it.
"""

import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.guest.machine import VhostUserScsi
from tests.guest.process import Process

START_SECONDS = 30.0
VSTORE = Path(sys.executable).with_name("vstore")


class BackendError(Exception):
    """vstore did not start, ended early, or refused a request; the text holds its own words."""


def make_image(path: Path, mebibytes: int) -> Path:
    """A sparse raw file of so many MiB."""
    with path.open("wb") as file:
        file.truncate(mebibytes << 20)
    return path


def allocated_bytes(path: Path) -> int:
    """What the file takes up on the host's disk: st_blocks counts 512-byte units (POSIX sys/stat.h)."""
    return path.stat().st_blocks * 512


def _wait_for_socket(process: Process, path: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not path.is_socket():
        if not process.running or time.monotonic() > deadline:
            raise BackendError(f"{process.title} made no socket {path}; it said:\n{process.output}")
        time.sleep(0.02)


class Export:
    """`vstore export IMAGE --format raw --socket PATH`: one disk at target 0, LUN 0. Leaving the block stops it."""

    def __init__(self, image: Path, *options: str) -> None:
        self.socket = image.with_suffix(".sock")
        words: list[str | Path] = [VSTORE, "export", image, "--format", "raw", "--socket", self.socket, *options]
        self.process = Process("vstore export", words, image.with_suffix(".export.log"))

    def __enter__(self) -> Self:
        try:
            _wait_for_socket(self.process, self.socket)
        except BackendError:
            self.process.kill()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        status = self.process.stop()
        if status and kind is None:
            raise BackendError(f"vstore export ended with {status}:\n{self.process.output}")

    def controller(self, *, queues: int = 1, boot_target: int | None = None) -> VhostUserScsi:
        return VhostUserScsi(self.socket, queues=queues, boot_target=boot_target)
