import asyncio
import errno
import logging

import pytest

from tests.scsi.faulty import FaultyMedium
from tests.scsi.initiator import (
    INVALID_FIELD_IN_CDB,
    INVALID_OPCODE,
    NOT_STARTED,
    POWER_ON,
    WRITE_PROTECTED,
    Initiator,
    make_unit,
    run,
)
from vstore.fuzz.sense_data import parse_sense
from vstore.scsi.commands import Read10, SynchronizeCache10, Write10, WriteSame16
from vstore.scsi.medium import MemoryMedium
from vstore.scsi.task import Status, TaskAttribute

READ = Read10.build(lba=0, transfer_length=1)
WRITE = Write10.build(lba=0, transfer_length=1)
FLUSH = SynchronizeCache10.build()
ZERO = WriteSame16.build(number_of_logical_blocks=8, ndob=1)


@pytest.mark.parametrize("cdb", ["ff", "7f", "01 00 00 00 00 00", "a3 1f", "9e 11"])
def test_an_unknown_command_is_refused(cdb: str) -> None:
    if cdb.startswith(("a3", "9e")):  # the operation code is known, the service action is not
        assert Initiator().refused(cdb) == (1, 4)
    else:
        assert Initiator().check(cdb).code == INVALID_OPCODE


def test_an_empty_cdb_is_refused() -> None:
    initiator = Initiator()
    task = initiator.task(READ)
    task.cdb = b""
    assert parse_sense(run(initiator.target.execute(task)).sense).code == INVALID_OPCODE


def test_a_cdb_cut_off_before_its_service_action_is_refused() -> None:
    initiator = Initiator()
    task = initiator.task(READ)
    task.cdb = b"\x9e"
    assert parse_sense(run(initiator.target.execute(task)).sense).code == INVALID_FIELD_IN_CDB


def test_data_in_is_cut_at_the_allocation_length_without_an_error() -> None:
    initiator = Initiator()
    whole = initiator.good("12 00 00 00 ff 00")
    for length in (0, 1, 5, 36, 95, 96, 97):
        response = initiator.send(bytes([0x12, 0, 0, 0, length, 0]))
        assert response.data_in == whole[:length]
        assert not response.overrun


def test_data_in_is_cut_to_the_room_and_the_overrun_is_told() -> None:
    response = Initiator().send(READ, room=100)
    assert (response.status, len(response.data_in), response.overrun) == (Status.GOOD, 100, True)


def test_a_unit_attention_is_told_once_and_the_command_not_done() -> None:
    initiator = Initiator(settled=False)
    assert initiator.check(WRITE, b"\xff" * 512).code == POWER_ON
    assert initiator.data[:512] == bytes(512)
    initiator.good(WRITE, b"\xff" * 512)
    assert initiator.data[:512] == b"\xff" * 512


def test_a_unit_attention_goes_before_the_refusal_of_an_unknown_command() -> None:
    initiator = Initiator(settled=False)
    assert initiator.check("ff").code == POWER_ON
    assert initiator.check("ff").code == INVALID_OPCODE


def test_the_aca_attribute_is_refused_because_there_is_no_aca() -> None:
    sense = Initiator().check("00 00 00 00 00 00", attribute=TaskAttribute.ACA)
    assert sense.code == (5, 0x49, 0x00)


@pytest.mark.parametrize("attribute", [TaskAttribute.SIMPLE, TaskAttribute.ORDERED, TaskAttribute.HEAD_OF_QUEUE])
def test_the_other_attributes_are_accepted(attribute: TaskAttribute) -> None:
    Initiator().good("00 00 00 00 00 00", attribute=attribute)


def test_naca_is_refused_at_its_bit() -> None:
    assert Initiator().refused("00 00 00 00 00 04") == (5, 2)


@pytest.mark.parametrize("cdb", [WRITE, ZERO, "93 08 0000000000000000 00000001 00 00"])
def test_writing_to_a_read_only_unit_is_data_protect(cdb: bytes | str) -> None:
    assert Initiator(make_unit(read_only=True)).check(cdb, bytes(512)).code == WRITE_PROTECTED


def test_a_read_only_medium_makes_a_read_only_unit_that_still_flushes_and_reads() -> None:
    initiator = Initiator(make_unit(medium=MemoryMedium(1 << 20, read_only=True)))
    assert initiator.check(WRITE, bytes(512)).code == WRITE_PROTECTED
    initiator.good(FLUSH)
    assert initiator.good(READ) == bytes(512)


