import errno
from pathlib import Path

import pytest

from tests.scsi.disks import with_log
from tests.scsi.initiator import (
    INVALID_FIELD_IN_PARAMETER_LIST,
    MIB,
    PARAMETER_LIST_LENGTH_ERROR,
    SHORT_DATA_OUT,
    Initiator,
    make_unit,
)
from tests.scsi.sg3 import decoded
from vstore.scsi.commands import LogSelect, LogSense, Read10, SendDiagnostic, StartStopUnit, Verify10, Write10
from vstore.scsi.medium import MemoryMedium, Room

PAGES = "00 02 03 05 06 0c 0d 0e 10 11 15 19 2f"
LOG_PARAMETERS_CHANGED = (6, 0x2A, 0x02)
TSD, TSD_LIST = 0x20, 0x23


def sense(initiator: Initiator, page: int, subpage: int = 0, *, pc: int = 1, pointer: int = 0) -> bytes:
    cdb = LogSense.build(
        page_code=page, subpage_code=subpage, pc=pc, parameter_pointer=pointer, allocation_length=0xFFFF
    )
    data = initiator.good(cdb)
    assert data[:2] == bytes([0x80 | (0x40 if subpage else 0) | page, subpage])
    assert int.from_bytes(data[2:4]) == len(data) - 4
    return data[4:]


def parameters(initiator: Initiator, page: int, **more: int) -> dict[int, bytes]:
    """By code: control byte and value."""
    found, data = {}, sense(initiator, page, **more)
    while data:
        end = 4 + data[3]
        found[int.from_bytes(data[:2])] = data[2:3] + data[4:end]
        assert len(data) >= end
        data = data[end:]
    assert list(found) == sorted(found)
    return found


def counters(initiator: Initiator, page: int, **more: int) -> list[int]:
    """The data counters of a page, 0 first."""
    found = parameters(initiator, page, **more)
    assert all(value[0] == TSD and len(value) == 9 for value in found.values())
    return [int.from_bytes(value[1:]) for value in found.values()]


def counter(code: int, value: int, control: int = TSD, length: int = 8) -> bytes:
    return code.to_bytes(2) + bytes([control, length]) + value.to_bytes(length)


def listed(page: int, *each: bytes, subpage: int = 0) -> tuple[bytes, bytes]:
    """A LOG SELECT that sets parameters of one page."""
    body = b"".join(each)
    data = bytes([page, subpage]) + len(body).to_bytes(2) + body
    return LogSelect.build(pc=1, parameter_list_length=len(data)), data


def used() -> Initiator:
    """Two blocks written, three read, four verified."""
    initiator = Initiator()
    initiator.good(Write10.build(transfer_length=2), bytes(1024))
    initiator.good(Read10.build(transfer_length=3))
    initiator.good(Verify10.build(verification_length=4))
    return initiator


# ---- layout --------------------------------------------------------------------------------------------


def test_the_commands_are_laid_out_as_spc_4_prints_them() -> None:
    built = LogSense.build(pc=1, page_code=0x19, subpage_code=2, parameter_pointer=0x0304, allocation_length=0x0506)
    assert built.hex(" ") == "4d 00 59 02 00 03 04 05 06 00"
    built = LogSelect.build(pcr=1, pc=3, page_code=2, subpage_code=5, parameter_list_length=0x0102)
    assert built.hex(" ") == "4c 02 c2 05 00 00 00 01 02 00"


def test_the_supported_pages_are_listed() -> None:
    assert sense(Initiator(), 0).hex(" ") == PAGES
    pairs = " ".join(f"{page} 00" for page in PAGES.split()).replace("00 00", "00 00 00 ff", 1)
    assert sense(Initiator(), 0, 0xFF).hex(" ") == pairs


def test_pages_of_what_a_unit_is_not_are_not_listed() -> None:
    thick = Initiator(make_unit(thin=False, rotation_rate=7200))
    assert sense(thick, 0).hex(" ") == PAGES.replace("0c ", "").replace("11 ", "")
    for page in (0x0C, 0x11):
        assert thick.refused(LogSense.build(page_code=page, allocation_length=4)) == (2, 5)


