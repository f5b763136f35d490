"""From samples to a table: medians, ratios, their spread, and whether the bar is reached; kept as Markdown and JSON."""

import datetime
import json
import os
import platform
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from tests.bench.rows import Quantity, Row

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Line:
    """One finished row. `ratio` is of the medians; `lowest` and `highest` are of the single repeats."""

    row: str
    unit: str
    vstore: float
    peer: float | None
    ratio: float | None
    lowest: float | None
    highest: float | None
    bar: float
    reached: bool
    disturbance: float
    vstore_samples: list[float]
    peer_samples: list[float]


def finish(row: Row, vstore: list[float], peer: list[float], disturbance: float) -> Line:
    """`vstore[i]` and `peer[i]` were measured one after the other."""
    ours = median(vstore)
    if row.against is None:
        reached = ours < row.bar if row.quantity is Quantity.IDLE_CPU else ours >= row.bar
        return Line(
            str(row), row.quantity.value, ours, None, None, None, None, row.bar, reached, disturbance, vstore, []
        )
    theirs = median(peer)
    ratios = [a / b for a, b in zip(vstore, peer, strict=True)]
    ratio = ours / theirs
    return Line(
        str(row), row.quantity.value, ours, theirs, ratio, min(ratios), max(ratios), row.bar, ratio >= row.bar,
        disturbance, vstore, peer,
    )  # fmt: skip


def said_by(*argv: str) -> str:
    """The first line that a program prints, or "unknown"."""
    try:
        lines = subprocess.run(argv, capture_output=True, text=True, timeout=10, check=True).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return lines[0].strip() if lines else "unknown"


def field_of(path: str, name: str) -> str:
    """The value of the first `name: value` or `name=value` line of a file of the system."""
    for line in Path(path).read_text().splitlines():
        key, _, value = line.replace("=", ":", 1).partition(":")
        if key.strip() == name:
            return value.strip().strip('"')
    return "unknown"


def machine() -> dict[str, str]:
    """What another person needs to judge the numbers."""
    return {
        "processor": f"{field_of('/proc/cpuinfo', 'model name')}, {os.cpu_count()} cores",
        "memory": field_of("/proc/meminfo", "MemTotal"),
        "system": f"{field_of('/etc/os-release', 'PRETTY_NAME')}, Linux {platform.release()}",
        "peer": said_by("qemu-storage-daemon", "--version"),
        "vstore": said_by("git", "describe", "--always", "--dirty"),
        "python": platform.python_version(),
    }


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.2f}" if value < 10 else f"{value:,.0f}"


def markdown(lines: list[Line], conditions: dict[str, str]) -> str:
    """The table as it is printed and kept."""
    head = ["row", "unit", "vstore", "peer", "ratio", "spread", "bar", ""]
    body = []
    for line in lines:
        idle = line.unit == Quantity.IDLE_CPU.value
        spread = "-" if line.lowest is None else f"{line.lowest:.2f}-{line.highest:.2f}"
        ratio = "-" if line.ratio is None else f"{line.ratio:.2f}x"
        times = "" if line.ratio is None else "x"
        bar = f"< {line.bar}" if idle else f">= {line.bar}{times}" if line.bar else "-"
        verdict = "" if not line.bar else "reached" if line.reached else "MISSED"
        body.append([line.row, line.unit, number(line.vstore), number(line.peer), ratio, spread, bar, verdict])
    widths = [max(len(cells[i]) for cells in [head, *body]) for i in range(len(head))]
    rule = ["-" * width for width in widths]
    table = [
        "| " + " | ".join(c.ljust(w) for c, w in zip(cells, widths, strict=True)) + " |"
        for cells in [head, rule, *body]
    ]
    about = [f"- {key}: {value}" for key, value in conditions.items()]
    return "\n".join([*table, "", *about, ""])


def keep(table: str, lines: list[Line], conditions: dict[str, str]) -> Path:
    """Writes results/DATE-TIME-TABLE.md and .json; answers the former's path."""
    RESULTS.mkdir(exist_ok=True)
    stem = datetime.datetime.now(datetime.UTC).strftime(f"%Y-%m-%d-%H%M-{table}")
    page = RESULTS / f"{stem}.md"
    page.write_text(f"# vstore against qemu-storage-daemon, {stem}\n\n{markdown(lines, conditions)}")
    document = {"conditions": conditions, "rows": [asdict(line) for line in lines]}
    page.with_suffix(".json").write_text(json.dumps(document, indent=1) + "\n")
    return page
