import asyncio
import errno

import pytest

from tests.scsi.copying import BLOCKS, both, command, cscd, initiator, listed, naa, numbers, segment, unit
from tests.scsi.faulty import FaultyMedium
from tests.scsi.initiator import (
    INVALID_FIELD_IN_PARAMETER_LIST,
    LBA_OUT_OF_RANGE,
    NOT_STARTED,
    PARAMETER_LIST_LENGTH_ERROR,
    SHORT_DATA_OUT,
    WRITE_PROTECTED,
    Initiator,
)
from vstore.fuzz.sense_data import Forwarded, parse_sense
from vstore.scsi.commands import (
    ReceiveCopyFailureDetails,
    ReceiveCopyOperatingParameters,
    ReceiveCopyStatus,
    Reserve6,
    StartStopUnit,
)
from vstore.scsi.direct_access import ResetCause
from vstore.scsi.medium import MemoryMedium
from vstore.scsi.mode_parameters import CONTROL
from vstore.scsi.pages import Control
from vstore.scsi.task import ITNexus, Status

NOT_REACHABLE, INEXACT, DEVICE_FAILURE = (0xA, 0x0D, 0x02), (0xA, 0x26, 0x0A), (0xA, 0x0D, 0x01)


# ---- copying -------------------------------------------------------------------------------------------


def test_blocks_are_copied_to_another_unit_and_no_others() -> None:
    made = initiator()
    made.good(*command(listed(both(made), [segment(0, 100, 1, 1000, 5), segment(1, 0, 0, 7, 1)])))
    assert numbers(made.target.luns[1], 999, 7) == [999, 100, 101, 102, 103, 104, 1005]
    assert numbers(made.target.luns[0], 6, 3) == [6, 0, 8]


@pytest.mark.parametrize("kind", ["naa", "t10"])
def test_a_unit_is_named_by_either_designator(kind: str) -> None:
    made = initiator()
    named = cscd(b"VSTORE  two", kind=1, code_set=2) if kind == "t10" else cscd(made.target.luns[1])
    made.good(*command(listed([cscd(made.target.luns[0]), named], [segment(0, 1, 1, 2, 1)])))
    assert numbers(made.target.luns[1], 2, 1) == [1]


