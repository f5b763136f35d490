"""What a verb of a worker gets: chains of images by their part, and somebody to tell how far it is."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from vstore.worker.wire import ImageFile

Chains = Mapping[str, Sequence[ImageFile]]


@dataclass(frozen=True)
class Context:
    """`progress` takes bytes done and bytes in all; `cancelled` is asked between two steps."""

    progress: Callable[[int, int], None]
    cancelled: Callable[[], bool]
