"""The two sides: each starts one back-end process on the target's core and says how vubench has to talk to it.

The peer runs with the best setting found for each place: O_DIRECT with Linux AIO and an I/O thread on tmpfs, where
io_uring and the thread pool are slower; io_uring on a page-cached file; null-co where no data moves. Its caches of
qcow2 tables hold all of them.
"""

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.bench.rows import Side
from tests.bench.subjects import Place, Subject

TARGET_CORE = "1"
FRONTEND_CORE = "0"
START_SECONDS = 20
PEER_TABLES = 64 << 20  # bytes of L2 cache

_PEER_FILE = {Place.TMPFS: "aio=native,cache.direct=on", Place.DISK: "aio=io_uring"}


@dataclass(frozen=True)
class Backend:
    """A running back-end: `device` is vubench's --type; `blank`: nothing was written to it yet, unlike to the files."""

    process: subprocess.Popen[bytes]
    socket: Path
    device: str
    blank: bool = False

    def cpu_seconds(self) -> float:
        """CPU used so far by all threads, from the scheduler's nanoseconds (/proc/PID/stat has ticks of 10 ms only)."""
        tasks = Path(f"/proc/{self.process.pid}/task").glob("*/schedstat")
        return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


def vstore_command(subject: Subject, image: Path | None, length: int, socket: Path) -> list[str]:
    """`vstore export` with its defaults: what a user gets."""
    what = ["--size", str(length)] if image is None else [str(image)]
    program = str(Path(".venv/bin/vstore").absolute())
    return [program, "export", *what, "--format", subject.format, "--socket", str(socket)]


def peer_command(subject: Subject, image: Path | None, length: int, socket: Path) -> list[str]:
    """qemu-storage-daemon exporting the same bytes as vhost-user-blk from an I/O thread."""
    blockdevs = [f"driver=null-co,size={length},read-zeroes=off,node-name=disk0"]
    if image is not None:
        blockdevs = _peer_nodes(subject, image)
    export = f"vhost-user-blk,id=export0,node-name=disk0,addr.type=unix,addr.path={socket}"
    return [
        "qemu-storage-daemon",
        *("--object", "iothread,id=thread0"),
        *(argument for blockdev in blockdevs for argument in ("--blockdev", blockdev)),
        *("--export", f"{export},writable=on,num-queues=1,iothread=thread0"),
    ]


def _peer_nodes(subject: Subject, image: Path) -> list[str]:
    """A node for the file and, for a format, one above it; an overlay's base gets the same best setting as its top."""
    file, base = _PEER_FILE[subject.place], image.with_name("base.raw")
    if subject.format == "raw":
        return [f"driver=file,filename={image},{file},node-name=disk0"]
    nodes = [f"driver=file,filename={image},{file},node-name=file0"]
    below = ""
    if image.name == "overlay.qcow2":
        nodes.append(f"driver=file,filename={base},{file},read-only=on,node-name=base0")
        below = ",backing=base0"
    return [*nodes, f"driver={subject.format},file=file0,l2-cache-size={PEER_TABLES}{below},node-name=disk0"]


COMMANDS = {Side.VSTORE: (vstore_command, "scsi"), Side.PEER: (peer_command, "blk")}


def wait_until_listening(process: subprocess.Popen[bytes], socket: Path) -> None:
    """Raises RuntimeError with the process's own words when it ends, or is silent for too long."""
    deadline = time.monotonic() + START_SECONDS
    while not _listens(socket):
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            _, errors = process.communicate()
            raise RuntimeError(f"{process.args!r} did not listen on its socket: {errors.decode(errors='replace')}")
        time.sleep(0.02)


def _listens(socket: Path) -> bool:
    """Whether somebody listens there, without connecting, which the back-end would take for its front-end."""
    # proc_net_unix: the fourth field has __SO_ACCEPTCON (1 << 16) set
    rows = (line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:])
    return any(row[-1] == str(socket) and int(row[3], 16) & 1 << 16 for row in rows)


@contextlib.contextmanager
def running(side: Side, subject: Subject, image: Path | None, length: int, folder: Path) -> Iterator[Backend]:
    """Starts one side pinned to the target's core; ends it afterwards and reaps it."""
    command, device = COMMANDS[side]
    socket = folder / f"{side.value}.sock"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(socket)
    argv = ["taskset", "-c", TARGET_CORE, *command(subject, image, length, socket)]
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        wait_until_listening(process, socket)
        yield Backend(process, socket, device, blank=image is None)
    finally:
        process.terminate()
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        assert process.stderr is not None
        process.stderr.close()