@pytest.mark.parametrize(("at", "to"), [(0, 1), (0, 1500 // 2), (1, 0), (5, 5)])
def test_a_copy_onto_itself_moves_what_was_there(at: int, to: int) -> None:
    big = unit("big", MemoryMedium(8 << 20))
    made = initiator(big)
    count = 6000
    made.good(*command(listed(both(made), [segment(0, at, 0, to, count)])))
    assert numbers(big, to, count) == list(range(at, at + count))


def test_units_of_other_block_lengths_copy_whole_blocks() -> None:
    made = initiator(unit("small"), unit("large", logical_block_length=4096))
    cscds = [cscd(made.target.luns[0]), cscd(made.target.luns[1], size=4096)]
    made.good(*command(listed(cscds, [segment(0, 16, 1, 3, 8)])))
    assert numbers(made.target.luns[1], 24, 8) == list(range(16, 24))
    made.good(*command(listed(cscds, [segment(0, 800, 1, 4, 1, head="02 02 00 18")])))  # DC: blocks of the destination
    assert numbers(made.target.luns[1], 32, 8) == list(range(800, 808))
    assert made.check(*command(listed(cscds, [segment(0, 0, 1, 0, 7)]))).code == INEXACT


def test_what_is_not_there_is_deallocated_rather_than_written() -> None:
    made = initiator()
    source, destination = (made.target.luns[lun].medium for lun in (0, 1))
    assert isinstance(source, MemoryMedium)
    assert isinstance(destination, MemoryMedium)
    source.data[: 64 * 512] = bytes(64 * 512)
    source.holes.update(range(64))
    made.good(*command(listed(both(made), [segment(0, 0, 1, 128, 64)])))
    assert destination.holes == set(range(128, 192))
    assert numbers(made.target.luns[1], 127, 66) == [127, *[0] * 64, 192]


def test_writes_are_durable_where_there_is_no_cache() -> None:
    made = initiator(unit("one"), unit("two", write_cache=False))
    made.good(*command(listed(both(made), [segment(0, 0, 1, 0, 1), segment(0, 0, 1, 0, 1)])))
    assert [getattr(made.target.luns[lun].medium, "flushes") for lun in (0, 1)] == [0, 2]  # noqa: B009


@pytest.mark.parametrize("data", [b"", listed([], []), listed([], [], usage=0, identifier=9)])
def test_nothing_to_copy_is_no_error(data: bytes) -> None:
    made = initiator()
    made.good(*command(data))
    made.good(*command(listed(both(made), [segment(0, 0, 1, 0, 0)])))
    assert numbers(made.target.luns[1], 0, 4) == [0, 1, 2, 3]


# ---- refusals ------------------------------------------------------------------------------------------


def test_a_unit_that_the_nexus_cannot_see_is_not_reachable() -> None:
    elsewhere = unit("elsewhere")
    initiator(elsewhere)
    made = initiator()
    told = made.check(*command(listed([cscd(made.unit), cscd(elsewhere)], [segment(0, 0, 1, 0, 1)])))
    assert told.code == NOT_REACHABLE
    assert numbers(elsewhere, 0, 2) == [0, 1]
    for wrong in (cscd(naa(made.unit)[:7]), cscd(naa(made.unit) + b"\0"), cscd(made.unit, kind=2), cscd(b"")):
        assert made.check(*command(listed([wrong], []))).code == NOT_REACHABLE


@pytest.mark.parametrize(
    ("descriptor", "place"),
    [
        (cscd(b"x", head="e4 40"), (17, 7)),
        (cscd(b"x", head="e4 20"), (17, 5)),  # NUL
        (cscd(b"x", head="e4 05"), (17, 4)),
        (cscd(b"x", kind=0x13), (21, 5)),  # of a target port
        (cscd(bytes(20))[:7] + b"\x15" + cscd(bytes(20))[8:], (23, 7)),
    ],
)
def test_a_fault_in_a_cscd_descriptor_is_pointed_at(descriptor: bytes, place: tuple[int, int]) -> None:
    told = initiator().check(*command(listed([descriptor], [])))
    assert (told.code, told.in_cdb) == (INVALID_FIELD_IN_PARAMETER_LIST, False)
    assert (told.byte, told.bit) == place


def test_another_block_length_than_the_units_is_refused() -> None:
    made = initiator()
    told = made.check(*command(listed([cscd(made.unit, size=4096)], [])))
    assert (told.code, told.byte, told.bit) == (INVALID_FIELD_IN_PARAMETER_LIST, 16 + 29, 7)


@pytest.mark.parametrize(
    ("wrong", "byte"),
    [
        (segment(0, 0, 1, 0, 1, head="02 00 00 14"), 2),
        (segment(2, 0, 1, 0, 1), 4),
        (segment(0, 0, 2, 0, 1), 6),
    ],
)
def test_a_fault_in_a_segment_is_pointed_at_and_nothing_is_copied(wrong: bytes, byte: int) -> None:
    made = initiator()
    told = made.check(*command(listed(both(made), [segment(0, 9, 1, 0, 1), wrong])))
    assert (told.code, told.byte) == (INVALID_FIELD_IN_PARAMETER_LIST, 16 + 64 + 28 + byte)
    assert numbers(made.target.luns[1], 0, 1) == [0]


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        (segment(0, BLOCKS, 1, 0, 1), LBA_OUT_OF_RANGE),
        (segment(0, 0, 1, BLOCKS - 1, 2), LBA_OUT_OF_RANGE),
        (segment(0, 2**64 - 1, 1, 0, 1), LBA_OUT_OF_RANGE),
        (segment(0, 0, 1, 0, 1, head="0a 00 00 18"), (5, 0x26, 0x09)),
    ],
)
def test_segments_that_cannot_be_are_refused(wrong: bytes, code: tuple[int, int, int]) -> None:
    made = initiator()
    assert made.check(*command(listed(both(made), [wrong]))).code == code


def test_a_segment_longer_than_is_told_is_refused() -> None:
    small = unit("large", logical_block_length=4096)
    made = initiator(small)
    told = made.check(*command(listed([cscd(small, size=4096)], [segment(0, 0, 0, 0, 16385)])))
    assert (told.code, told.byte) == (INVALID_FIELD_IN_PARAMETER_LIST, 16 + 32 + 10)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (listed([cscd(b"x")] * 65, []), (5, 0x26, 0x06)),
        (listed([], [segment(0, 0, 0, 0, 0)] * 65), (5, 0x26, 0x08)),
        (listed([], [], inline=1), (5, 0x26, 0x0B)),
        (listed([cscd(b"x", head="e0 00")], []), (5, 0x26, 0x07)),
        (listed([], [])[:15], PARAMETER_LIST_LENGTH_ERROR),
        (listed([cscd(b"x")], [])[:-1], PARAMETER_LIST_LENGTH_ERROR),
        (listed([b"x" * 31], []), INVALID_FIELD_IN_PARAMETER_LIST),
        (listed([], [b"x" * 27]), INVALID_FIELD_IN_PARAMETER_LIST),
        (listed([], [], identifier=1), INVALID_FIELD_IN_PARAMETER_LIST),
        (listed([], [], usage=1), INVALID_FIELD_IN_PARAMETER_LIST),
    ],
)
def test_lists_that_cannot_be_are_refused(data: bytes, code: tuple[int, int, int]) -> None:
    assert initiator().check(*command(data)).code == code