@pytest.mark.parametrize("cdb", [READ, WRITE, FLUSH, ZERO, "2f 00 00000000 00 0001 00", "00 00 00 00 00 00"])
def test_a_stopped_unit_is_not_ready(cdb: bytes | str) -> None:
    initiator = Initiator()
    initiator.good("1b 00 00 00 00 00")
    assert initiator.check(cdb, bytes(512)).code == NOT_STARTED


@pytest.mark.parametrize(
    ("operation", "cdb", "number", "code"),
    [
        ("read", READ, errno.EIO, (3, 0x11, 0x00)),
        ("read", READ, errno.ENODATA, (3, 0x11, 0x00)),
        ("read", "2f 00 00000000 00 0001 00", errno.EIO, (3, 0x11, 0x00)),
        ("write", WRITE, errno.EIO, (3, 0x0C, 0x00)),
        ("write_zeroes", ZERO, errno.EIO, (3, 0x0C, 0x00)),
        ("flush", FLUSH, errno.EIO, (3, 0x0C, 0x00)),
        ("flush", "1b 00 00 00 00 00", errno.EIO, (3, 0x0C, 0x00)),
        ("write", WRITE, errno.ENOSPC, (7, 0x27, 0x07)),
        ("write", WRITE, errno.EDQUOT, (7, 0x27, 0x07)),
        ("write", WRITE, errno.EFBIG, (7, 0x27, 0x07)),
        ("write", WRITE, errno.EROFS, (7, 0x27, 0x00)),
        ("write", WRITE, errno.EBADF, (4, 0x44, 0x00)),
        ("read", READ, errno.ESTALE, (4, 0x44, 0x00)),
    ],
)
def test_an_error_of_the_host_becomes_sense_data(
    operation: str, cdb: bytes | str, number: int, code: tuple[int, int, int]
) -> None:
    medium = FaultyMedium()
    medium.errors[operation] = number
    assert Initiator(make_unit(medium=medium)).check(cdb, bytes(512)).code == code


@pytest.mark.parametrize("error", [errno.ENOMEM, MemoryError()])
def test_no_memory_is_task_set_full(error: int | Exception) -> None:
    medium = FaultyMedium()
    medium.errors["read"] = error
    response = Initiator(make_unit(medium=medium)).send(READ)
    assert (response.status, response.sense) == (Status.TASK_SET_FULL, b"")


def test_an_error_without_a_number_is_a_hardware_error() -> None:
    medium = FaultyMedium()
    medium.errors["read"] = OSError("no number")
    assert Initiator(make_unit(medium=medium)).check(READ).code == (4, 0x44, 0x00)


def test_a_defect_is_logged_and_told_as_an_internal_failure(caplog: pytest.LogCaptureFixture) -> None:
    medium = FaultyMedium()
    medium.errors["read"] = ZeroDivisionError("a defect")
    with caplog.at_level(logging.ERROR):
        assert Initiator(make_unit(medium=medium)).check(READ).code == (4, 0x44, 0x00)
    assert "CDB 28000000000000000100" in caplog.text
    assert "ZeroDivisionError" in caplog.text


async def test_cancellation_goes_through() -> None:
    medium = FaultyMedium()
    initiator = Initiator(make_unit(medium=medium))
    medium.gate = asyncio.Event()
    running = asyncio.create_task(initiator.target.execute(initiator.task(READ)))
    await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


def test_what_was_consumed_of_data_out_is_told_even_on_failure() -> None:
    medium = FaultyMedium()
    initiator = Initiator(make_unit(medium=medium))
    response = initiator.send(WRITE, bytes(4096))
    assert (response.status, response.data_out_used) == (Status.GOOD, 512)
    medium.errors["write"] = errno.EIO
    response = initiator.send(WRITE, bytes(4096))
    assert (response.status, response.data_out_used) == (Status.CHECK_CONDITION, 512)


def test_descriptor_sense_is_used_when_the_control_page_says_so() -> None:
    initiator = Initiator()
    page = bytearray(initiator.good("1a 08 0a 00 ff 00")[4:])
    page[2] |= 0x04
    initiator.good(bytes([0x15, 0x10, 0, 0, 16, 0]), bytes(4) + page)
    assert initiator.check("ff").descriptor
    sense = initiator.check("28 20 00000000 00 0001 00")
    assert (sense.descriptor, sense.in_cdb, sense.byte, sense.bit) == (True, True, 1, 7)
