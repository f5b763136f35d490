"""What jobs use while they run: an image for themselves, or beside others that only read it.

A verb holds an image's lock for its own short time; a job that may run for hours holds a claim instead, and a verb that
it excludes is refused at once with the job's name. Claims are by POOL/IMAGE, so a name can be claimed before it has an
image, or by KIND:/NAME of something else. They live in memory, as the jobs do. The caller holds the images' locks.
"""

import threading
from collections.abc import Collection
from dataclasses import dataclass

from vstore.store.errors import InUse


@dataclass(frozen=True)
class Claim:
    job: str
    verb: str
    alone: frozenset[str]
    shared: frozenset[str]


class Claims:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._claims: dict[str, Claim] = {}

    def take(self, job: str, verb: str, *, alone: Collection[str] = (), shared: Collection[str] = ()) -> None:
        """Raises InUse when another job's claim excludes one of these."""
        with self._lock:
            for name in alone:
                self._check(name, alone=True)
            for name in shared:
                self._check(name, alone=False)
            self._claims[job] = Claim(job, verb, frozenset(alone), frozenset(shared))

    def release(self, job: str) -> None:
        with self._lock:
            self._claims.pop(job, None)

    def check(self, name: str, *, alone: bool) -> None:
        """Raises InUse when a job's claim excludes a verb that changes this image (`alone`), or only reads it."""
        with self._lock:
            self._check(name, alone=alone)

    def _check(self, name: str, *, alone: bool) -> None:
        for claim in self._claims.values():
            if name in claim.alone or (alone and name in claim.shared):
                kind, _, known = name.rpartition("/")
                what = kind.removesuffix(":") if kind.endswith(":") else "image"
                raise InUse(
                    f"job {claim.job} ({claim.verb}) uses {what} {known}; wait until it ends, or "
                    f"cancel it (vstore job cancel {claim.job})"
                )
