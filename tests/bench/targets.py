"""The two sides: each starts one back-end process on the target's core and says how vubench has to talk to it.

The peer runs with the best setting found for each medium: O_DIRECT with Linux AIO and an I/O thread on tmpfs, where
io_uring and the thread pool are slower; io_uring on a page-cached file; null-co where no data moves.
"""

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.bench.rows import Medium

TARGET_CORE = "1"
FRONTEND_CORE = "0"
START_SECONDS = 20


@dataclass(frozen=True)
class Files:
    """The raw file of each medium that has one, all of the same length in bytes."""

    paths: dict[Medium, Path]
    length: int


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


def vstore_command(medium: Medium, files: Files, socket: Path) -> list[str]:
    """`vstore export` with its defaults: what a user gets."""
    program = [str(Path(".venv/bin/vstore").absolute()), "export"]
    match medium:
        case Medium.MEMORY | Medium.NULL:
            kind = "memory" if medium is Medium.MEMORY else "null"
            return [*program, "--format", kind, "--size", str(files.length), "--socket", str(socket)]
        case _:
            return [*program, str(files.paths[medium]), "--format", "raw", "--socket", str(socket)]


def peer_command(medium: Medium, files: Files, socket: Path) -> list[str]:
    """qemu-storage-daemon exporting the same bytes as vhost-user-blk from an I/O thread."""
    blockdev = {
        Medium.TMPFS: f"driver=file,filename={files.paths.get(Medium.TMPFS)},aio=native,cache.direct=on",
        Medium.DISK: f"driver=file,filename={files.paths.get(Medium.DISK)},aio=io_uring",
        Medium.NULL: f"driver=null-co,size={files.length},read-zeroes=off",
    }[medium]
    export = f"vhost-user-blk,id=export0,node-name=disk0,addr.type=unix,addr.path={socket}"
    return [
        "qemu-storage-daemon",
        *("--object", "iothread,id=thread0"),
        *("--blockdev", f"{blockdev},node-name=disk0"),
        *("--export", f"{export},writable=on,num-queues=1,iothread=thread0"),
    ]


COMMANDS = {"vstore": (vstore_command, "scsi"), "peer": (peer_command, "blk")}


def wait_until_listening(process: subprocess.Popen[bytes], socket: Path) -> None:
    """Raises RuntimeError with the process's own words when it ends, or is silent for too long."""
    deadline = time.monotonic() + START_SECONDS
    while not socket.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            _, errors = process.communicate()
            raise RuntimeError(f"{process.args!r} did not listen on its socket: {errors.decode(errors='replace')}")
        time.sleep(0.02)


@contextlib.contextmanager
def running(side: str, medium: Medium, files: Files, folder: Path) -> Iterator[Backend]:
    """Starts "vstore" or "peer" pinned to the target's core; ends it afterwards and reaps it."""
    command, device = COMMANDS[side]
    socket = folder / f"{side}-{medium.name.lower()}.sock"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(socket)
    argv = ["taskset", "-c", TARGET_CORE, *command(medium, files, socket)]
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        wait_until_listening(process, socket)
        yield Backend(process, socket, device, blank=medium is Medium.MEMORY)
    finally:
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        assert process.stderr is not None
        process.stderr.close()
