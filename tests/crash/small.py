"""Small numbers in place of vstore's own, so that the little a trial does meets the ends of windows and batches."""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

from vstore import block_io, block_map


@contextmanager
def small_numbers(block_size: int) -> Iterator[None]:
    """A window of a few blocks, and batches of a few changes."""
    with (
        mock.patch.object(block_map, "WINDOW_BYTES", 4 * block_size),
        mock.patch.object(block_map, "FEWEST_RESERVED", 4),
        mock.patch.object(block_map, "BATCH", 24),
        mock.patch.object(block_io, "BATCH", 24),
    ):
        yield
