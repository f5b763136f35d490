"""A device server that keeps books: what the log pages tell of commands, self-tests and the space on the host."""

import asyncio
import contextlib
from typing import Any

from vstore.scsi.cdb import Cdb
from vstore.scsi.device_server import DeviceServer
from vstore.scsi.log_values import LogParameters
from vstore.scsi.medium import Medium, Space
from vstore.scsi.mode_parameters import ModeParameters
from vstore.scsi.self_test import SelfTests
from vstore.scsi.sense import AdditionalSense, Sense
from vstore.scsi.statistics import COUNTED, Statistics, Work
from vstore.scsi.task import Response, Status, Task

SPACE_PERIOD = 5.0  # seconds between two looks at the space on the host
SET_BYTES = 1 << 20  # of a threshold set, in which the space on the host is told


class Counting(DeviceServer):
    """`space`: as it was looked at last."""

    medium: Medium
    logical_block_length: int
    modes: ModeParameters

    def __init__(self, *more: Any) -> None:
        super().__init__(*more)
        self._told: set[str] = set()  # resources whose threshold is crossed, and everybody was told
        self._watching: asyncio.Task[None] | None = None
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
        """And tells every nexus of a threshold that it has crossed, once until it is on this side again."""
        self.space = await self.medium.space()
        crossed = self._crossed()
        if crossed - self._told:
            self.establish(AdditionalSense.THIN_PROVISIONING_SOFT_THRESHOLD_REACHED)
        self._told = crossed

    def tell_again(self) -> None:
        """Of what is crossed now, too: those who were told are gone."""
        self._told = set()

    def _crossed(self) -> set[str]:
        """SBC-3 4.7.3.7: the resources of which there is too little, or too much is used."""
        page, space = self.modes.thresholds, self.space
        if space is None:
            return set()
        less = page.available_enabled and self.threshold_sets(space.available) <= page.available_threshold_count
        more = page.used_enabled and self.threshold_sets(space.used) >= page.used_threshold_count
        return {name for name, over in (("available", less), ("used", more)) if over}

    def watch_space(self) -> None:
        """Looks at the space from time to time while a threshold is enabled; call it when one may be."""
        page = self.modes.thresholds
        if (page.available_enabled or page.used_enabled) and (self._watching is None or self._watching.done()):
            with contextlib.suppress(RuntimeError):  # there is no event loop
                self._watching = asyncio.get_running_loop().create_task(self._watch())

    async def _watch(self) -> None:
        while self.modes.thresholds.available_enabled or self.modes.thresholds.used_enabled:
            with contextlib.suppress(OSError):
                await self.look_at_space()
            await asyncio.sleep(SPACE_PERIOD)

    def watch_no_more(self) -> None:
        if self._watching:
            self._watching.cancel()
