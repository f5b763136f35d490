"""`python -m tests.bench.opening`: from the order to the first read of a tebibyte of qcow2, every cluster allocated.

    order ------------------------------> socket there ------------> first good read ... random reads over all of it
    vstore export: a cold process             bound                  a front-end that waits since before the order
    vstore serve:  a target, a LUN (REST)                            asks again and again
    the peer:      a cold process

The front-end has its guest memory beforehand: to make that takes longer than the peer takes to start. The file is
sparse: its tables are there, its data reads as a hole. Memory is the process's resident set after the random reads,
with the limits that nobody set.
"""

import argparse
import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from api.cli.client import Client
from api.cli.errors import ClientError
from tests.bench.measure import VUBENCH

PROGRAM = Path(sys.executable).parent / "vstore"
LENGTH = 1 << 40
SECTOR = 305419896  # somewhere in the middle
PATIENCE = 30.0  # seconds
_PAUSE = 2.5  # seconds, so that what the last one left to do is over: the daemon's next spare


@dataclass(frozen=True)
class Opening:
    """Milliseconds since the order; MiB."""

    socket: float
    read: float
    memory: float


@dataclass(frozen=True)
class Order:
    """What was ordered: where the front-end comes in, and the process behind it."""

    socket: Path
    device: str
    give: Callable[[], int]  # returns the process


Side = Callable[[], contextlib.AbstractContextManager[Order]]


def front_end(order: Order, *arguments: str) -> list[str]:
    return [str(VUBENCH), *arguments, "--socket", str(order.socket), "--type", order.device]


def opening(order: Order, seconds: float) -> Opening:
    """Gives the order, and measures what comes of it."""
    words = front_end(order, "first", "--sector", str(SECTOR))
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as waiting:
        assert waiting.stdout
        assert waiting.stdout.readline() == "ready\n"
        began = time.monotonic_ns()
        process = order.give()
        told = dict(zip(*[iter(waiting.stdout.readline().split())] * 2, strict=True))
    reads = ("--rw", "randread", "--bs", "4096", "--iodepth", "32", "--irq", "--runtime", str(seconds))
    subprocess.run(front_end(order, *reads), check=True, stdout=subprocess.DEVNULL, timeout=seconds + PATIENCE)
    resident = next(line for line in Path(f"/proc/{process}/status").read_text().splitlines() if "VmRSS" in line)
    to_socket, to_read = ((int(told[name]) - began) / 1e6 for name in ("socket_ns", "read_ns"))
    return Opening(to_socket, to_read, int(resident.split()[1]) / 1024)


@contextlib.contextmanager
def cold(socket: Path, device: str, *command: str | Path) -> Iterator[Order]:
    """A process of its own, ended afterwards."""
    started: list[subprocess.Popen[bytes]] = []

    def start() -> int:
        started.append(subprocess.Popen(command, stdout=subprocess.DEVNULL))
        return started[0].pid

    try:
        yield Order(socket, device, start)
    finally:
        for process in started:
            process.terminate()
            process.wait(PATIENCE)
        socket.unlink(missing_ok=True)


class Daemon:
    """`vstore serve` with the image in its pool."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        directories = ("--state-dir", folder / "state", "--runtime-dir", folder / "run")
        self._process = subprocess.Popen([PROGRAM, "serve", "--no-listen", *directories], stderr=subprocess.DEVNULL)
        self._client = Client(f"unix://{folder / 'run' / 'api.sock'}")

    def make_image(self) -> Path:
        """Its file."""
        body = {"format": "qcow2", "virtual_size_bytes": LENGTH, "preallocation": "metadata"}
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                self._client.call("PUT", "/v1/pools/default/images/big", body)
                break
            except ClientError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
        return next((self._folder / "state").rglob("big*"))

    @contextlib.contextmanager
    def target(self) -> Iterator[Order]:
        """A new target with the image as its LUN 0, deleted afterwards."""

        def give() -> int:
            made = self._client.call("PUT", "/v1/targets/vm", {})
            self._client.call("PUT", "/v1/targets/vm/luns/0", {"image": "big"})
            return int(made["process"]["pid"])

        try:
            yield Order(self._folder / "run" / "targets" / "vm" / "vhost.sock", "scsi", give)
        finally:
            for path in ("/v1/targets/vm/luns/0", "/v1/targets/vm"):
                self._client.call("DELETE", path, headers={"If-Match": "*"})

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(PATIENCE)


def orders(
    folder: Path, image: Path, daemon: Daemon
) -> dict[str, Callable[[], contextlib.AbstractContextManager[Order]]]:
    """Each side by the row's name."""
    ours, theirs = folder / "export.sock", folder / "peer.sock"
    export = (PROGRAM, "export", image, "--format", "qcow2", "--socket", ours)
    peer = (
        *("qemu-storage-daemon", "--blockdev", f"qcow2,node-name=d,file.driver=file,file.filename={image}"),
        *("--export", f"vhost-user-blk,id=e,addr.type=unix,addr.path={theirs},node-name=d,writable=on"),
    )
    return {
        "vstore export, cold": lambda: cold(ours, "scsi", *export),
        "vstore serve, new target and LUN": daemon.target,
        "qemu-storage-daemon, cold": lambda: cold(theirs, "blk", *peer),
    }


def table(found: dict[str, list[Opening]]) -> str:
    lines = [
        "| row | to socket ms | to first read ms | lowest, highest | MiB after random reads |",
        "|---|---|---|---|---|",
    ]
    for name, each in found.items():
        reads = [one.read for one in each]
        lines.append(
            f"| {name} | {median(one.socket for one in each):.0f} | {median(reads):.0f} "
            f"| {min(reads):.0f}, {max(reads):.0f} | {median(one.memory for one in each):.0f} |"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.opening", description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=10, help="openings of each (10)")
    parser.add_argument("--seconds", type=float, default=1, help="length of the random reads (1)")
    parser.add_argument("--folder", default="/var/tmp", help="where the image lies, some 200 MiB of it (/var/tmp)")
    arguments = parser.parse_args()
    found: dict[str, list[Opening]] = {}
    with (
        tempfile.TemporaryDirectory(prefix="bench-", dir=arguments.folder) as name,
        contextlib.closing(Daemon(Path(name))) as daemon,
    ):
        rows = orders(Path(name), daemon.make_image(), daemon)
        for _ in range(arguments.repeats):
            for row, side in rows.items():
                time.sleep(_PAUSE)
                with side() as order:
                    found.setdefault(row, []).append(opening(order, arguments.seconds))
                print(f"{row}: {found[row][-1]}", file=sys.stderr, flush=True)
    print(table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
