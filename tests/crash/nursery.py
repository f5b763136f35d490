"""Forks the processes that are crashed, off one that has everything imported: starting Python anew for each recording
took longer than what it records.

    test --> fork server (recorder loaded, asleep) --fork--> child: the recorder is woken, the workload runs
"""

import ctypes
import functools
import multiprocessing
import os
import sys
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from pathlib import Path
from unittest import mock

from tests.crash import workload
from tests.crash.recording import RECORDER, recorder
from tests.crash.workload import Work

OUTPUT = "output"  # of the workload, in the trial's folder
SECONDS = 120  # a workload may take


def run(environment: dict[str, str], folder: Path, work: Work) -> int:
    """One workload, in a process of its own with that environment. -> its exit code, < 0 for a signal."""
    process = _server().Process(target=_child, args=(environment, folder, work))
    process.start()
    process.join(SECONDS)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise TimeoutError(f"{work} did not end within {SECONDS} s")
    return process.exitcode


@functools.cache
def _server() -> ForkServerContext:
    """Of this process; it ends with it."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with mock.patch.dict(os.environ, LD_PRELOAD=str(recorder())):
        forkserver.ensure_running()
    return context


def _child(environment: dict[str, str], folder: Path, work: Work) -> None:
    output = os.open(folder / OUTPUT, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(output, stream.fileno())
    os.close(output)
    os.environ.update(environment)
    ctypes.CDLL(str(RECORDER)).recorder_begin()
    workload.use(folder, work)
