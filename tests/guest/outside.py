"""The image seen from outside: what the host finds in the file while or after a guest used it as a disk."""

import subprocess
from pathlib import Path

from tests.guest.kernel import find_tool


def make_image(path: Path, mebibytes: int) -> Path:
    """A sparse raw file of so many MiB."""
    with path.open("wb") as file:
        file.truncate(mebibytes << 20)
    return path


def allocated_bytes(path: Path) -> int:
    """What the file takes up on the host's disk: st_blocks counts 512-byte units."""
    return path.stat().st_blocks * 512


def make_ext4(image: Path, tree: Path) -> None:
    """An ext4 over the whole image, with the files of a directory."""
    _e2fsprogs("mke2fs", "-q", "-F", "-t", "ext4", "-d", str(tree), str(image))


def check_ext4(image: Path, offset: int = 0) -> None:
    """The host's e2fsck finds nothing to mend in the filesystem at `offset` bytes. Raises AssertionError."""
    _e2fsprogs("e2fsck", "-fn", f"{image}?offset={offset}")


def read_ext4(image: Path, path: str, offset: int = 0) -> bytes:
    """A file's content, read by the host's debugfs."""
    return _e2fsprogs("debugfs", "-R", f"cat {path}", f"{image}?offset={offset}")


def _e2fsprogs(name: str, *words: str) -> bytes:
    command = [str(find_tool(name, "e2fsprogs")), *words]
    done = subprocess.run(command, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, f"{' '.join(command)} ended with {done.returncode}: {done.stdout!r} {done.stderr!r}"
    return done.stdout
