import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.scsi.faulty import FaultyMedium
from tests.scsi.initiator import Initiator, make_unit
from vstore.scsi.commands import Inquiry, Read10, Write10
from vstore.scsi.task import Response, Status, TaskAttribute
from vstore.scsi.task_set import TaskSet

SIMPLE, ORDERED, HEAD = TaskAttribute.SIMPLE, TaskAttribute.ORDERED, TaskAttribute.HEAD_OF_QUEUE


class Stage:
    """A unit whose medium waits for each call to be let go."""

    def __init__(self) -> None:
        self.medium = FaultyMedium()
        self.medium.gate = asyncio.Event()
        self.initiator = Initiator(make_unit(medium=self.medium))
        self.running: list[asyncio.Task[Response]] = []

    async def send(self, lba: int, attribute: TaskAttribute) -> asyncio.Task[Response]:
        cdb = Write10.build(lba=lba, transfer_length=1)
        work = self.initiator.target.execute(self.initiator.task(cdb, bytes(512), attribute=attribute))
        self.running.append(asyncio.get_running_loop().create_task(work))
        await settle()
        return self.running[-1]

    @property
    def begun(self) -> list[int]:
        """LBAs of the writes that reached the medium, in order."""
        return [int(str(call[1])) // 512 for call in self.medium.calls]

    async def end(self) -> None:
        assert self.medium.gate
        self.medium.gate.set()
        for response in await asyncio.wait_for(asyncio.gather(*self.running), 10):
            assert response.status is Status.GOOD

    @property
    def gate(self) -> bool:
        return self.initiator.unit.fast_path(self.initiator.nexus).read


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    made = Stage()
    yield made
    await made.end()
    assert made.gate


async def test_simple_commands_run_together(stage: Stage) -> None:
    for lba in range(3):
        await stage.send(lba, SIMPLE)
    assert stage.begun == [0, 1, 2]
    assert stage.gate


async def test_an_ordered_command_waits_for_older_ones_and_younger_ones_for_it(stage: Stage) -> None:
    for lba, attribute in enumerate((SIMPLE, SIMPLE, ORDERED, SIMPLE, SIMPLE, ORDERED, SIMPLE)):
        await stage.send(lba, attribute)
    assert stage.begun == [0, 1]
    assert not stage.gate
    await stage.end()
    assert stage.begun[:3] == [0, 1, 2]
    assert set(stage.begun[3:5]) == {3, 4}
    assert stage.begun[5:] == [5, 6]


async def test_a_head_of_queue_command_waits_for_none_and_younger_simple_ones_for_it(stage: Stage) -> None:
    await stage.send(0, SIMPLE)
    await stage.send(1, ORDERED)
    await stage.send(2, SIMPLE)
    await stage.send(3, HEAD)
    await stage.send(4, SIMPLE)
    assert stage.begun == [0, 3]
    assert not stage.gate
    await stage.end()
    assert stage.begun[2] == 1
    assert set(stage.begun[3:]) == {2, 4}


async def test_a_head_of_queue_command_alone_shuts_the_gate_until_it_ends(stage: Stage) -> None:
    await stage.send(0, HEAD)
    await stage.send(1, SIMPLE)
    assert stage.begun == [0]
    assert not stage.gate


async def test_a_command_that_is_aborted_while_it_waits_keeps_nobody_back(stage: Stage) -> None:
    await stage.send(0, SIMPLE)
    aborted = await stage.send(1, ORDERED)
    await stage.send(2, SIMPLE)
    stage.running.remove(aborted)
    aborted.cancel()
    await settle()
    assert aborted.cancelled()
    assert stage.begun == [0, 2]
    assert stage.gate


async def test_an_ordered_command_waits_for_the_data_plane() -> None:
    initiator = Initiator()
    drained, asked = asyncio.Event(), []

    async def drain() -> None:
        asked.append(initiator.unit.fast_path(initiator.nexus).write)
        await drained.wait()

    initiator.unit.task_set.on_drain(drain)
    work = initiator.target.execute(initiator.task(Read10.build(transfer_length=1), attribute=ORDERED))
    running = asyncio.get_running_loop().create_task(work)
    await settle()
    assert asked == [False]  # its gate was shut before
    assert not running.done()
    drained.set()
    assert (await running).status is Status.GOOD
    initiator.unit.task_set.forget_drain(drain)
    initiator.good(Read10.build(transfer_length=1), attribute=ORDERED)


def test_without_company_no_attribute_waits() -> None:
    initiator = Initiator()
    for attribute in (SIMPLE, ORDERED, HEAD):
        initiator.good(Read10.build(transfer_length=1), attribute=attribute)
    assert initiator.check("00", attribute=TaskAttribute.ACA).code == (5, 0x49, 0x00)
    initiator.good("00")


def test_the_listener_is_called_when_the_gate_must_change() -> None:
    told: list[bool] = []
    task_set = TaskSet(lambda: told.append(task_set.open))
    entries = []
    for attribute in (SIMPLE, HEAD, HEAD):
        work = task_set.enter(attribute)
        try:
            work.send(None)
        except StopIteration as end:
            entries.append(end.value)
    for entry in entries:
        task_set.leave(entry)
    assert told == [False, True]


def test_the_extended_inquiry_data_claims_the_attributes() -> None:
    data = Initiator().good(Inquiry.build(evpd=1, page_code=0x86, allocation_length=64))
    assert data[5] == 0x07  # HEADSUP, ORDSUP, SIMPSUP


async def test_an_ordered_command_drains_only_the_target_ports_that_are_still_there() -> None:
    tasks, drained = TaskSet(lambda: None), []

    async def first() -> None:
        drained.append("first")
        tasks.forget_drain(first)
        tasks.forget_drain(second)

    async def second() -> None:
        drained.append("second")

    async def third() -> None:
        drained.append("third")

    for drain in (first, second, third):
        tasks.on_drain(drain)
    tasks.leave(await tasks.enter(ORDERED))
    assert drained == ["first", "third"]
