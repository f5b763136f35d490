"""`vstore serve` as a process, with real target processes, in directories of its own."""

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from api.cli.client import Client
from api.cli.errors import Unreachable
from tests.store.world import ROOT, eventually, kill_all_that_name

SERVE = (sys.executable, "-m", "api.cli", "serve")


class Daemon:
    """One life of a daemon below `root`; `start` begins the next one."""

    def __init__(self, root: Path) -> None:
        self.state, self.runtime = root / "state", root / "run"
        self.client = Client(f"unix://{self.runtime / 'api.sock'}")
        self.log = root / "daemon.log"

    def start(self, *options: str, listen: str | None = None) -> None:
        """`listen`: an address or port for TCP too; tests of other daemons may run beside, so none by default."""
        listening = ["--no-listen"] if listen is None else ["--listen", listen]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*SERVE, "--state-dir", str(self.state), "--runtime-dir", str(self.runtime), *listening, *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=ROOT,
            )
        eventually(self._answers)

    def _answers(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        try:
            self.client.call("GET", "/")
        except Unreachable:
            return False
        return True

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Sends the signal; the exit status."""
        self.process.send_signal(number)
        return self.process.wait(60)

    def put(self, path: str, **body: object) -> dict[str, Any]:
        return self.client.call("PUT", f"/v1/{path}", body)

    def get(self, path: str) -> dict[str, Any]:
        return self.client.call("GET", f"/v1/{path}")

    def pid(self, target: str) -> int:
        return int(self.get(f"targets/{target}")["process"]["pid"])

    def is_up(self, target: str) -> bool:
        process = self.get(f"targets/{target}")["process"]
        return process["state"] in ("listening", "connected") and process["problem"] is None

    def image(self, name: str) -> Path:
        return self.state / "pools" / "default" / f"{name}.raw"

    def clean_up(self) -> None:
        """Ends whatever is left: the daemon, and targets that outlived one."""
        if self.process.poll() is None:
            self.end(signal.SIGKILL)
        kill_all_that_name(self.runtime)
