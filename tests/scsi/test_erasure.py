import asyncio
import errno

import pytest

from tests.scsi.disks import patterned, with_log
from tests.scsi.faulty import FaultyMedium
from tests.scsi.initiator import (
    INVALID_FIELD_IN_PARAMETER_LIST,
    MIB,
    SHORT_DATA_OUT,
    WRITE_PROTECTED,
    Initiator,
    make_unit,
)
from vstore.fuzz.sense_data import ParsedSense, parse_sense
from vstore.scsi.commands import (
    FormatUnit,
    Inquiry,
    Read10,
    ReportLuns,
    RequestSense,
    SanitizeBlockErase,
    SanitizeExitFailureMode,
    SanitizeOverwrite,
    StartStopUnit,
    Write10,
)
from vstore.scsi.logical_unit import ResetCause
from vstore.scsi.task import ITNexus, Response, Status

FORMATTING, SANITIZING = (2, 0x04, 0x04), (2, 0x04, 0x1B)
CORRUPTED, FORMAT_FAILED, SANITIZE_FAILED = (3, 0x31, 0x00), (3, 0x31, 0x01), (3, 0x31, 0x03)
ERASES = [
    (FormatUnit.build(fmtdata=1), bytes([0, 2, 0, 0]), FORMATTING),
    (SanitizeBlockErase.build(immed=1), b"", SANITIZING),
    (SanitizeOverwrite.build(immed=1, parameter_list_length=6), bytes.fromhex("03 00 0002 a55a"), SANITIZING),
]
AT_ONCE = [
    (FormatUnit.build(), b""),
    (SanitizeBlockErase.build(), b""),
    (SanitizeOverwrite.build(parameter_list_length=5), bytes.fromhex("01 00 0001 00")),
]


# ---- FORMAT UNIT ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("thin", [True, False])
def test_format_without_data_clears_the_whole_medium(thin: bool) -> None:
    initiator, medium = with_log(thin=thin)
    initiator.data[:] = b"\xee" * MIB
    initiator.good(FormatUnit.build())
    assert medium.calls == [("write_zeroes", 0, MIB, thin), ("flush",)]
    assert not any(initiator.data)
    initiator.good("00")


@pytest.mark.parametrize(
    "parameters",
    ["00 00 0000", "00 02 0000", "00 80 0000", "00 f0 0000", "00 88 0000 00 00 0000"],
)
def test_what_format_may_be_told_changes_nothing_about_the_default_pattern(parameters: str) -> None:
    initiator = patterned()
    response = initiator.send(FormatUnit.build(fmtdata=1, cmplst=1), bytes.fromhex(parameters))
    assert (response.status, response.data_out_used) == (Status.GOOD, len(bytes.fromhex(parameters)))
    assert not any(initiator.data)


