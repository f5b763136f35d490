"""The daemon's directories: made with their modes, and each the claim of one daemon at a time."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vstore.store.errors import CatalogUnavailable

PASSABLE = 0o755  # for directories through which VMMs of other users pass to their sockets


def make(directory: Path, mode: int) -> None:
    """Makes the directory, with this mode whatever the umask, if it is not there. Raises OSError."""
    if not directory.is_dir():
        directory.mkdir(parents=True, exist_ok=True)
        directory.chmod(mode)


@contextmanager
def claimed(directory: Path, mode: int) -> Iterator[None]:
    """Makes the directory if need be and holds it against other daemons; the kernel lets go if this one dies.

    Raises CatalogUnavailable.
    """
    try:
        make(directory, mode)
        descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise CatalogUnavailable(f"{directory} cannot be used: {error.strerror}") from error
    try:
        _lock(descriptor, directory)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, directory: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise CatalogUnavailable(
            f"another vstore daemon uses {directory}; end it or choose another directory"
        ) from None
