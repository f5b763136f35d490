"""A worker process from its first line to its last: limits first, then one piece of work, then its outcome.

It runs under limits of memory and core files, opens no path, and ends at once when the daemon that asked is gone: its
standard input is the leash. A request to cancel only raises a flag, which the work asks between two steps.
"""

import argparse
import json
import os
import resource
import sys
import threading
import traceback
from collections.abc import Sequence
from typing import IO, Any

from vstore.descriptor_limit import raise_descriptor_limit
from vstore.worker.wire import CANCEL, Cancelled, Work, told

MOST_MEMORY = 2 << 30  # bytes of address space
_ABANDONED = 3  # exit status
_TELL_EVERY = 0.1  # seconds between two lines of progress


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m vstore.worker", description=__doc__)
    parser.add_argument("--outcome-fd", metavar="N", type=int, required=True, help="pipe that gets the outcome")
    # An image may hold names that are no text; whoever asked for them over HTTP could not be answered.
    outcome = os.fdopen(parser.parse_args(arguments).outcome_fd, "w", encoding="utf-8", errors="replace")
    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    raise_descriptor_limit()
    work = Work.parse(json.loads(sys.stdin.readline()))
    leash = _Leash(sys.stdin)
    line = json.dumps(_outcome(work, _Teller(outcome), leash), ensure_ascii=False)
    print(line, file=outcome, flush=True)
    os._exit(0)  # the leash's thread still reads


def _outcome(work: Work, tell: "_Teller", leash: "_Leash") -> dict[str, Any]:
    from formats.errors import ImageError  # under the limits
    from vstore.worker.context import Context
    from vstore.worker.verbs import run

    try:
        return {"result": run(work, Context(tell, leash.cancelled.is_set))}
    except BaseException as error:
        if leash.cancelled.is_set():
            error = Cancelled(str(error))
        elif not isinstance(error, ImageError | OSError | MemoryError):
            traceback.print_exc()
        return {"error": told(error)}


class _Leash:
    def __init__(self, stream: IO[str]) -> None:
        self.cancelled = threading.Event()
        threading.Thread(target=self._hold, args=(stream,), name="leash", daemon=True).start()

    def _hold(self, stream: IO[str]) -> None:
        for line in stream:
            if line.strip() == CANCEL:
                self.cancelled.set()
        os._exit(_ABANDONED)


class _Teller:
    """Writes progress, not oftener than anybody looks at it."""

    def __init__(self, outcome: IO[str]) -> None:
        self._outcome = outcome
        self._told = 0.0
        self._lock = threading.Lock()

    def __call__(self, done: int, total: int) -> None:
        from time import monotonic

        with self._lock:
            now = monotonic()
            if now - self._told >= _TELL_EVERY:
                self._told = now
                print(json.dumps({"progress": [done, total]}), file=self._outcome, flush=True)
