"""Cases bred by the coverage of the device model that they reach, in a process of its own (bred.py)."""

import importlib.util
import json
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from vstore.fuzz.campaign import Finding, Ran


class CannotBreedError(Exception):
    """Atheris is missing, or ended without a report."""


def breed(seed: int, seconds: float, seeds: Path) -> Ran:
    """Breeds from the cases in the folder `seeds`; what was bred is not kept. CannotBreedError; OSError."""
    if importlib.util.find_spec("atheris") is None:
        raise CannotBreedError("Atheris, which breeds cases, is not installed: pip install 'vstore[fuzz]'")
    with tempfile.TemporaryDirectory(prefix="vstore-fuzz-") as directory:
        report, bred, none = (Path(directory, name) for name in ("report", "bred", "none"))
        bred.mkdir()
        none.mkdir()
        known = seeds if seeds.is_dir() else none
        arguments = [f"{max(seconds, 1):.0f}", str(seed), str(report), str(known), str(bred)]
        ended = subprocess.run([sys.executable, "-m", "vstore.fuzz.bred", *arguments], capture_output=True, check=False)
        if not report.exists():
            raise CannotBreedError(f"Atheris ran no case: {ended.stderr.decode(errors='replace')[-400:]}")
        ran = read(report)
    if ended.returncode and not ran.finding:
        raise CannotBreedError(f"Atheris ended with {ended.returncode}: {ended.stderr.decode(errors='replace')[-400:]}")
    return ran


def read(report: Path) -> Ran:
    """What bred.py wrote."""
    told = json.loads(report.read_text())
    finding = told["finding"] and Finding(bytes.fromhex(told["finding"]["data"]), told["finding"]["error"])
    return Ran(told["cases"], Counter({(name, end): count for name, end, count in told["outcomes"]}), finding)
