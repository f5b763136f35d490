"""The process that is crashed.

python -m tests.crash.workload FOLDER VARIANT SEED [MUTANT]      with the recorder loaded
"""

import os
import sys
import traceback
from pathlib import Path

from tests.crash import mutants
from tests.crash.guest import Guest
from tests.crash.served import ServedGuest
from tests.crash.small import small_numbers
from tests.crash.variants import VARIANTS


def main(folder: str, variant: str, seed: str, mutant: str = "") -> None:
    row = VARIANTS[variant]
    mutants.apply(mutant)
    with small_numbers(row.cluster_size):
        kind = ServedGuest if row.served else Guest
        try:
            kind(Path(folder), row, seed).run()
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)  # threads of the disk would keep the process


if __name__ == "__main__":
    main(*sys.argv[1:])