@pytest.mark.parametrize("page", [int(page, 16) for page in PAGES.split()])
def test_a_page_is_cut_at_the_allocation_length(page: int) -> None:
    initiator = Initiator()
    whole = initiator.good(LogSense.build(pc=1, page_code=page, allocation_length=0xFFFF))
    for length in (0, 1, 3, 4, 5, 8, 9, len(whole) - 1, len(whole)):
        cdb = LogSense.build(pc=1, page_code=page, allocation_length=length)
        assert initiator.good(cdb) == whole[:length]


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"page_code": 0x01}, (2, 5)),
        ({"page_code": 0x3F}, (2, 5)),
        ({"page_code": 0x02, "subpage_code": 1}, (3, 7)),
        ({"page_code": 0x02, "subpage_code": 0xFF}, (3, 7)),
        ({"page_code": 0x00, "parameter_pointer": 1}, (5, 7)),
        ({"page_code": 0x02, "parameter_pointer": 7}, (5, 7)),
        ({"page_code": 0x2F, "parameter_pointer": 1}, (5, 7)),
        ({"page_code": 0x10, "parameter_pointer": 0x15}, (5, 7)),
        ({"page_code": 0x02, "ppc": 1}, (1, 1)),
        ({"page_code": 0x02, "sp": 1}, (1, 0)),
    ],
)
def test_log_sense_refuses_what_is_not_there(fields: dict[str, int], place: tuple[int, int]) -> None:
    assert Initiator().refused(LogSense.build(allocation_length=255, **fields)) == place


def test_parameters_begin_at_the_pointer() -> None:
    assert list(parameters(Initiator(), 0x02, pointer=4)) == [4, 5, 6]
    assert list(parameters(Initiator(), 0x10, pointer=0x14)) == [0x14]
    assert list(parameters(Initiator(), 0x0E, pointer=1)) == [4]


# ---- values --------------------------------------------------------------------------------------------


def test_error_counters_tell_the_bytes_that_were_moved() -> None:
    initiator = used()
    assert counters(initiator, 0x02) == [0, 0, 0, 0, 0, 1024, 0]
    assert counters(initiator, 0x03) == [0, 0, 0, 0, 0, 1536, 0]
    assert counters(initiator, 0x05) == [0, 0, 0, 0, 0, 2048, 0]
    assert counters(initiator, 0x06) == [0]


def test_errors_of_the_medium_are_counted_where_they_belong() -> None:
    initiator, medium = with_log()
    medium.errors |= {"read": errno.EIO, "write": errno.EIO}
    initiator.check(Read10.build(transfer_length=1))
    initiator.check(Verify10.build(verification_length=1))
    initiator.check(Write10.build(transfer_length=1), bytes(512))
    medium.errors = {"flush": errno.EBADF}
    initiator.check("35")
    initiator.check("35 01")  # a refusal is no error
    assert [counters(initiator, page)[6] for page in (2, 3, 5)] == [1, 1, 1]
    assert counters(initiator, 0x06) == [1]
    assert counters(initiator, 0x03)[5] == 0


def test_statistics_tell_commands_and_blocks() -> None:
    found = parameters(used(), 0x19)
    words = [1, 1, 2, 3, 0, 0, 0, 0]
    assert found[1] == bytes([TSD_LIST]) + b"".join(word.to_bytes(8) for word in words)
    assert (found[2], found[3]) == (bytes([TSD_LIST]) + bytes(8),) * 2


def test_start_stop_cycles_are_counted() -> None:
    initiator = Initiator()
    for _ in range(3):
        initiator.good(StartStopUnit.build())
        initiator.good(StartStopUnit.build(start=1))
    assert parameters(initiator, 0x0E) == {4: bytes([TSD_LIST]) + (3).to_bytes(4)}


def test_nobody_knows_a_temperature_and_nothing_is_wrong() -> None:
    initiator = Initiator()
    assert parameters(initiator, 0x0D) == dict.fromkeys((0, 1), bytes([TSD_LIST, 0, 0xFF]))
    assert parameters(initiator, 0x2F) == {0: bytes([TSD_LIST, 0, 0, 0xFF, 0])}
    assert parameters(initiator, 0x11) == {1: bytes([TSD_LIST, 0, 0, 0, 0])}