def test_data_out_shorter_than_the_list_is_refused() -> None:
    cdb, data = command(listed([], []))
    assert initiator().check(cdb, data[:-1]).code == SHORT_DATA_OUT


def test_each_unit_must_be_able_to_do_its_part() -> None:
    made = initiator(unit("one"), unit("two", read_only=True))
    assert made.check(*command(listed(both(made), [segment(0, 0, 1, 0, 1)]))).code == WRITE_PROTECTED
    made.good(*command(listed(both(made), [segment(1, 5, 0, 0, 1)])))
    made.good(StartStopUnit.build(), lun=1)
    assert made.check(*command(listed(both(made), [segment(1, 5, 0, 0, 1)]))).code == NOT_STARTED


def test_a_unit_that_another_has_reserved_is_left_alone() -> None:
    made = initiator()
    other = Initiator(made.target, lun=1)
    other.good(Reserve6.build())
    for pair in ((0, 1), (1, 0)):
        told = made.send(*command(listed(both(made), [segment(pair[0], 0, pair[1], 1, 1)])))
        assert told.status is Status.RESERVATION_CONFLICT
    assert numbers(made.target.luns[1], 1, 1) == [1]


# ---- what is told afterwards ---------------------------------------------------------------------------


def status_of(made: Initiator, identifier: int) -> str:
    return made.good(ReceiveCopyStatus.build(list_identifier=identifier, allocation_length=255)).hex(" ")


def test_the_end_of_a_copy_is_told_once() -> None:
    made = initiator()
    made.good(*command(listed(both(made), [segment(0, 0, 1, 0, 8), segment(0, 0, 1, 8, 2)], identifier=7, usage=0)))
    assert status_of(made, 7) == "00 00 00 08 01 00 02 01 00 00 00 05"
    assert made.refused(ReceiveCopyStatus.build(list_identifier=7, allocation_length=255)) == (2, 7)
    assert made.refused(ReceiveCopyStatus.build(list_identifier=8, allocation_length=255)) == (2, 7)


def test_another_nexus_is_told_nothing_of_it() -> None:
    made = initiator()
    other = Initiator(made.target)
    made.good(*command(listed(both(made), [], identifier=7, usage=2)))
    assert other.refused(ReceiveCopyStatus.build(list_identifier=7, allocation_length=255)) == (2, 7)
    assert status_of(made, 7)[12:14] == "01"


