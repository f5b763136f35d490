"""Starting a target process: in a session of its own, so that it outlives whoever started it."""

import contextlib
import os
import select
import site
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import vstore
from vstore.target.errors import ErrorCode, TargetError

START_TIMEOUT = 30.0  # seconds
_SECRET = "VSTORE_TOKEN"


def target_process(*arguments: str, output: int, pass_fds: Sequence[int]) -> subprocess.Popen[bytes]:
    """`python -m vstore.target` in a session of its own, with `output` and `pass_fds` and no other descriptor.

    Raises OSError.
    """
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "vstore.target", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        start_new_session=True,
        pass_fds=pass_fds,
        cwd="/",
        env=child_environment(),
    )


def begin(control: str, output: int, ready: int) -> subprocess.Popen[bytes]:
    """One that listens at `control`, logs to `output`, and then writes a line to `ready`. Raises OSError."""
    return target_process("--control", control, "--ready-fd", str(ready), output=output, pass_fds=[ready])


Begin = Callable[[str, int, int], subprocess.Popen[bytes]]


def spawn(control: str, log: Path, *, timeout: float = START_TIMEOUT, begin: Begin = begin) -> subprocess.Popen[bytes]:
    """Starts a target process and waits until its control socket at `control` listens.

    Its log lines are appended to the file `log` (mode 0600: they tell of guests and images); it gets no other
    descriptor. Whoever calls reaps it.
    Raises TargetError (`not_started`, with the last line of the log).
    """
    ready, tell_ready = os.pipe()
    with contextlib.ExitStack() as undo:
        undo.callback(os.close, ready)
        try:
            process, logged_before = _logging(begin, control, log, tell_ready)
        finally:
            os.close(tell_ready)
        if not _became_ready(ready, timeout):
            process.kill()
            status = process.wait()
            last = _last_line(log, logged_before)
            detail = f"the target process for {control} did not start (status {status}, {timeout:g} s): {last}"
            raise TargetError(ErrorCode.NOT_STARTED, detail)
    return process


def _logging(begin: Begin, control: str, log: Path, tell_ready: int) -> tuple[subprocess.Popen[bytes], int]:
    """The process, and the length that its log had before."""
    try:
        with open(log, "ab", opener=lambda path, flags: os.open(path, flags, 0o600)) as output:
            logged_before = output.tell()
            process = begin(control, output.fileno(), tell_ready)
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
    poll = select.poll()  # select(2) ends at descriptor 1023
    poll.register(ready, select.POLLIN)
    return bool(poll.poll(timeout * 1000)) and bool(os.read(ready, 16))


def _last_line(log: Path, start: int) -> str:
    with contextlib.suppress(OSError), log.open("rb") as file:
        file.seek(start)
        lines = file.read()[-4096:].decode(errors="replace").splitlines()
        if lines:
            return lines[-1]
    return "it logged nothing"
