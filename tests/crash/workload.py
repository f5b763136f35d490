"""The process that is crashed.

python -m tests.crash.workload FOLDER VARIANT SEED [MUTANT [FAULT]]      with the recorder loaded
"""

import os
import sys
import threading
import traceback
from pathlib import Path

from formats.errors import ImageError
from tests.crash import delays, mutants
from tests.crash.faulty import FaultyGuest
from tests.crash.guest import Guest
from tests.crash.recording import Fault
from tests.crash.served import ServedGuest
from tests.crash.small import small_numbers
from tests.crash.variants import VARIANTS


def main(folder: str, variant: str, seed: str, mutant: str = "", fault: str = "") -> None:
    row = VARIANTS[variant]
    mutants.apply(mutant)
    delays.apply(f"{variant}:{seed}")
    threading.excepthook = _end
    with small_numbers(row.cluster_size):
        kind = ServedGuest if row.served else FaultyGuest if fault else Guest
        if fault:
            FaultyGuest.fault = Fault.parse(fault)
        try:
            guest = kind(Path(folder), row, seed)
        except (OSError, ImageError) as error:
            if not fault:  # else the image could not even be opened, and nobody was told anything
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


if __name__ == "__main__":
    main(*sys.argv[1:])
