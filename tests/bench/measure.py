"""One measurement of one side: vubench's own numbers for a load, the scheduler's for an idle target."""

import json
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from tests.bench.rows import Load, Quantity
from tests.bench.targets import FRONTEND_CORE, Backend

VUBENCH = Path(__file__).parents[1] / "vubench" / "vubench"


@dataclass(frozen=True)
class Sample:
    """`values` by quantity, in the quantity's unit; `disturbance`: cores that others used meanwhile."""

    values: dict[Quantity, float]
    disturbance: float = 0.0


def vubench(backend: Backend, *arguments: str) -> list[str]:
    """The command line of vubench on the front-end's core."""
    connection = ["--socket", str(backend.socket), "--type", backend.device]
    return ["taskset", "-c", FRONTEND_CORE, str(VUBENCH), *arguments, *connection]


def under_load(backend: Backend, load: Load, seconds: float) -> Sample:
    """Raises RuntimeError when any request failed: numbers of a wrong answer are worth nothing."""
    argv = vubench(backend, *load.arguments(seconds), "--json")
    argv += ["--backend-pid", str(backend.process.pid), "--backend-children"]
    argv += ["--prefill"] if backend.blank and not load.command else []
    done = subprocess.run(argv, capture_output=True, text=True, timeout=seconds + 120, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{backend.device} {load}: vubench ended with {done.returncode}: {done.stdout}{done.stderr}")
    numbers = json.loads(done.stdout)
    values = {
        Quantity.IOPS: numbers["iops"] / 1e3,
        Quantity.IOPS_PER_CPU: numbers["ios_per_backend_cpu_s"] / 1e3,
    }
    return Sample(values, numbers["other_cpu_s"] / numbers["seconds"])


def idle(backend: Backend, seconds: float) -> Sample:
    """CPU of a target whose rings are started and empty."""
    listener = subprocess.Popen(vubench(backend, "events", "--runtime", str(seconds + 3)), stdout=subprocess.DEVNULL)
    try:
        time.sleep(1.5)  # the front-end's own start and its first commands do not count
        before = backend.cpu_seconds()
        time.sleep(seconds)
        used = backend.cpu_seconds() - before
    finally:
        listener.terminate()
        listener.wait(timeout=10)
    return Sample({Quantity.IDLE_CPU: 100 * used / seconds})
