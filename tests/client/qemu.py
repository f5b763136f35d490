"""qemu-storage-daemon as an independent vhost-user back-end: it exports vhost-user-blk, over libvhost-user's rings."""

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def storage_daemon(folder: Path, image: Path, *, queues: int = 1) -> Iterator[Path]:
    """Exports `image` read-write; yields the socket's path."""
    socket, ready = folder / "qemu.sock", folder / "qemu.pid"
    ready.unlink(missing_ok=True)
    command = [
        "qemu-storage-daemon",
        f"--pidfile={ready}",
        "--blockdev",
        f"driver=file,node-name=disk,filename={image}",
        "--export",
        f"type=vhost-user-blk,id=export,node-name=disk,addr.type=unix,addr.path={socket},"
        f"writable=on,num-queues={queues}",
    ]
    process = subprocess.Popen(command)
    try:
        _await_file(process, ready)
        yield socket
    finally:
        process.terminate()
        process.wait(10)


def _await_file(process: subprocess.Popen[bytes], ready: Path) -> None:
    """The daemon writes its process id once it listens; the socket is there a moment before that."""
    deadline = time.monotonic() + 10
    while not os.path.exists(ready):
        assert process.poll() is None, f"qemu-storage-daemon ended with {process.returncode}"
        assert time.monotonic() < deadline, "qemu-storage-daemon was not ready within 10 s"
        time.sleep(0.01)
