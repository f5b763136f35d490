"""How many threads move bytes at once where nobody says."""

import os


def threads(*, waiting: bool = True) -> int:
    """As many as there are processors, and where files do not lie in memory one that waits for the disk."""
    processors = len(os.sched_getaffinity(0))
    return min(16, processors + 1 if waiting else max(2, processors))
