"""The Atheris side of tests.fuzz.cdb, started by it: python -m tests.fuzz.cdb --atheris."""

import sys
import time
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["vstore.scsi"]):
    from tests.fuzz import cdb
    from tests.fuzz.cdb_bench import Bench, attempt

SECONDS_BETWEEN_REPORTS = 1.0


def main(seconds: int, seed: int, directory: Path) -> None:
    """Does not return: libFuzzer ends the process, so the report is written while it runs."""
    bench = Bench()
    ran, due = 0, time.monotonic()

    def one(data: bytes) -> None:
        nonlocal ran, due
        error = attempt(bench, data)
        ran += 1
        if error or time.monotonic() >= due:
            due = time.monotonic() + SECONDS_BETWEEN_REPORTS
            (directory / "report").write_text(f"{cdb.report(bench)}\n{ran} cases and more, seed {seed}\n")
        if error:
            cdb.found(data, error)
            raise error

    bred = directory / "bred"
    bred.mkdir()
    cdb.FIXTURES.mkdir(parents=True, exist_ok=True)
    limits = [f"-max_total_time={seconds}", f"-seed={seed}", "-max_len=600", "-len_control=0", "-timeout=20"]
    atheris.Setup([sys.argv[0], *limits, f"-artifact_prefix={directory}/", str(bred), str(cdb.FIXTURES)], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
