"""Self-tests of a logical unit (SPC-4 5.13): the one that runs, and the log of the last twenty.

diagnostics.py runs them; here stands what is told of them. A test ends once: what aborts it says so at once, and the
run, when it next looks, finds that it is over.
"""

from collections import deque
from dataclasses import dataclass
from enum import IntEnum

from vstore.scsi.sense import AdditionalSense, Progress, Sense, SenseKey

MOST_RESULTS = 20
NO_ADDRESS = 0xFFFF_FFFF_FFFF_FFFF


class Segment(IntEnum):
    """SELF-TEST NUMBER: what is being tested."""

    CACHE = 1  # it is made durable
    ENDS = 2  # the first, the middle and the last block are read
    MEDIUM = 3  # every block is read


class Ended(IntEnum):
    """SELF-TEST RESULTS (SPC-4 table 349)."""

    PASSED = 0x0
    ABORTED_BY_SEND_DIAGNOSTIC = 0x1
    ABORTED_OTHERWISE = 0x2
    FIRST_SEGMENT_FAILED = 0x5
    SECOND_SEGMENT_FAILED = 0x6
    LATER_SEGMENT_FAILED = 0x7
    NOT_YET = 0xF


_FAILURES = {
    Segment.CACHE: Ended.FIRST_SEGMENT_FAILED,
    Segment.ENDS: Ended.SECOND_SEGMENT_FAILED,
    Segment.MEDIUM: Ended.LATER_SEGMENT_FAILED,
}


@dataclass
class SelfTest:
    """One test. `code`: SELF-TEST CODE that began it; `hours`: power-on hours then; `total`, `done`: bytes to read.

    After a failure `segment`, `address` (LBA) and `sense` tell which.
    """

    code: int
    hours: int
    total: int
    background: bool
    done: int = 0
    result: Ended = Ended.NOT_YET
    segment: Segment | None = None
    address: int = NO_ADDRESS
    sense: Sense | None = None

    @property
    def running(self) -> bool:
        return self.result is Ended.NOT_YET

    @property
    def told(self) -> Sense:
        """What REQUEST SENSE tells meanwhile, and another SEND DIAGNOSTIC is refused with."""
        progress = Progress(min(self.done * 0x10000 // max(self.total, 1), 0xFFFF))
        code = AdditionalSense.LOGICAL_UNIT_NOT_READY_SELF_TEST_IN_PROGRESS
        return Sense(SenseKey.NOT_READY, code, pointer=progress)

    def end(self, result: Ended) -> None:
        """Without effect when it is over already."""
        if self.running:
            self.result = result

    def fail(self, segment: Segment, address: int, sense: Sense) -> None:
        if self.running:
            self.result, self.segment, self.address, self.sense = _FAILURES[segment], segment, address, sense


class SelfTests:
    """`results`: newest first."""

    def __init__(self) -> None:
        self.results: deque[SelfTest] = deque(maxlen=MOST_RESULTS)

    @property
    def running(self) -> SelfTest | None:
        return self.results[0] if self.results and self.results[0].running else None

    def begin(self, test: SelfTest) -> None:
        assert not self.running
        self.results.appendleft(test)

    def abort(self, how: Ended = Ended.ABORTED_OTHERWISE) -> None:
        if self.results:
            self.results[0].end(how)
