"""`python -m tests.bench.convert`: `vstore file convert` against `qemu-img convert` at its best, side by side.

    source: half of it data, in pieces of 64 KiB to 4 MiB, half of that compressible, the rest holes
    for each repeat, for each row: vstore, then the peer with each of its settings; in the next repeat in turn

Whole commands are timed, Python's start included, with its modules compiled as an installation has them. On disk the
peer flushes too (-t writeback), as vstore always does. Of the peer's settings the one with the best median counts.
Processor time stands beside, because it does not depend on what else the machine does (what the kernel's own threads
write back is not in it), and what the targets take up: both compress at the default level of their library (zlib 6,
zstd 3).
"""

import argparse
import compileall
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

MIB = 1 << 20
FOLDERS = {"tmpfs": "/dev/shm", "disk": "/var/tmp"}
SETTINGS = (("-m", "1"), ("-m", "8", "-W"), ("-m", "16", "-W"))


@dataclass(frozen=True)
class Row:
    """`peer` and `ours`: what is said besides formats and paths."""

    name: str
    source: str
    target: str
    peer: Sequence[str] = ()
    ours: Sequence[str] = ()


ROWS = (
    Row("raw to qcow2", "raw", "qcow2"),
    Row("qcow2 to raw", "qcow2", "raw"),
    Row("raw to raw", "raw", "raw"),
    Row("qcow2 to compressed qcow2, zlib", "qcow2", "qcow2", ("-c",), ("-c",)),
    Row(
        "qcow2 to compressed qcow2, zstd",
        "qcow2",
        "qcow2",
        ("-c", "-o", "compression_type=zstd"),
        ("-c", "-o", "compression_type=zstd"),
    ),
    Row("compressed qcow2 to raw", "compressed", "raw"),
)


@dataclass
class Times:
    """Seconds of each run: by the clock, and of the processors. `taken`: bytes that the last target takes up."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    taken: int = 0

    def add(self, argv: Sequence[str | Path]) -> None:
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        subprocess.run(argv, check=True, stdout=subprocess.DEVNULL, timeout=1200)
        self.wall.append(time.monotonic() - began)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        self.cpu.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def half_full(path: Path, length: int) -> Path:
    """A raw file, data and holes in turn."""
    draw = random.Random(1)
    noise = draw.randbytes(8 * MIB)
    text = b"".join(b"%08d all is well here, and so it was before\n" % n for n in range(200_000))
    with path.open("wb") as file:
        file.truncate(length)
        at = 0
        while at < length:
            size = min(draw.choice((64, 256, 1024, 4096)) << 10, length - at)
            place = draw.randrange(0, 4 * MIB)
            for part in range(0, size, 64 << 10):
                cut = slice(place + part % MIB, place + part % MIB + (64 << 10))
                os.pwrite(file.fileno(), (text if draw.random() < 0.5 else noise)[cut], at + part)
            at += 2 * size
    return path


def qemu(row: Row, place: str, source: Path, setting: Sequence[str], target: Path) -> list[str | Path]:
    cache = ("-t", "writeback") if place == "disk" else ()
    formats = ("-f", row.source.replace("compressed", "qcow2"), "-O", row.target)
    return ["qemu-img", "convert", *setting, *cache, *row.peer, *formats, source, target]


def ours(row: Row, source: Path, target: Path) -> list[str | Path]:
    command = Path(sys.executable).parent / "vstore"
    formats = ("-f", row.source.replace("compressed", "qcow2"), "-O", row.target)
    return [command, "file", "convert", "-q", *row.ours, *formats, source, target]


def measure(rows: Sequence[Row], folder: Path, place: str, repeats: int, length: int) -> dict[tuple[str, str], Times]:
    sources = {"raw": half_full(folder / "source.raw", length)}
    for kind, more in (("qcow2", ()), ("compressed", ("-c",))):
        if any(row.source == kind for row in rows):
            sources[kind] = folder / f"source.{kind}"
            subprocess.run(
                ["qemu-img", "convert", *more, "-f", "raw", "-O", "qcow2", sources["raw"], sources[kind]], check=True
            )
    times: dict[tuple[str, str], Times] = {}
    target = folder / "target"
    for repeat in range(repeats):
        for row in rows:
            runs: list[tuple[str, Callable[[], list[str | Path]]]] = [
                ("vstore", lambda row=row: ours(row, sources[row.source], target))  # type: ignore[misc]
            ]
            for setting in SETTINGS:
                argv = qemu(row, place, sources[row.source], setting, target)
                runs.append((" ".join(setting), lambda argv=argv: argv))  # type: ignore[misc]
            for side, command in runs if repeat % 2 == 0 else reversed(runs):
                target.unlink(missing_ok=True)
                os.sync()  # what was written before is not written back meanwhile
                times.setdefault((row.name, side), Times()).add(command())
                last = times[row.name, side]
                last.taken = target.stat().st_blocks * 512
                print(
                    f"[{repeat + 1}/{repeats}] {row.name}: {side}: {last.wall[-1]:.2f} s", file=sys.stderr, flush=True
                )
            target.unlink(missing_ok=True)
    return times


def table(rows: Sequence[Row], times: dict[tuple[str, str], Times]) -> str:
    """A ratio above 1: vstore is quicker."""
    lines = [
        "| row | vstore s | peer s | its setting | ratio | vstore CPU s | peer CPU s | ratio | vstore MiB | peer MiB |",
        "|---|" * 1 + "---|" * 9,
    ]
    for row in rows:
        mine = times[row.name, "vstore"]
        best = min((" ".join(setting) for setting in SETTINGS), key=lambda name: median(times[row.name, name].wall))
        peer = times[row.name, best]
        wall, cpu = (median(mine.wall), median(peer.wall)), (median(mine.cpu), median(peer.cpu))
        lines.append(
            f"| {row.name} | {wall[0]:.2f} | {wall[1]:.2f} | {best} | {wall[1] / wall[0]:.2f}x "
            f"| {cpu[0]:.2f} | {cpu[1]:.2f} | {cpu[1] / cpu[0]:.2f}x "
            f"| {mine.taken / MIB:.0f} | {peer.taken / MIB:.0f} |"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.convert", description=__doc__.splitlines()[0])
    parser.add_argument("--rows", default="", metavar="N,N", help="numbers of rows (all)")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each (5)")
    parser.add_argument("--size", type=int, default=4096, metavar="MIB", help="length of the disk (4096)")
    parser.add_argument("--place", choices=list(FOLDERS), default="tmpfs", help="where the files lie (tmpfs)")
    arguments = parser.parse_args()
    rows = [ROWS[int(n) - 1] for n in arguments.rows.split(",")] if arguments.rows else list(ROWS)
    for package in ("api", "formats", "vstore"):
        compileall.compile_dir(Path(__file__).parents[2] / package, quiet=1)
    with tempfile.TemporaryDirectory(dir=FOLDERS[arguments.place]) as folder:
        times = measure(rows, Path(folder), arguments.place, arguments.repeats, arguments.size * MIB)
    print(f"{arguments.size} MiB half full, {arguments.place}, medians of {arguments.repeats}\n\n{table(rows, times)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
