"""What images are compared with: a sparse file as the model of a disk, and qemu's tools as the outside oracle."""

import os
import subprocess
from pathlib import Path


class Reference:
    """A disk as a plain sparse file: what a write, a zero or a resize means, with nothing between."""

    def __init__(self, path: Path, length: int) -> None:
        self.path = path
        path.write_bytes(b"")
        os.truncate(path, length)

    @property
    def length(self) -> int:
        return self.path.stat().st_size

    def read(self, offset: int, length: int) -> bytes:
        with self.path.open("rb") as file:
            return os.pread(file.fileno(), length, offset)

    def write(self, offset: int, data: bytes) -> None:
        with self.path.open("r+b") as file:
            assert os.pwrite(file.fileno(), data, offset) == len(data)

    def zero(self, offset: int, length: int) -> None:
        self.write(offset, bytes(length))

    def resize(self, length: int) -> None:
        os.truncate(self.path, length)


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    """Runs a tool to its end; the caller looks at the exit code."""
    for _ in range(10):
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=60, check=False)
        # QEMU measures how fast it hashes a passphrase, and gives up, before anything was done, where it was too soon.
        if "Unable to get accurate CPU usage" not in done.stderr:
            break
    return done


def qemu_io(format: str, path: Path, *commands: str) -> None:
    """Lets qemu-io do `commands` (“write -P 0xaa 0 4k”) on an image; each must succeed."""
    arguments = [argument for command in commands for argument in ("-c", command)]
    result = run("qemu-io", "-f", format, *arguments, path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "failed" not in result.stdout, result.stdout


def assert_equal_for_qemu(format: str, path: Path, reference: Reference) -> None:
    """qemu-img reads the same bytes from the image as from the reference."""
    result = run("qemu-img", "compare", "-f", format, "-F", "raw", path, reference.path)
    assert result.returncode == 0, result.stdout + result.stderr