@pytest.mark.parametrize("size", [512, 4096])
def test_a_pattern_is_repeated_in_every_block(size: int) -> None:
    initiator = patterned(logical_block_length=size)
    pattern = b"\1\2\3\4\5"
    parameters = bytes([0, 0x88, 0, 0, 0, 0, 0, 0]) + bytes([0, 1, 0, 5]) + pattern
    initiator.good(FormatUnit.build(fmtdata=1, longlist=1), parameters)
    block = (pattern * (size // 5 + 1))[:size]
    assert initiator.data == block * (MIB // size)


@pytest.mark.parametrize(
    ("parameters", "long", "pointer"),
    [
        ("01 00 0000", 0, (0, 2)),  # PROTECTION FIELD USAGE
        ("80 00 0000", 0, (0, 7)),
        ("00 81 0000", 0, (1, 0)),
        ("00 84 0000", 0, (1, 2)),
        ("00 40 0000", 0, (1, 6)),  # DPRY without FOV
        ("00 08 0000 00 00 0000", 0, (1, 3)),  # IP without FOV
        ("00 80 0008", 0, (2, 7)),  # a list of defects
        ("00 80 00 10 00000000", 1, (3, 7)),
        ("00 80 00 01 00000000", 1, (3, 3)),
        ("00 80 01 00 00000000", 1, (2, 0)),
        ("00 80 00 00 00000008", 1, (4, 7)),
        ("00 88 0000 40 00 0000", 0, (4, 6)),  # IP MODIFIER
        ("00 88 0000 20 00 0000", 0, (4, 5)),  # SI
        ("00 88 0000 00 02 0000", 0, (5, 7)),
        ("00 88 0000 00 00 0001 00", 0, (6, 7)),
        ("00 88 0000 00 01 0000", 0, (6, 7)),
        ("00 88 0000 00 01 0201", 0, (6, 7)),
    ],
)
def test_what_format_cannot_do_is_refused_with_a_pointer(parameters: str, long: int, pointer: tuple[int, int]) -> None:
    initiator, medium = with_log()
    sense = initiator.check(FormatUnit.build(fmtdata=1, longlist=long), bytes.fromhex(parameters).ljust(600, b"\0"))
    assert (sense.code, sense.in_cdb) == (INVALID_FIELD_IN_PARAMETER_LIST, False)
    assert (sense.byte, sense.bit) == pointer
    assert medium.calls == []


@pytest.mark.parametrize(
    ("parameters", "long"),
    [("", 0), ("000000", 0), ("00000000 0000", 1), ("00880000 000100", 0), ("00880000 00010004 010203", 0)],
)
def test_format_with_a_list_that_is_cut_short_is_refused(parameters: str, long: int) -> None:
    cdb = FormatUnit.build(fmtdata=1, longlist=long)
    assert Initiator().check(cdb, bytes.fromhex(parameters)).code == SHORT_DATA_OUT


@pytest.mark.parametrize(
    ("cdb", "pointer"), [("04 40", (1, 7)), ("04 80", (1, 7)), ("04 00 01", (2, 0)), ("04 00 00 00 03", (4, 1))]
)
def test_protection_and_fast_format_are_refused(cdb: str, pointer: tuple[int, int]) -> None:
    assert Initiator().refused(bytes.fromhex(cdb).ljust(6, b"\0")) == pointer


def test_a_failed_format_leaves_a_medium_that_only_a_format_can_mend() -> None:
    initiator, medium = with_log()
    medium.errors["write_zeroes"] = errno.EIO
    assert initiator.check(FormatUnit.build()).code == FORMAT_FAILED
    assert initiator.check(Read10.build(transfer_length=1)).code == CORRUPTED
    assert initiator.check(Write10.build(transfer_length=1), bytes(512)).code == CORRUPTED
    assert not initiator.unit.fast_path(initiator.nexus).read
    assert parse_sense(initiator.good(RequestSense.build(allocation_length=252))).code == CORRUPTED
    initiator.good(SanitizeExitFailureMode.build())
    assert initiator.check(Read10.build(transfer_length=1)).code == CORRUPTED
    medium.errors.clear()
    initiator.good(FormatUnit.build())
    initiator.good(Read10.build(transfer_length=1))


def test_a_defect_of_ours_in_a_format_is_told_as_such_and_leaves_no_disk_half_formatted() -> None:
    initiator, medium = with_log()
    medium.errors["write_zeroes"] = ValueError("a defect")
    assert initiator.check(FormatUnit.build()).code == (4, 0x44, 0x00)
    medium.errors.clear()
    assert initiator.check(Read10.build(transfer_length=1)).code == CORRUPTED
    initiator.good(FormatUnit.build())
    initiator.good(Read10.build(transfer_length=1))


# ---- SANITIZE ------------------------------------------------------------------------------------------


def test_sanitize_is_laid_out_as_sbc_3_prints_it() -> None:
    assert SanitizeOverwrite.build(immed=1, ause=1, parameter_list_length=0x1122).hex() == "48a10000000000112200"
    assert SanitizeBlockErase.build(immed=1).hex() == "48820000000000000000"
    assert SanitizeExitFailureMode.build().hex() == "481f0000000000000000"


def test_block_erase_deallocates_every_block() -> None:
    initiator, medium = with_log()
    initiator.good(SanitizeBlockErase.build())
    assert medium.calls == [("write_zeroes", 0, MIB, True), ("flush",)]


def test_block_erase_of_a_thick_unit_is_not_there() -> None:
    assert Initiator(make_unit(thin=False)).refused(SanitizeBlockErase.build()) == (1, 4)


@pytest.mark.parametrize(
    ("count", "invert", "first"),
    [(1, 0, "a55a11"), (2, 0, "a55a11"), (1, 1, "a55a11"), (2, 1, "5aa5ee"), (3, 1, "a55a11")],
)
def test_overwrite_writes_its_pattern_as_often_as_asked_and_itself_last(count: int, invert: int, first: str) -> None:
    initiator, medium = with_log()
    firsts: list[bytes] = []
    medium.on_write = lambda data: firsts.append(bytes(data[:3]))
    parameters = bytes([invert << 7 | count, 0, 0, 3]) + bytes.fromhex("a55a11")
    initiator.good(SanitizeOverwrite.build(parameter_list_length=7), parameters)
    assert initiator.data == (bytes.fromhex("a55a11") * 171)[:512] * (MIB // 512)
    assert medium.calls == [("write", 0, MIB), ("flush",)] * count + [("flush",)]
    assert firsts[0] == bytes.fromhex(first)
    assert len(set(firsts)) == (2 if invert and count > 1 else 1)


@pytest.mark.parametrize("length", [0, 4, 4 + 512 + 1, 0xFFFF])
def test_overwrite_with_an_impossible_list_length_is_refused(length: int) -> None:
    cdb = SanitizeOverwrite.build(parameter_list_length=length)
    assert Initiator().refused(cdb, bytes([1, 0, 0, 1]).ljust(0x10000, b"\0")) == (7, 7)


@pytest.mark.parametrize(
    ("parameters", "pointer"),
    [
        ("00 00 0001 00", (0, 4)),
        ("21 00 0001 00", (0, 6)),
        ("01 01 0001 00", (1, 0)),
        ("01 00 0000 00", (2, 7)),
        ("01 00 0002 00", (2, 7)),
    ],
)
def test_overwrite_with_an_impossible_list_is_refused(parameters: str, pointer: tuple[int, int]) -> None:
    data = bytes.fromhex(parameters)
    sense = Initiator().check(SanitizeOverwrite.build(parameter_list_length=len(data)), data)
    assert (sense.code, sense.byte, sense.bit) == (INVALID_FIELD_IN_PARAMETER_LIST, *pointer)


def test_overwrite_with_a_pattern_as_long_as_a_block_is_served() -> None:
    initiator, pattern = Initiator(), bytes(range(256)) * 2
    initiator.good(SanitizeOverwrite.build(parameter_list_length=516), bytes([1, 0, 2, 0]) + pattern)
    assert initiator.data == pattern * (MIB // 512)


@pytest.mark.parametrize(
    ("cdb", "pointer"), [("48 41", (1, 6)), ("48 42", (1, 6)), ("48 02 0000000000 0001", (7, 7)), ("48 01 01", (2, 0))]
)
def test_reserved_bits_of_sanitize_are_refused(cdb: str, pointer: tuple[int, int]) -> None:
    assert Initiator().refused(bytes.fromhex(cdb).ljust(10, b"\0")) == pointer


@pytest.mark.parametrize("ause", [0, 1])
def test_after_a_failed_sanitize_nothing_is_served_but_another(ause: int) -> None:
    initiator, medium = with_log()
    medium.errors["write_zeroes"] = errno.EIO
    assert initiator.check(SanitizeBlockErase.build(ause=ause)).code == SANITIZE_FAILED
    for cdb in ("00", Read10.build(), StartStopUnit.build(start=1), FormatUnit.build()):
        assert initiator.check(cdb).code == SANITIZE_FAILED
    for served in (Inquiry.build(), ReportLuns.build()):
        initiator.good(served)
    assert parse_sense(initiator.good(RequestSense.build(allocation_length=252))).code == SANITIZE_FAILED
    if ause:
        initiator.good(SanitizeExitFailureMode.build())
    else:
        assert initiator.refused(SanitizeExitFailureMode.build()) == (1, 4)
        medium.errors.clear()
        initiator.good(SanitizeBlockErase.build())
    initiator.good("00")
    assert initiator.unit.fast_path(initiator.nexus).write


def test_a_sanitize_that_may_not_be_left_cannot_be_followed_by_one_that_may() -> None:
    initiator, medium = with_log()
    medium.errors["write_zeroes"] = errno.EIO
    initiator.check(SanitizeBlockErase.build())
    assert initiator.refused(SanitizeBlockErase.build(ause=1)) == (1, 5)
    overwrite = SanitizeOverwrite.build(ause=1, parameter_list_length=5)
    assert initiator.refused(overwrite, bytes.fromhex("01 00 0001 00")) == (1, 5)
    assert initiator.refused(SanitizeExitFailureMode.build()) == (1, 4)
    medium.errors.clear()
    initiator.good(SanitizeBlockErase.build())
    initiator.good(SanitizeBlockErase.build(ause=1))


# ---- all of them ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("cdb", "data"), AT_ONCE)
def test_a_read_only_unit_is_write_protected(cdb: bytes, data: bytes) -> None:
    assert Initiator(make_unit(read_only=True, thin=True)).check(cdb, data).code in (WRITE_PROTECTED, (5, 0x24, 0))


async def _begun(initiator: Initiator, cdb: bytes, data: bytes) -> Response:
    return await initiator.target.execute(initiator.task(cdb, data))


async def _sense(initiator: Initiator) -> ParsedSense:
    response = await _begun(initiator, RequestSense.build(allocation_length=252), b"")
    return parse_sense(response.data_in)


def gated() -> tuple[Initiator, FaultyMedium]:
    medium = FaultyMedium(3 * MIB)
    medium.gate = asyncio.Event()
    return Initiator(make_unit(medium=medium)), medium


@pytest.mark.parametrize(("cdb", "data", "code"), ERASES)
async def test_with_immed_the_work_goes_on_and_its_progress_is_told(
    cdb: bytes, data: bytes, code: tuple[int, int, int]
) -> None:
    initiator, medium = gated()
    assert (await _begun(initiator, cdb, data)).status is Status.GOOD
    assert not initiator.unit.fast_path(initiator.nexus).read
    for other in (Read10.build(transfer_length=1), bytes(6), cdb):
        response = await _begun(initiator, other, data)
        told = parse_sense(response.sense)
        assert (told.code, told.progress) == (code, 0)
    for served in (Inquiry.build(), ReportLuns.build()):
        assert (await _begun(initiator, served, b"")).status is Status.GOOD
    seen = {(await _sense(initiator)).progress}
    assert medium.gate
    medium.gate.set()
    while initiator.unit.operation:
        seen.add((await _sense(initiator)).progress)
        await asyncio.sleep(0)
    assert None not in seen
    assert (await _sense(initiator)).code == (0, 0, 0)
    assert initiator.unit.fast_path(initiator.nexus).write
    assert initiator.data == bytes.fromhex("a55a") * (3 * MIB // 2) or not any(initiator.data)


def test_progress_counts_the_pieces_of_every_pass() -> None:
    seen = []

    class Watched(FaultyMedium):
        async def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
            await super().write(offset, data)
            operation = initiator.unit.operation
            assert operation
            seen.append(parse_sense(operation.sense.encode(descriptor=True)).progress)

    initiator = Initiator(make_unit(medium=Watched(4 * MIB)))
    initiator.good(SanitizeOverwrite.build(parameter_list_length=5), bytes.fromhex("02 00 0001 00"))
    assert seen == [n * 0x10000 // 8 for n in range(8)]


async def test_a_write_that_came_before_ends_first() -> None:
    initiator, medium = gated()
    writing = asyncio.create_task(_begun(initiator, Write10.build(transfer_length=2), b"\1" * 1024))
    await asyncio.sleep(0)
    erasing = asyncio.create_task(_begun(initiator, SanitizeBlockErase.build(), b""))
    for _ in range(3):
        await asyncio.sleep(0)
    assert medium.calls == [("write", 0, 1024)]
    assert medium.gate
    medium.gate.set()
    assert (await writing).status is Status.GOOD
    assert (await erasing).status is Status.GOOD
    assert not any(initiator.data)


async def test_a_sanitize_goes_on_when_its_command_is_aborted() -> None:
    initiator, medium = gated()
    initiator.data[:] = b"\1" * len(initiator.data)
    erasing = asyncio.create_task(_begun(initiator, SanitizeBlockErase.build(), b""))
    for _ in range(3):
        await asyncio.sleep(0)
    erasing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await erasing
    assert (await _sense(initiator)).code == SANITIZING
    assert medium.gate
    medium.gate.set()
    await initiator.unit.settle()
    assert not any(initiator.data)


async def test_a_sanitize_outlives_resets_and_the_nexus_that_began_it() -> None:
    initiator, medium = gated()
    initiator.data[:] = b"\1" * len(initiator.data)
    await _begun(initiator, SanitizeBlockErase.build(immed=1), b"")
    unit = initiator.unit
    for cause in (ResetCause.LOGICAL_UNIT_RESET, ResetCause.HARD_RESET, ResetCause.POWER_ON):
        unit.reset(cause)
        assert (await _sense(initiator)).code[0] == 6
        assert (await _sense(initiator)).code == SANITIZING
    unit.remove_nexus(initiator.nexus)
    initiator.nexus = ITNexus("the next machine")
    unit.add_nexus(initiator.nexus)
    assert (await _sense(initiator)).code == (6, 0x29, 0x01)
    assert parse_sense((await _begun(initiator, Read10.build(transfer_length=1), b"")).sense).code == SANITIZING
    assert not unit.fast_path(initiator.nexus).read
    assert medium.gate
    medium.gate.set()
    ended = asyncio.Event()
    unit.on_change(ended.set)
    await asyncio.wait_for(ended.wait(), 10)
    assert not any(initiator.data)
    assert unit.fast_path(initiator.nexus).write


async def test_settling_gives_a_long_operation_up_which_has_failed_then() -> None:
    initiator, medium = gated()
    cdb = SanitizeOverwrite.build(immed=1, parameter_list_length=5)
    await _begun(initiator, cdb, bytes.fromhex("1f 00 0001 77"))
    await asyncio.sleep(0)
    settling = asyncio.create_task(initiator.unit.settle())
    await asyncio.sleep(0)
    assert medium.gate
    medium.gate.set()
    await settling
    assert medium.calls.count(("flush",)) == 0
    assert parse_sense((await _begun(initiator, bytes(6), b"")).sense).code == SANITIZE_FAILED
