"""`vstore export` as a process of its own: started, waited for, ended, and looked at from outside."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

START_SECONDS = 30


@dataclass(frozen=True)
class Exported:
    """A target that serves one LUN on `socket`."""

    process: subprocess.Popen[bytes]
    socket: Path

    def descriptors(self) -> int:
        """How many are open, but for the image's state file, which the first command that keeps something opens."""
        folder = Path(f"/proc/{self.process.pid}/fd")
        return sum(not os.readlink(each).endswith(".vstore-state") for each in folder.iterdir())


@contextlib.contextmanager
def exported(*arguments: str, folder: Path | None = None) -> Iterator[Exported]:
    """Runs `vstore export ARGUMENTS --socket ...`; on the way out it must end by SIGTERM, with exit code 0. The socket
    is `vhost.sock` of `folder`."""
    with tempfile.TemporaryDirectory(prefix="vstore-") as own:
        socket, log = Path(folder or own, "vhost.sock"), Path(own, "log")
        argv = [sys.executable, "-m", "api.cli", "export", *arguments, "--socket", str(socket)]
        with log.open("wb") as output:
            process = subprocess.Popen(argv, stdout=output, stderr=output)
        try:
            deadline = time.monotonic() + START_SECONDS
            while not socket.exists():
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, f"no socket after {START_SECONDS} s: {log.read_text()}"
                time.sleep(0.02)
            yield Exported(process, socket)
            assert process.poll() is None, f"the target ended by itself: {log.read_text()[-4000:]}"
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=20) == 0, log.read_text()[-4000:]
        finally:
            process.kill()
            process.wait()
