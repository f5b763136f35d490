"""What opens encrypted images: a file for each secret, for the daemon's user alone, in a directory beside the catalog.

A secret is its file and nothing else: the catalog has only the names that images give theirs. A file is written whole
under another name, made durable, and renamed, so that after a crash there is the old secret or the new one. Values go
from here to workers by their standard input and to target processes by descriptor, and nowhere else.
"""

import contextlib
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vstore.store.directories import make
from vstore.store.errors import CatalogUnavailable, SecretNeeded
from vstore.store.identifiers import NAME

_DIRECTORY_MODE, _MODE = 0o700, 0o600
_DRAFT = ".new"  # no secret has such a name; one lock keeps it for one change
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@dataclass(frozen=True)
class Kept:
    """`set_ns`: when, in nanoseconds since 1970."""

    name: str
    set_ns: int


class SecretFiles:
    """Raises CatalogUnavailable where the directory cannot be used. Changes of one secret are the caller's to order."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._drafting = threading.Lock()
        with _told("the directory of secrets", "used"):
            make(directory, _DIRECTORY_MODE)
            directory.chmod(_DIRECTORY_MODE)
            (directory / _DRAFT).unlink(missing_ok=True)

    def kept(self) -> list[Kept]:
        """By their names."""
        with _told("the directory of secrets", "read"):
            names = sorted(filter(NAME.fullmatch, os.listdir(self._directory)))
        return [kept for name in names if (kept := self.find(name)) is not None]

    def find(self, name: str) -> Kept | None:
        """`name` was checked before, here and below."""
        with _told(f"secret {name}", "read"), contextlib.suppress(FileNotFoundError):
            return Kept(name, os.stat(self._directory / name, follow_symlinks=False).st_mtime_ns)
        return None

    def read(self, name: str) -> bytes | None:
        with _told(f"secret {name}", "read"):
            try:
                descriptor = os.open(self._directory / name, _READ)
            except FileNotFoundError:
                return None
            with open(descriptor, "rb") as file:
                return file.read()

    def keep(self, name: str, value: bytes) -> None:
        """Durable when this returns, instead of what had the name."""
        draft = self._directory / _DRAFT
        with self._drafting, _told(f"secret {name}", "kept"):
            draft.unlink(missing_ok=True)
            with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _MODE), "wb") as file:
                file.write(value)
                file.flush()
                os.fsync(file.fileno())
            draft.rename(self._directory / name)
            self._sync()

    def drop(self, name: str) -> None:
        with _told(f"secret {name}", "removed"), contextlib.suppress(FileNotFoundError):
            (self._directory / name).unlink()
            self._sync()

    def of_image(self, image: str, name: str) -> bytes:
        """What opens the image, which names this secret. Raises SecretNeeded."""
        value = self.read(name)
        if value is None:
            raise _missing(image, name)
        return value

    @contextmanager
    def opened(self, image: str, name: str) -> Iterator[int]:
        """The same as a descriptor, to be handed to a process. Raises SecretNeeded."""
        try:
            with _told(f"secret {name}", "read"):
                descriptor = os.open(self._directory / name, _READ)
        except FileNotFoundError:
            raise _missing(image, name) from None
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def _sync(self) -> None:
        descriptor = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _missing(image: str, name: str) -> SecretNeeded:
    return SecretNeeded(
        f"image {image} is encrypted, and its secret {name} is not there; set it again: vstore secret set {name}"
    )


@contextmanager
def _told(what: str, doing: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:  # which the callers know the meaning of
        raise
    except OSError as error:
        raise CatalogUnavailable(f"{what} cannot be {doing}: {error.strerror}") from error
