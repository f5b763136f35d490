"""Work on images as verbs have it done: by a worker process that gets descriptors of the pool's files.

A worker of a daemon that was killed may still be in the middle of an image when the next daemon starts. So each worker
holds a lock as long as it lives, and a daemon begins only when it can have that lock for itself.
"""

import base64
import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from threading import BoundedSemaphore
from typing import Any

from sqlalchemy import Row

from vstore.store.errors import Busy, CatalogUnavailable, Conflict, WorkFailed
from vstore.store.image_spec import files_of
from vstore.store.pool import Draft, Pool
from vstore.store.refusals import refusals_told
from vstore.worker import client
from vstore.worker.wire import Cancelled, ImageFile, Work, WorkerFailed

LONGEST = 100.0  # seconds that a request waits for its worker, or for a sign that it goes on
_MOST_SHORT = 8  # workers that requests wait for, side by side; each may take as much memory as it is allowed
_MOST_WAITING = 12  # requests behind those; each holds one of HTTP's 40 threads
_WORKERS_END = 10.0  # seconds that the workers of the last daemon have to notice that it is gone

Chains = Mapping[str, list[ImageFile]]


class Workers:
    def __init__(self, lock: Path) -> None:
        """Waits for the workers of the daemon before. Raises CatalogUnavailable when they do not end."""
        self._short = BoundedSemaphore(_MOST_SHORT)
        self._asked = BoundedSemaphore(_MOST_SHORT + _MOST_WAITING)
        try:
            self._descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise CatalogUnavailable(f"{lock.name} cannot be used: {error.strerror}") from error
        try:
            _wait_for_lock(self._descriptor)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        os.close(self._descriptor)

    def do(self, verb: str, file: str, chains: Chains, **options: Any) -> dict[str, Any]:
        """A piece of work on `file` that the caller waits for, as long as it goes on. Raises StoreError."""
        with _taken(self._asked, 0), _taken(self._short, LONGEST):
            return self._do(Work(verb, dict(chains), options), file)

    def _do(self, work: Work, file: str) -> dict[str, Any]:
        deadline = time.monotonic() + LONGEST

        def heard(_done: int, _total: int) -> None:
            nonlocal deadline
            deadline = time.monotonic() + LONGEST

        try:
            return self.run(work, file, progress=heard, cancelled=lambda: time.monotonic() > deadline)
        except Cancelled:
            raise WorkFailed(
                f"the work on {file} ({work.verb}) made no progress for {LONGEST:g} s; it was ended"
            ) from None

    def run(
        self,
        work: Work,
        file: str,
        *,
        progress: Callable[[int, int], None] = lambda _done, _total: None,
        cancelled: Callable[[], bool] = client.never,
        grace: Callable[[], float] = lambda: client.GRACE,
    ) -> dict[str, Any]:
        """Raises StoreError, Cancelled."""
        doing = f"cannot {work.verb.replace('_', ' ')} {file}" if work.verb != "info" else f"cannot read {file}"
        try:
            with refusals_told(doing, argument="options"):
                return client.run(work, keep=[self._descriptor], progress=progress, cancelled=cancelled, grace=grace)
        except WorkerFailed as error:
            raise WorkFailed(f"{doing}: {error}") from error


@contextlib.contextmanager
def _taken(places: BoundedSemaphore, timeout: float) -> Iterator[None]:
    """Raises Busy when none is free in time."""
    if not places.acquire(blocking=timeout > 0, timeout=timeout or None):
        raise Busy(f"{_MOST_SHORT} requests look into images already; try again when they are done")
    try:
        yield
    finally:
        places.release()


@contextlib.contextmanager
def image_files(
    pool: Pool, chain: Sequence[Row[Any]], *, writable: int = 0, live: bool = False, sealed: bool = False
) -> Iterator[list[ImageFile]]:
    """Rows of a chain, the top one first, as a worker takes them: open, so many of them writable, and locked but for a
    top image that is live. `sealed`: without the secrets of those that are encrypted, because only of their structure
    is anything wanted. Raises StoreError."""
    files = []
    with contextlib.ExitStack() as closing:
        for depth, row in enumerate(chain):
            if row.file is None:
                raise Conflict(f"image {row.name} has no file, so there is nothing to work on")
            read_only, looked_at = depth >= writable, live and not depth
            numbers = [
                closing.enter_context(pool.open(name, read_only=read_only, lock=not looked_at)).descriptor
                for name in files_of(row)
            ]
            secret = None if row.secret is None or sealed else plain(pool.secrets.of_image(row.name, row.secret))
            how: dict[str, Any] = {"read_only": read_only, "live": looked_at, "secret": secret}
            how |= dict(zip(("descriptor", "data_descriptor"), numbers, strict=False))
            files.append(ImageFile(row.format, row.file, **how))
        yield files


@contextlib.contextmanager
def draft_file(pool: Pool, draft: Draft) -> Iterator[ImageFile]:
    """A draft as a worker takes it, writable; what was written to it is durable at the end. Raises StoreError."""
    with contextlib.ExitStack() as closing:
        kinds = (False,) if draft.data_file is None else (False, True)
        numbers = [closing.enter_context(pool.open_draft(draft, data=each)).descriptor for each in kinds]
        secret = None if draft.secret is None else plain(draft.secret)
        how: dict[str, Any] = dict(zip(("descriptor", "data_descriptor"), numbers, strict=False))
        yield ImageFile(draft.format, draft.file, read_only=False, secret=secret, **how)
        with refusals_told(f"cannot write {draft.file}"):
            for number in reversed(numbers):
                os.fsync(number)


def plain(secret: bytes) -> str:
    """As a worker takes it."""
    return base64.b64encode(secret).decode()


def _wait_for_lock(descriptor: int) -> None:
    deadline = time.monotonic() + _WORKERS_END
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise CatalogUnavailable("a worker of the last daemon still uses an image; end it first") from None
            time.sleep(0.05)
        else:
            return
