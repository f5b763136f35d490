"""Child processes of the guest tests: their output goes to log files, and none of them outlives the tests.

`setpriv --pdeathsig KILL` makes the kernel end a child when the process that started it dies, even by SIGKILL. The log
files of everything that ran during a test are shown when that test fails (conftest.py).
"""

import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.guest.kernel import find_tool

TAIL_BYTES = 12_000


@dataclass
class Log:
    """Something that a failure shows; `closed` ones are forgotten after the test that closed them."""

    title: str
    read: Callable[[], str]
    closed: bool = False

    def close(self, *, keep: bool = False) -> None:
        """Its source is about to go: `keep` what it says now, for the failure that is on its way."""
        if keep:
            text = self.read()
            self.read = lambda: text
        self.closed = True


LOGS: list[Log] = []


def show_on_failure(title: str, source: Path | Callable[[], str]) -> Log:
    """Show a file's tail, or what a function returns then, with every failure from now on."""
    log = Log(title, partial(tail, source) if isinstance(source, Path) else source)
    LOGS.append(log)
    return log


def tail(path: Path) -> str:
    """The last TAIL_BYTES of a file as text."""
    data = path.read_bytes() if path.exists() else b"(no such file)"
    return data[-TAIL_BYTES:].decode(errors="replace")


class Process:
    """A running child, its output appended to `log`; ended by stop(), kill() or our own death."""

    def __init__(self, title: str, command: Sequence[str | Path], log: Path, pass_fds: Sequence[int] = ()) -> None:
        guard: list[str | Path] = [find_tool("setpriv", "util-linux"), "--pdeathsig", "KILL", "--"]
        self.title = title
        self.command = [str(word) for word in command]
        self._log = show_on_failure(f"{title}: {' '.join(self.command)}", log)
        with log.open("ab") as output:
            self._child = subprocess.Popen(
                [*guard, *self.command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=pass_fds,
            )

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def running(self) -> bool:
        return self._child.poll() is None

    @property
    def output(self) -> str:
        """What it has printed so far (the tail of it)."""
        return self._log.read()

    def wait(self, timeout: float) -> int:
        """Its exit status (negative: the signal). Raises subprocess.TimeoutExpired."""
        status = self._child.wait(timeout)
        self._log.close()
        return status

    def stop(self, timeout: float = 15.0) -> int:
        """SIGTERM, then wait; a child that does not obey is killed and TimeoutExpired is raised."""
        if self.running:
            self._child.terminate()
        try:
            return self.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def kill(self) -> None:
        if self.running:
            self._child.kill()
        self.wait(10)
