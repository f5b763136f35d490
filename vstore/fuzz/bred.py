"""Where Atheris breeds cases; breed.py starts it: python -m vstore.fuzz.bred SECONDS SEED REPORT SEEDS BRED.

Atheris must see vstore.scsi being imported, so nothing above imports it; and libFuzzer ends the process, so the report
is written while it runs.
"""

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import atheris

if TYPE_CHECKING:
    from vstore.fuzz.campaign import Ran

SECONDS_BETWEEN_REPORTS = 1.0
LONGEST = 600  # bytes of a case


def main(seconds: int, seed: int, report: Path, seeds: Path, bred: Path) -> None:
    """Does not return."""
    with atheris.instrument_imports(include=["vstore.scsi"]):
        from vstore.fuzz.bench import Bench, attempt
        from vstore.fuzz.campaign import Ran, examine
    bench, ran, due = Bench(), Ran(), 0.0
    ran.outcomes = bench.outcomes

    def one(data: bytes) -> None:
        nonlocal due
        error = attempt(bench, data)
        ran.cases += 1
        if error:
            ran.finding = examine(data, error)
        if error or time.monotonic() >= due:
            due = time.monotonic() + SECONDS_BETWEEN_REPORTS
            write(report, ran)
        if error:
            raise error

    limits = [f"-max_total_time={seconds}", f"-seed={seed}", f"-max_len={LONGEST}", "-len_control=0", "-timeout=20"]
    atheris.Setup([sys.argv[0], *limits, f"-artifact_prefix={bred}/", str(bred), str(seeds)], one)
    atheris.Fuzz()


def write(report: Path, ran: "Ran") -> None:
    told = {
        "cases": ran.cases,
        "outcomes": [[name, end, count] for (name, end), count in ran.outcomes.items()],
        "finding": ran.finding and {"data": ran.finding.data.hex(), "error": ran.finding.error},
    }
    report.write_text(json.dumps(told))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), *map(Path, sys.argv[3:6]))
