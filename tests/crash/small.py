"""Small numbers in place of vstore's own, so that the little a trial does meets the ends of windows and batches."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from vstore import commits


@contextmanager
def small_numbers(block_size: int) -> Iterator[None]:
    """A window of a few blocks, and batches of a few changes."""
    numbers: dict[str, Any] = {
        "WINDOW_BYTES": 4 * block_size,
        "MOST_WINDOW_BYTES": 8 * block_size,
        "FEWEST_RESERVED": 4,
        "MOST_PENDING": 24,
        "MOST_BLOCKS": 40,
    }
    with mock.patch.multiple(commits, **numbers):
        yield
