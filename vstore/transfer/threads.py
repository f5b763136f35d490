"""How many threads move bytes at once where nobody says."""

import os


def threads() -> int:
    """As many as there are processors, and one that waits for the disk."""
    return min(16, len(os.sched_getaffinity(0)) + 1)
