"""vstore as the guest tests run it: `vstore export` in the foreground, and `vstore serve` with its REST API.

Both run as processes of their own, with every path in a directory of the test's choosing, and end with it.
"""

import contextlib
import os
import signal
import sys
import time
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx2

from tests.guest.machine import VhostUserScsi
from tests.guest.process import Log, Process, show_on_failure
from vstore.target.client import TargetClient
from vstore.target.errors import TargetError

START_SECONDS = 30.0
JOB_SECONDS = 120.0
VSTORE = Path(sys.executable).with_name("vstore")


class BackendError(Exception):
    """vstore did not start, ended early, or refused a request; the text holds its own words."""


def _wait_for_socket(process: Process, path: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not path.is_socket():
        if not process.running or time.monotonic() > deadline:
            raise BackendError(f"{process.title} made no socket {path}; it said:\n{process.output}")
        time.sleep(0.02)


def _vrings(control: Path) -> str:
    """The target process's counters, a line for each vring: where a command was lost shows here."""
    try:
        with TargetClient(str(control), timeout=5.0) as client:
            return "\n".join(map(str, client.status().vrings))
    except TargetError as error:
        return f"({error})"


class Export:
    """`vstore export IMAGE --format FORMAT --socket PATH`: one disk at target 0, LUN 0. Leaving the block stops it."""

    def __init__(self, image: Path, *options: str, format: str = "raw") -> None:
        self.socket = image.with_suffix(".sock")
        words: list[str | Path] = [VSTORE, "export", image, "--format", format, "--socket", self.socket, *options]
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


class Daemon:
    """`vstore serve` with its state and sockets below `directory`, asked over its UNIX socket as any client would.

    Leaving the block sends SIGTERM, which ends the target processes too; one that is left over is killed and reported.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._state, self._runtime = directory / "state", directory / "run"
        self._shown: list[Log] = []
        words: list[str | Path] = [VSTORE, "serve", "--no-listen"]  # other daemons may run beside
        words += ["--state-dir", self._state, "--runtime-dir", self._runtime]
        self.process = Process("vstore serve", words, directory / "serve.log")

    def __enter__(self) -> Self:
        socket = self._runtime / "api.sock"
        try:
            _wait_for_socket(self.process, socket)
        except BackendError:
            self.process.kill()
            raise
        transport = httpx2.HTTPTransport(uds=str(socket))
        self._http = httpx2.Client(transport=transport, base_url="http://vstore/v1", timeout=START_SECONDS)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()
        for log in self._shown:
            log.close(keep=kind is not None)
        try:
            status = self.process.stop()
        finally:
            left = self._end_leftovers()
        if kind is None and (status or left):
            raise BackendError(f"vstore serve ended with {status} and left {left}:\n{self.process.output}")

    def create_image(self, name: str, mebibytes: int) -> Path:
        """A raw image in the default pool; the path of its file."""
        self._ask("PUT", f"pools/default/images/{name}", {"virtual_size_bytes": mebibytes << 20, "format": "raw"})
        return self.image_path(name)

    def image_path(self, name: str) -> Path:
        (path,) = (path for path in self._state.rglob(f"{name}.*") if path.suffix != ".vstore-state")
        return path

    def resize_image(self, name: str, mebibytes: int) -> None:
        self._ask("PATCH", f"pools/default/images/{name}", {"virtual_size_bytes": mebibytes << 20})

    def compress_image(self, name: str, compressed: str) -> None:
        """A new qcow2 image with the content of another, every cluster compressed."""
        self._finish("POST", f"pools/default/images/{name}/convert", {"into": compressed, "compress": True})

    def clone_image(self, name: str, clone: str) -> None:
        """An empty overlay on an image."""
        self._ask("POST", f"pools/default/images/{name}/clone", {"name": clone})

    def take_snapshot(self, image: str, name: str) -> int:
        """How long writes stood still, in microseconds."""
        pause: int = self._ask("PUT", f"pools/default/images/{image}/snapshots/{name}", {})["pause_us"]
        return pause

    def apply_snapshot(self, image: str, name: str) -> None:
        self._finish("POST", f"pools/default/images/{image}/snapshots/{name}/apply", {})

    def check_image(self, name: str) -> dict[str, Any]:
        """What the check found; the image must not be mapped."""
        found: dict[str, Any] = self._finish("POST", f"pools/default/images/{name}/check", {})["result"]
        return found

    def _finish(self, method: str, path: str, body: dict[str, Any]) -> Any:
        """Starts a job and waits for it to succeed."""
        job = self._ask(method, path, body)
        deadline = time.monotonic() + JOB_SECONDS
        while job["state"] in ("queued", "running") and time.monotonic() < deadline:
            job = self._ask("GET", f"jobs/{job['id']}?wait=5")
        if job["state"] != "succeeded":
            raise BackendError(f"{method} {path}: {job}")
        return job

    def create_target(self, name: str, *, queues: int = 1, beside: str | None = None) -> None:
        self._ask("PUT", f"targets/{name}", {"request_queues": queues, "beside": beside})
        directory = self._runtime / "targets" / name
        self._shown.append(show_on_failure(f"log of target {name}", directory / "log"))
        self._shown.append(show_on_failure(f"vrings of target {name}", partial(_vrings, directory / "ctl.sock")))

    def map_lun(self, target: str, address: str, image: str, **settings: Any) -> None:
        """`address` is LUN or TARGET:LUN; settings are fields of the request (serial, read_only, ...)."""
        self._ask("PUT", f"targets/{target}/luns/{address}", {"image": image, **settings})

    def unmap_lun(self, target: str, address: str) -> None:
        self._ask("DELETE", f"targets/{target}/luns/{address}")

    def controller(self, target: str, *, queues: int = 1, boot_target: int | None = None) -> VhostUserScsi:
        socket = Path(self._ask("GET", f"targets/{target}")["socket"])
        return VhostUserScsi(socket, queues=queues, boot_target=boot_target)

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        headers = {"Content-Type": "application/merge-patch+json"} if method == "PATCH" else {}
        answer = self._http.request(method, path, json=body, headers=headers)
        if answer.is_error:
            raise BackendError(f"{method} {path}: {answer.status_code} {answer.text}")
        return answer.json() if answer.content else None

    def _end_leftovers(self) -> list[int]:
        """Processes whose command line names our directory: targets that outlived their daemon."""
        left = []
        for entry in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                if str(self._runtime).encode() in entry.read_bytes():
                    left.append(int(entry.parent.name))
                    os.kill(left[-1], signal.SIGKILL)
        return left
