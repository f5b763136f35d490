"""Starting a target process: in a session of its own, so that it outlives whoever started it."""

import contextlib
import os
import select
import site
import subprocess
import sys
from pathlib import Path

import vstore
from vstore.target.errors import ErrorCode, TargetError

START_TIMEOUT = 30.0  # seconds
_SECRET = "VSTORE_TOKEN"


def spawn(control: str, log: Path, *, timeout: float = START_TIMEOUT) -> subprocess.Popen[bytes]:
    """Starts a target process and waits until its control socket at `control` listens.

    Its log lines are appended to the file `log` (mode 0600: they tell of guests and images); it gets no other
    descriptor. Whoever calls reaps it.
    Raises TargetError (`not_started`, with the last line of the log).
    """
    ready, tell_ready = os.pipe()
    with contextlib.ExitStack() as undo:
        undo.callback(os.close, ready)
        try:
            process, logged_before = _start(control, log, tell_ready)
        finally:
            os.close(tell_ready)
        if not _became_ready(ready, timeout):
            process.kill()
            status = process.wait()
            last = _last_line(log, logged_before)
            detail = f"the target process for {control} did not start (status {status}, {timeout:g} s): {last}"
            raise TargetError(ErrorCode.NOT_STARTED, detail)
    return process


def _start(control: str, log: Path, tell_ready: int) -> tuple[subprocess.Popen[bytes], int]:
    command = [sys.executable, "-P", "-m", "vstore.target", "--control", control, "--ready-fd", str(tell_ready)]
    try:
        with open(log, "ab", opener=lambda path, flags: os.open(path, flags, 0o600)) as output:
            logged_before = output.tell()
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                pass_fds=[tell_ready],
                cwd="/",
                env=child_environment(),
            )
    except OSError as error:
        raise TargetError(ErrorCode.NOT_STARTED, f"the target process for {control}: {error}") from error
    return process, logged_before


def child_environment() -> dict[str, str]:
    """The child imports the same vstore as its parent, also from a source tree that is not installed. A token that
    stands in the parent's environment is not for a process that a guest may have in its hand."""
    environment = {name: value for name, value in os.environ.items() if name != _SECRET}
    root = str(Path(vstore.__file__).parents[1])
    if root in site.getsitepackages():
        return environment
    return {**environment, "PYTHONPATH": os.pathsep.join(filter(None, [root, environment.get("PYTHONPATH")]))}


def _became_ready(ready: int, timeout: float) -> bool:
    """A process that dies closes its end, which reads as nothing."""
    readable, _, _ = select.select([ready], [], [], timeout)
    return bool(readable) and bool(os.read(ready, 16))


def _last_line(log: Path, start: int) -> str:
    with contextlib.suppress(OSError), log.open("rb") as file:
        file.seek(start)
        lines = file.read()[-4096:].decode(errors="replace").splitlines()
        if lines:
            return lines[-1]
    return "it logged nothing"
