"""A loop device over a file: the one block device that a test can make, and only root may."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.formats.reference import run

needs_root = pytest.mark.skipif(
    os.geteuid() != 0 or not Path("/dev/loop-control").exists(), reason="only root may set up a loop device"
)


@contextlib.contextmanager
def loop_device(path: Path, sector: int) -> Iterator[Path]:
    """A block device with logical blocks of `sector` bytes over `path`."""
    made = run("losetup", "--find", "--show", "--sector-size", str(sector), path)
    assert made.returncode == 0, made.stderr
    device = Path(made.stdout.strip())
    try:
        yield device
    finally:
        assert run("losetup", "--detach", device).returncode == 0