def test_power_on_time_is_told_in_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    initiator = Initiator()
    monkeypatch.setattr(initiator.unit.statistics, "_since", initiator.unit.statistics._since - 130 * 60)
    assert parameters(initiator, 0x15) == {0: bytes([TSD_LIST]) + (130).to_bytes(4) + bytes(8)}
    initiator.good(SendDiagnostic.build(self_test_code=0b101))
    assert parameters(initiator, 0x10)[1][3:5] == (2).to_bytes(2)


def test_the_space_on_the_host_is_told_in_threshold_sets() -> None:
    medium = MemoryMedium(MIB)
    initiator = Initiator(make_unit(medium=medium))
    assert parameters(initiator, 0x0C) == {}
    medium.room = Room(used=3 * MIB + 5, available=1 << 60)
    found = parameters(initiator, 0x0C)
    assert found[1] == bytes([TSD_LIST]) + b"\xff\xff\xff\xff\x02\0\0\0"
    assert found[2] == bytes([TSD_LIST]) + b"\0\0\0\x03\x01\0\0\0"


def test_thresholds_are_the_largest_values_and_defaults_are_zero() -> None:
    initiator = used()
    for control in (0, 2):
        assert counters(initiator, 0x02, pc=control) == [2**64 - 1] * 7
    assert counters(initiator, 0x02, pc=3) == [0] * 7
    assert parameters(initiator, 0x19, pc=0) == parameters(initiator, 0x19)


# ---- LOG SELECT ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [{"pcr": 1}, {"pcr": 1, "pc": 1}, {"pc": 3}])
def test_all_counters_are_reset_and_go_on_from_zero(how: dict[str, int]) -> None:
    initiator = used()
    other = Initiator(initiator.target)
    initiator.good(LogSelect.build(**how))
    assert [sum(counters(initiator, page)) for page in (2, 3, 5, 6)] == [0] * 4
    assert parameters(initiator, 0x19)[1][1:] == bytes(64)
    initiator.good(Read10.build(transfer_length=1))
    assert counters(initiator, 0x03)[5] == 512
    assert other.check("00").code == LOG_PARAMETERS_CHANGED
    other.good("00")
    initiator.good("00")


def test_one_page_is_reset_alone() -> None:
    initiator = used()
    initiator.good(LogSelect.build(pcr=1, page_code=0x03))
    assert (counters(initiator, 0x03)[5], counters(initiator, 0x02)[5]) == (0, 1024)
    initiator.good(LogSelect.build(pcr=1, page_code=0x0D))


@pytest.mark.parametrize("control", [0, 1, 2])
def test_without_pcr_and_list_only_the_default_values_mean_something(control: int) -> None:
    initiator = used()
    other = Initiator(initiator.target)
    initiator.good(LogSelect.build(pc=control))
    assert counters(initiator, 0x02)[5] == 1024
    other.good("00")


def test_counters_are_set_by_a_list() -> None:
    initiator = used()
    other = Initiator(initiator.target)
    cdb, two = listed(2, counter(5, 10), counter(6, 7))
    initiator.good(LogSelect.build(pc=1, parameter_list_length=len(two) + 4), two + bytes([3, 0, 0, 0]))
    assert counters(initiator, 0x02) == [0, 0, 0, 0, 0, 10, 7]
    initiator.good(Write10.build(transfer_length=1), bytes(512))
    assert counters(initiator, 0x02)[5] == 522
    assert other.check("00").code == LOG_PARAMETERS_CHANGED
    assert initiator.check(cdb, two[:-1]).code == SHORT_DATA_OUT


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"pcr": 1, "pc": 1}, (1, 1)),
        ({"page_code": 2, "pc": 1}, (2, 5)),
        ({"subpage_code": 2, "pc": 1}, (3, 7)),
        *(({"pc": pc}, (2, 7)) for pc in (0, 2, 3)),
        ({"sp": 1, "pc": 1}, (1, 0)),
    ],
)
def test_a_list_says_itself_what_it_is_for(fields: dict[str, int], place: tuple[int, int]) -> None:
    cdb = LogSelect.build(parameter_list_length=16, **fields)
    assert Initiator().refused(cdb, bytes([2, 0, 0, 12]) + counter(5, 1)) == place


