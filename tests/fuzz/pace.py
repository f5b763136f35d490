"""Pace: how long the processor takes for what it does in a known time when it is alone.

Processor time is no measure of work where a sibling thread of the core is busy, or the clock is low: the same work
takes up to twice as long. So whoever holds work to a bar of processor time asks here what the bar is worth right now.
"""

import time

ALONE = (
    0.025  # seconds of processor time for the yardstick where nothing else runs; measured: 0.022, beside others 0.045
)
WORST = 2.5  # no bar is stretched further, so that no finding hides behind a slow machine


def stretch() -> float:
    """By how much to multiply a bar of processor time: 1 on a quiet machine, more on one that is slower just now."""
    began = time.process_time()
    _yardstick()
    return min(max(1.0, (time.process_time() - began) / ALONE), WORST)


def _yardstick() -> int:
    """Calls, dictionaries, big-endian words and copies, as in the code that is measured."""
    counts: dict[int, int] = {}
    data = bytes(range(256)) * 16
    for n in range(60_000):
        place = n * 8 % 4088
        word = int.from_bytes(data[place : place + 8], "big")
        counts[word & 0xFFF] = counts.get(word & 0xFFF, 0) + n
    return len(counts)