def test_sixteen_copies_are_remembered() -> None:
    made = initiator()
    for identifier in range(17):
        made.good(*command(listed([], [], identifier=identifier, usage=0)))
    assert made.refused(ReceiveCopyStatus.build(list_identifier=0, allocation_length=255)) == (2, 7)
    assert status_of(made, 16)[12:14] == "01"


@pytest.mark.parametrize(
    ("number", "code"), [(errno.EIO, DEVICE_FAILURE), (errno.ENOSPC, (7, 0x27, 0x07)), (errno.EBADF, DEVICE_FAILURE)]
)
def test_a_copy_that_fails_tells_how_far_it_got_where_and_why(number: int, code: tuple[int, int, int]) -> None:
    medium = FaultyMedium()
    made = initiator(unit("one"), unit("two", medium))
    medium.errors["write"] = number
    segments = [segment(1, 3, 0, 0, 4), segment(0, 0, 1, 0, 4)]
    sense = made.check(*command(listed(both(made), segments, identifier=5, usage=2)))
    assert (sense.code, sense.segment) == (code, 1)
    assert status_of(made, 5) == "00 00 00 08 02 00 01 01 00 00 00 02"
    asked = ReceiveCopyFailureDetails.build(list_identifier=5, allocation_length=255)
    details = made.good(asked)
    assert int.from_bytes(details[:4]) == len(details) - 4 == 56 + 18 + 1 + 18
    assert (details[56], details[58:60]) == (2, b"\0\x25")
    assert (details[62] & 0xF, details[72], details[73]) == code
    # COMMAND-SPECIFIC INFORMATION: where the destination's answer stands, in the second byte; then the segment
    assert details[68:72] == b"\0\x12\0\1"
    assert made.good(asked) == bytes(4)
    assert numbers(made.target.luns[0], 0, 4) == [3, 4, 5, 6]


@pytest.mark.parametrize(
    ("call", "number", "told", "source", "answer"),
    [
        ("read", errno.EIO, DEVICE_FAILURE, 1, (3, 0x11, 0x00)),
        ("write", errno.EIO, DEVICE_FAILURE, 2, (3, 0x0C, 0x00)),
        ("write", errno.ENOSPC, (7, 0x27, 0x07), 2, (7, 0x27, 0x07)),
        ("flush", errno.EBADF, DEVICE_FAILURE, 2, (4, 0x44, 0x00)),
    ],
)
@pytest.mark.parametrize("descriptor", [False, True])
def test_what_a_unit_answered_is_forwarded_as_it_was(
    call: str, number: int, told: tuple[int, int, int], source: int, answer: tuple[int, int, int], *, descriptor: bool
) -> None:
    medium = FaultyMedium()
    made = initiator(unit("one"), unit("bad", medium, write_cache=False))
    medium.errors[call] = number
    if descriptor:
        made.unit.modes.current[CONTROL].value |= Control.d_sense.mask  # of who makes the copy, not of who failed
    at = (1, 0) if call == "read" else (0, 1)  # LUN 1 is the bad one
    sense = made.check(*command(listed(both(made), [segment(at[0], 0, at[1], 0, 4)])))
    assert (sense.code, sense.descriptor, sense.segment) == (told, descriptor, 0)
    assert sense.forwarded
    assert sense.forwarded.sense
    assert (sense.forwarded.source, sense.forwarded.status) == (source, Status.CHECK_CONDITION)
    assert (sense.forwarded.sense.code, sense.forwarded.sense.descriptor) == (answer, False)


def test_a_segment_that_is_not_of_whole_blocks_is_told_by_its_number() -> None:
    made = initiator(unit("one"), unit("two", logical_block_length=4096))
    cscds = [cscd(made.target.luns[0]), cscd(made.target.luns[1], size=4096)]
    sense = made.check(*command(listed(cscds, [segment(0, 0, 1, 0, 8), segment(0, 0, 1, 0, 1)])))
    assert (sense.code, sense.segment) == (INEXACT, 1)