@pytest.mark.parametrize(("page", "subpage", "place"), [(1, 0, (2, 5)), (0x3F, 0, (2, 5)), (2, 1, (3, 7))])
def test_a_page_that_is_not_there_cannot_be_reset(page: int, subpage: int, place: tuple[int, int]) -> None:
    assert Initiator().refused(LogSelect.build(pcr=1, page_code=page, subpage_code=subpage)) == place


@pytest.mark.parametrize(
    ("data", "at"),
    [
        (bytes([1, 0, 0, 0]), (0, 5)),
        (bytes([0x42, 0, 0, 0]), (0, 5)),  # SPF without a subpage
        (bytes([0, 0, 0, 0]), (0, 5)),  # a page without parameters
        (bytes([3, 0, 0, 0, 2, 0, 0, 0]), (4, 5)),  # not ascending
        (bytes([2, 0, 0, 12]) + counter(7, 0), (4, 7)),
        (bytes([0x19, 0, 0, 12]) + counter(1, 0), (4, 7)),  # not a counter
        (bytes([2, 0, 0, 12]) + counter(5, 0, control=0x80), (6, 7)),
        (bytes([2, 0, 0, 12]) + counter(5, 0, control=0x03), (6, 1)),
        (bytes([2, 0, 0, 8]) + counter(5, 0, length=4), (7, 7)),
    ],
)
def test_a_fault_in_the_list_is_pointed_at_and_nothing_is_set(data: bytes, at: tuple[int, int]) -> None:
    initiator = used()
    before = bytes([2, 0, 0, 12]) + counter(5, 99) if data[0] == 3 else b""
    told = initiator.check(LogSelect.build(pc=1, parameter_list_length=len(before + data)), before + data)
    assert (told.code, told.in_cdb) == (INVALID_FIELD_IN_PARAMETER_LIST, False)
    assert (told.byte, told.bit) == (at[0] + len(before), at[1])
    assert counters(initiator, 0x02)[5] == 1024


@pytest.mark.parametrize("length", [1, 3, 5, 7, 9, 15])
def test_a_list_that_ends_inside_something_is_a_length_error(length: int) -> None:
    _, data = listed(2, counter(5, 1))
    cdb = LogSelect.build(pc=1, parameter_list_length=length)
    assert Initiator().check(cdb, data).code == PARAMETER_LIST_LENGTH_ERROR


@pytest.mark.parametrize("told", [1, 3, 5, 11])
def test_a_page_that_ends_inside_a_parameter_is_a_length_error(told: int) -> None:
    data = bytes([2, 0, 0, told]) + counter(5, 1)[:told]
    cdb = LogSelect.build(pc=1, parameter_list_length=len(data))
    assert Initiator().check(cdb, data).code == PARAMETER_LIST_LENGTH_ERROR


# ---- an outside oracle ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("page", "lines"),
    [
        (0x00, ["0x02        Write error", "0x19        General Statistics and Performance"]),
        (0x02, ["Total bytes processed = 1024", "Total uncorrected errors = 0"]),
        (0x03, ["Total bytes processed = 1536"]),
        (0x05, ["Total bytes processed = 2048"]),
        (0x06, ["Non-medium error count = 0"]),
        (0x0C, ["Available LBA mapping threshold resource count: 5", "Used LBA mapping threshold resource count: 1"]),
        (0x0D, ["Current temperature = <not available>"]),
        (0x0E, ["Accumulated start-stop cycles = 0"]),
        (0x11, ["Percentage used endurance indicator: 0 %"]),
        (0x15, ["Accumulated power on minutes: 0", "Status: no background scans active"]),
        (0x19, ["number of read commands = 1", "number of logical blocks transmitted = 3"]),
        (0x2F, ["IE asc = 0x0, ascq = 0x0"]),
    ],
)
def test_sg_logs_reads_every_page(page: int, lines: list[str], tmp_path: Path) -> None:
    initiator = used()
    assert isinstance(initiator.unit.medium, MemoryMedium)
    initiator.unit.medium.room = Room(MIB, 5 * MIB)
    printed = decoded_log(initiator, page, tmp_path)
    for line in lines:
        assert line in printed, printed


def decoded_log(initiator: Initiator, page: int, directory: Path) -> str:
    data = initiator.good(LogSense.build(pc=1, page_code=page, allocation_length=0xFFFF))
    return decoded("sg_logs", data, directory, f"--page={page:#x}")
