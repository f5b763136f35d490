"""A device server that keeps books: what the log pages tell of commands, self-tests and the space on the host."""

from typing import Any

from vstore.scsi.cdb import Cdb
from vstore.scsi.device_server import DeviceServer
from vstore.scsi.log_values import LogParameters
from vstore.scsi.medium import Medium, Space
from vstore.scsi.self_test import SelfTests
from vstore.scsi.sense import Sense
from vstore.scsi.statistics import COUNTED, Statistics, Work
from vstore.scsi.task import Response, Status, Task

SET_BYTES = 1 << 20  # of a threshold set, in which the space on the host is told


class Counting(DeviceServer):
    """`space`: as it was looked at last."""

    medium: Medium
    logical_block_length: int

    def __init__(self, *more: Any) -> None:
        super().__init__(*more)
        self.statistics = Statistics()
        self.log_parameters = LogParameters()
        self.self_tests = SelfTests()
        self.space: Space | None = None

    async def serve(self, row: type[Cdb], cdb: Cdb, task: Task) -> bytes | Status:
        answer = await super().serve(row, cdb, task)
        work = COUNTED.get(row)
        if work:
            self.statistics.count(work, self._length(work, cdb, answer, task))
        return answer

    def _length(self, work: Work, cdb: Cdb, answer: bytes | Status, task: Task) -> int:
        """Bytes that a command has moved, or verified."""
        if work is Work.VERIFY:
            return dict(cdb.items())["verification_length"] * self.logical_block_length
        return len(answer) if isinstance(answer, bytes) and work is Work.READ else task.data_out_used

    def _check(self, task: Task, sense: Sense) -> Response:
        self.statistics.failed(task.cdb[0] if task.cdb else 0, sense)
        return super()._check(task, sense)

    # ---- the space on the host --------------------------------------------------------------------------

    @property
    def threshold_exponent(self) -> int:
        """Of two: blocks of a threshold set."""
        return (SET_BYTES // self.logical_block_length).bit_length() - 1

    @staticmethod
    def threshold_sets(length: int) -> int:
        """That so many bytes are, as far as four bytes can count them."""
        return min(length // SET_BYTES, 0xFFFF_FFFF)

    async def look_at_space(self) -> None:
        self.space = await self.medium.space()
