"""A device server whose medium can be given one content as a whole (FORMAT UNIT, SANITIZE), which takes long.

    operate --> what is asked is kept --> writers end --> work --> flush --> nothing is kept any more --> ready
                durable, beside the image                  |
      a loss of power, a restart, an unmapping after that: +--> SANITIZE begins again; FORMAT UNIT has failed
      an error of the medium:                              +--> that it failed is kept, until one succeeds

SBC-3 4.11: a SANITIZE cannot be escaped by switching off. It begins again rather than going on, because how far it was
would have to be made durable, too. Where nothing is kept (a block device), it is over with the process.
"""

import asyncio
import contextlib
from collections.abc import Coroutine, Iterator
from typing import Any

from vstore.scsi.kept_state import KeptBytes, State
from vstore.scsi.medium import Medium
from vstore.scsi.operation import Failure, Operation, failure_of
from vstore.scsi.reservable import Reservable
from vstore.scsi.self_test import SelfTests
from vstore.scsi.sense import CheckCondition
from vstore.scsi.task import BytesOut, ITNexus, Task, TaskAttribute

_NOBODY = ITNexus("nobody")


class Operable(Reservable):
    medium: Medium
    self_tests: SelfTests
    blocks: int
    logical_block_length: int

    def __init__(self, state: State | None = None) -> None:
        super().__init__(state)
        self.operation: Operation | None = None  # that keeps the unit from being ready
        self._asked = KeptBytes(state.section("operation") if state else None)
        self.failure: Failure | None = None  # of the last such operation
        if "cdb" in self._asked.values:
            self.failure = failure_of(self._asked.values["cdb"])
        self._writers = 0
        self._no_writers = asyncio.Event()

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Inside, a long operation does not begin."""
        self._writers += 1
        try:
            yield
        finally:
            self._writers -= 1
            if not self._writers:
                self._no_writers.set()

    async def operate(self, operation: Operation, work: Coroutine[Any, Any, None], *, immed: bool) -> None:
        """Runs a long operation, with which the unit is not ready. It goes on to its end also when the command that
        began it is aborted. CheckCondition, unless `immed`, when it failed. OSError: it cannot be kept, and has not
        begun."""
        self.operation = operation
        self.changed()
        operating = self._operate(operation, work)
        self.self_tests.abort()
        running = self.background.start(operating)
        if running is None:
            await operating
        elif immed:
            await operation.begun.wait()
        else:
            await asyncio.shield(running)
        if operation.refused:
            raise operation.refused
        if operation.failed and not immed:
            raise CheckCondition(operation.failure.told)

    async def _operate(self, operation: Operation, work: Coroutine[Any, Any, None]) -> None:
        try:
            await self._keep(operation.asked)
        except OSError as error:
            operation.refused = error
        try:
            operation.begun.set()
            if not operation.refused:
                await self._go_over(work)
                self.failure = None
        except BaseException as error:
            operation.failed = True
            self.failure = operation.failure
            if not isinstance(error, OSError):
                raise
            if not operation.interrupted:
                with contextlib.suppress(OSError):
                    await self._keep(operation.asked | {"failed": b"1"})
        finally:
            work.close()
            self.operation = None
            self.changed()

    async def _go_over(self, work: Coroutine[Any, Any, None]) -> None:
        """What was admitted before may still write: it ends first, also on the data plane."""
        while self._writers:
            self._no_writers.clear()
            await self._no_writers.wait()
        await self.medium.alone(0, self.blocks * self.logical_block_length, lambda _: None)
        await work
        await self.medium.flush()
        await self._keep({})

    async def _keep(self, asked: dict[str, bytes]) -> None:
        if self._asked.keeps:
            await self._asked.save(**(dict.fromkeys(("cdb", "data_out", "failed"), b"") | asked))

    async def forget_failure(self) -> None:
        """OSError: it stays."""
        await self._keep({})
        self.failure = None
        self.changed()

    async def resume(self) -> None:
        """Ends what a loss of power has broken off; before anything is served. OSError."""
        asked = self._asked.values
        cdb = asked.get("cdb", b"")
        if not self.failure or "failed" in asked or not self.failure.begins_again:
            return
        row = self.row_of(cdb)
        if isinstance(row, CheckCondition):
            return
        failure, self.failure = self.failure, None
        task = Task(_NOBODY, 0, 0, TaskAttribute.SIMPLE, cdb, BytesOut(asked.get("data_out", b"")))
        try:
            await self.serve(row, row(row.decode(cdb).value | row.fields["immed"].mask), task)
        except CheckCondition:  # the unit has become another
            self.failure = failure
