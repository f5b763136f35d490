"""What goes between the daemon and a worker: one request, then progress as it comes, then one outcome.

    daemon -- standard input --> worker      {"verb": ..., "chains": {...}, "options": {...}}   then perhaps "cancel"
    daemon <------- pipe ------- worker      {"progress": [done, total]} ...   {"result": {...}} or {"error": {...}}

Lines of JSON. A worker opens no path: each image comes as the number of a descriptor that it inherited. The end of its
input means that the daemon is gone, and ends it at once.
"""

import errno
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from formats import errors
from formats.errors import ImageError

CANCEL = "cancel"


@dataclass(frozen=True)
class ImageFile:
    """An image as it comes to a worker; `name` is what messages call it. Without a descriptor it has a `length`."""

    format: str
    name: str
    descriptor: int = -1
    read_only: bool = True
    live: bool = False  # somebody writes to it meanwhile: it is only looked at, without a lock
    length: int | None = None
    data_descriptor: int = -1  # of the file in which its bytes lie, if that is another one
    secret: str | None = field(default=None, repr=False)  # that opens it, in base64; it comes by the pipe alone


@dataclass(frozen=True)
class Work:
    """`chains`: by their part in the verb, the top image first."""

    verb: str
    chains: dict[str, list[ImageFile]]
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def descriptors(self) -> list[int]:
        """All that come with it."""
        files = [image for chain in self.chains.values() for image in chain]
        numbers = [number for image in files for number in (image.descriptor, image.data_descriptor)]
        return [number for number in numbers if number >= 0]

    def plain(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def parse(cls, message: Mapping[str, Any]) -> "Work":
        chains = {part: [ImageFile(**each) for each in chain] for part, chain in message["chains"].items()}
        return cls(message["verb"], chains, message["options"])


class Cancelled(Exception):  # noqa: N818  (says what happened)
    """The work was given up because it was asked to."""


class WorkerFailed(Exception):  # noqa: N818  (says what happened)
    """The worker ended without an outcome, or with a fault of vstore's own."""


def told(error: BaseException) -> dict[str, Any]:
    """An error as the wire has it."""
    detail = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
    number = error.errno if isinstance(error, OSError) else getattr(error.__cause__, "errno", None)
    return {"kind": type(error).__name__, "errno": number, "detail": detail}


def understood(error: Mapping[str, Any]) -> Exception:
    """The error that was told: an ImageError or OSError as the worker had it, Cancelled, WorkerFailed."""
    kind, number, detail = str(error["kind"]), error["errno"], str(error["detail"])
    if kind == Cancelled.__name__:
        return Cancelled(detail)
    if kind == MemoryError.__name__:
        return OSError(errno.ENOMEM, "the work needs more memory than one worker may have")
    image_error = getattr(errors, kind, None)
    if isinstance(image_error, type) and issubclass(image_error, ImageError):
        refusal: ImageError = image_error(detail)
        refusal.__cause__ = OSError(number, os.strerror(number)) if isinstance(number, int) else None
        return refusal
    if isinstance(number, int):
        return OSError(number, detail)
    return WorkerFailed(f"the worker met a fault of vstore's own ({kind}); the daemon's log has its trace")
