"""The daemon's side of a worker: start it, hear its progress, get its outcome; ask it to give up, and then make it.

Descriptors that the work names are inherited and stay the caller's. So does `keep`, whose only purpose is to be held
by the worker as long as it lives.
"""

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from vstore.target.spawn import child_environment
from vstore.worker.wire import CANCEL, Cancelled, Work, WorkerFailed, understood

_LOOK_EVERY = 0.1  # seconds between two questions whether to go on
GRACE = 10.0  # seconds between being asked and being killed
# Address space that others take for speed: an arena is 64 MiB, and so is each thread's buffer of a BLAS.
_SMALL = {"MALLOC_ARENA_MAX": "2", "OPENBLAS_NUM_THREADS": "1"}
_LONGEST_LINE = 16 << 20  # bytes of one message; a worker that went mad fills no memory of ours


def never() -> bool:
    return False


def run(
    work: Work,
    *,
    keep: Sequence[int] = (),
    progress: Callable[[int, int], None] = lambda _done, _total: None,
    cancelled: Callable[[], bool] = never,
    grace: Callable[[], float] = lambda: GRACE,
) -> dict[str, Any]:
    """The result of the work, in bytes where it tells sizes; blocks.

    Raises ImageError and OSError as the work did, Cancelled, WorkerFailed.
    """
    ours, theirs = os.pipe()
    with contextlib.ExitStack() as closing:
        closing.callback(os.close, ours)
        try:
            process = _start(work, theirs, keep)
        finally:
            os.close(theirs)
        closing.callback(_end, process)
        leash = _Leash(process, cancelled, grace)
        for message in _messages(ours, leash.look):
            if "progress" in message:
                progress(*message["progress"])
            elif "error" in message:
                raise understood(message["error"])
            else:
                result: dict[str, Any] = message["result"]
                return result
        status = _status(process)
    if leash.pulled:
        raise Cancelled("it was ended")
    raise WorkerFailed(f"the worker ended without an outcome (status {status}); the daemon's log may tell more")


def _start(work: Work, outcome: int, keep: Sequence[int]) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "vstore.worker", "--outcome-fd", str(outcome)],
        stdin=subprocess.PIPE,
        stdout=2,
        pass_fds=[outcome, *work.descriptors, *keep],
        start_new_session=True,  # Ctrl-C in the daemon's terminal is the daemon's to answer
        cwd="/",
        env=child_environment() | _SMALL,
    )
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # its end will tell
        process.stdin.write(json.dumps(work.plain()).encode() + b"\n")
        process.stdin.flush()
    return process


class _Leash:
    """Asks the worker to give up once that is wanted, and kills it when it does not."""

    def __init__(
        self, process: subprocess.Popen[bytes], cancelled: Callable[[], bool], grace: Callable[[], float]
    ) -> None:
        self._process = process
        self._cancelled = cancelled
        self._grace = grace
        self._deadline: float | None = None

    @property
    def pulled(self) -> bool:
        return self._deadline is not None

    def look(self) -> None:
        if self._deadline is None and self._cancelled():
            self._deadline = time.monotonic() + self._grace()
            assert self._process.stdin is not None
            with contextlib.suppress(OSError):
                self._process.stdin.write(CANCEL.encode() + b"\n")
                self._process.stdin.flush()
        elif self._deadline is not None and time.monotonic() > self._deadline:
            self._process.kill()


def _messages(descriptor: int, look: Callable[[], None]) -> Iterator[dict[str, Any]]:
    """Each line as it comes, until the worker's end of the pipe is closed; calls `look` often meanwhile."""
    pending, ready = b"", select.poll()  # select(2) ends at descriptor 1023
    ready.register(descriptor, select.POLLIN)
    while True:
        look()
        if not ready.poll(_LOOK_EVERY * 1000):
            continue
        part = os.read(descriptor, 1 << 16)
        if not part:
            return
        if len(pending) > _LONGEST_LINE:
            raise WorkerFailed(f"the worker told more than {_LONGEST_LINE} bytes at once")
        *lines, pending = (pending + part).split(b"\n")
        for line in lines:
            try:
                yield json.loads(line)
            except ValueError:
                raise WorkerFailed("the worker told what is no JSON") from None


def _status(process: subprocess.Popen[bytes]) -> int:
    """Of one that closed its pipe, and should be at its end."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        return process.wait(GRACE)
    process.kill()
    return process.wait()


def _end(process: subprocess.Popen[bytes]) -> None:
    """Reaps it; who has told its outcome has nothing more to do."""
    assert process.stdin is not None
    with contextlib.suppress(OSError):
        process.stdin.close()
    process.kill()
    process.wait()
