"""What the process does that is crashed."""

import os
import sys
import threading
import traceback
from dataclasses import dataclass
from pathlib import Path

from formats.errors import ImageError
from tests.crash import delays, mutants
from tests.crash.faulty import FaultyGuest
from tests.crash.guest import Guest
from tests.crash.recording import Fault
from tests.crash.served import ServedGuest
from tests.crash.small import small_numbers
from tests.crash.variants import VARIANTS


@dataclass(frozen=True)
class Work:
    """What is done: `mutant`, a defect on purpose; `fault`, calls of the host that fail."""

    variant: str
    seed: int
    mutant: str = ""
    fault: Fault | None = None


def use(folder: Path, work: Work) -> None:
    """Ends the process itself where something goes wrong."""
    row = VARIANTS[work.variant]
    mutants.apply(work.mutant)
    delays.apply(f"{work.variant}:{work.seed}")
    threading.excepthook = _end
    with small_numbers(row.cluster_size):
        kind = ServedGuest if row.served else FaultyGuest if work.fault else Guest
        if work.fault:
            FaultyGuest.fault = work.fault
        try:
            guest = kind(folder, row, str(work.seed))
        except (OSError, ImageError) as error:
            if not work.fault:  # else the image could not even be opened, and nobody was told anything
                _end(error)
            return
        try:
            guest.run()
        except BaseException as error:
            _end(error)


def _end(error: object) -> None:
    """Threads of the disk would keep the process."""
    problem = error.exc_value if isinstance(error, threading.ExceptHookArgs) else error
    if isinstance(problem, BaseException):
        traceback.print_exception(problem)
    sys.stderr.flush()
    os._exit(1)