async def test_a_copy_that_goes_on_keeps_its_identifier() -> None:
    medium = FaultyMedium()
    made = initiator(unit("one"), unit("two", medium))
    medium.gate = asyncio.Event()
    order = command(listed(both(made), [segment(0, 0, 1, 0, 4)], identifier=5, usage=0))
    going = asyncio.get_running_loop().create_task(made.target.execute(made.task(*order)))
    await asyncio.sleep(0)
    assert status_of(made, 5)[12:14] == "00"
    assert made.check(*order).code == (5, 0x00, 0x16)
    medium.gate.set()
    assert (await going).status is Status.GOOD
    assert status_of(made, 5)[12:14] == "01"


@pytest.mark.parametrize("length", [0, 3, 4, 43, 44, 45, 46, 255])
def test_the_operating_parameters_are_what_is_held_to(length: int) -> None:
    asked = ReceiveCopyOperatingParameters.build(allocation_length=length, list_identifier=9)
    whole = bytes.fromhex(
        "0000002a 01000000 0040 0040 00000f00 04000000 00000000 000003c0 00000000 0000 0010 10 09 00 00 000000 02 02 e4"
    )
    assert initiator().good(asked) == whole[:length]


async def test_a_copy_stops_where_its_nexus_loses_the_destination_and_an_abort_waits_for_the_last_piece() -> None:
    medium = FaultyMedium(8 << 20)
    made = initiator(unit("one", MemoryMedium(8 << 20)), unit("two", medium))
    medium.gate = asyncio.Event()
    data = listed(both(made), [segment(0, 1, 1, 0, 8192)], identifier=5, usage=0)
    going = asyncio.get_running_loop().create_task(made.target.execute(made.task(*command(data))))
    await asyncio.sleep(0)
    other = Initiator(made.target, lun=1)
    other.good(Reserve6.build())
    aborting = asyncio.get_running_loop().create_task(made.target.luns[1].abort([], None))
    for _ in range(4):
        await asyncio.sleep(0)
    assert not aborting.done()
    medium.gate.set()
    ended = await going
    assert ended.status is Status.CHECK_CONDITION
    sense = parse_sense(ended.sense)
    assert (sense.code, sense.forwarded) == (DEVICE_FAILURE, Forwarded(2, Status.RESERVATION_CONFLICT, None))
    await aborting
    assert numbers(made.target.luns[1], 2046, 4) == [2047, 2048, 2048, 2049]
    assert status_of(made, 5)[12:14] == "02"


@pytest.mark.parametrize("cause", list(ResetCause))
def test_what_became_of_a_copy_is_forgotten_with_its_nexus_and_by_every_reset(cause: ResetCause) -> None:
    made = initiator()
    made.good(*command(listed([], [], identifier=3, usage=0)))
    made.unit.reset(cause, ITNexus("another"))
    if cause is ResetCause.I_T_NEXUS_LOSS:
        made.good("00")  # it was another's
        made.unit.reset(cause, made.nexus)
    made.check("00")
    assert made.refused(ReceiveCopyStatus.build(list_identifier=3, allocation_length=12)) == (2, 7)


async def test_a_copy_stops_where_the_destination_is_protected_meanwhile_and_says_so() -> None:
    medium = FaultyMedium(8 << 20)
    made = initiator(unit("one", MemoryMedium(8 << 20)), unit("two", medium))
    medium.gate = asyncio.Event()
    data = listed(both(made), [segment(0, 1, 1, 0, 8192)])
    going = asyncio.get_running_loop().create_task(made.target.execute(made.task(*command(data))))
    await asyncio.sleep(0)
    made.target.luns[1].modes.current[CONTROL].value |= Control.swp.mask
    medium.gate.set()
    sense = parse_sense((await going).sense)
    assert sense.code == (7, 0x27, 0x02)
    assert sense.forwarded
    assert sense.forwarded.sense
    assert sense.forwarded.sense.code == sense.code
    assert numbers(made.target.luns[1], 2046, 4) == [2047, 2048, 2048, 2049]
