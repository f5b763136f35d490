import pytest

from tests.scsi.faulty import FaultyMedium
from tests.scsi.initiator import (
    INVALID_FIELD_IN_PARAMETER_LIST,
    MIB,
    PARAMETER_LIST_LENGTH_ERROR,
    SHORT_DATA_OUT,
    Initiator,
    make_unit,
)
from vstore.scsi.commands import ModeSelect6, ModeSelect10, ModeSense6, ModeSense10, Write10
from vstore.scsi.kept_state import MemoryState
from vstore.scsi.logical_unit import ResetCause

RECOVERY = "01 0a 00 00 00 00 00 00 00 00 00 00"
CACHING = "08 12 04 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00"
CONTROL = "0a 0a 02 10 00 00 00 00 00 00 00 00"
CONTROL_EXTENSION = "4a 01 00 1c 06" + " 00" * 27  # TCMOS, SCSIP
DISCONNECT = "02 0e" + " 00" * 14
APPLICATION_TAG = "4a 02 00 24" + " 00" * 12 + " 80" + " 00" * 23  # LAST
POWER_CONDITION = "1a 26" + " 00" * 38
EXCEPTIONS = "1c 0a 08" + " 00" * 9  # DEXCPT
THRESHOLDS = "5c 02 00 1c" + " 00" * 13 + " 01" + " 00" * 6 + " 01 02" + " 00" * 6
NO_CACHING = CACHING.replace("04", "00")
MODE_PARAMETERS_CHANGED = (6, 0x2A, 0x01)
HEADER6, HEADER10 = bytes(4), bytes(8)


def sense6(initiator: Initiator, page: int, pc: int = 0, dbd: int = 1, subpage: int = 0) -> bytes:
    cdb = ModeSense6.build(dbd=dbd, pc=pc, page_code=page, subpage_code=subpage, allocation_length=255)
    return initiator.good(cdb)


def select6(pages: str | bytes, header: bytes = HEADER6) -> tuple[bytes, bytes]:
    data = header + (bytes.fromhex(pages) if isinstance(pages, str) else pages)
    return ModeSelect6.build(pf=1, parameter_list_length=len(data)), data


# ---- MODE SENSE ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("page", "body"), [(1, RECOVERY), (8, CACHING), (0x0A, CONTROL)])
def test_a_page_has_the_bytes_that_are_printed(page: int, body: str) -> None:
    data = sense6(Initiator(), page)
    assert data[4:].hex(" ") == body
    assert data[:4] == bytes([len(data) - 1, 0, 0x10, 0])  # DPOFUA


def test_all_pages_come_in_ascending_order() -> None:
    whole = (RECOVERY, DISCONNECT, CACHING, CONTROL, POWER_CONDITION, EXCEPTIONS)
    assert sense6(Initiator(), 0x3F)[4:].hex(" ") == " ".join(whole)
    with_subpages = (*whole[:4], CONTROL_EXTENSION, APPLICATION_TAG, *whole[4:], THRESHOLDS)
    assert sense6(Initiator(), 0x3F, subpage=0xFF)[4:].hex(" ") == " ".join(with_subpages)
    assert sense6(Initiator(), 0x0A, subpage=1)[4:].hex(" ") == CONTROL_EXTENSION
    assert sense6(Initiator(), 0x0A, subpage=0xFF)[4:].hex(" ") == f"{CONTROL} {CONTROL_EXTENSION} {APPLICATION_TAG}"
    assert sense6(Initiator(), 0x08, subpage=0xFF)[4:].hex(" ") == CACHING


@pytest.mark.parametrize(
    ("page", "changeable"),
    [
        (1, "01 0a" + " 00" * 10),
        (8, "08 12 04" + " 00" * 17),
        (0x0A, "0a 0a 04 00 08" + " 00" * 7),
        (0x02, "02 0e" + " 00" * 14),
        (0x1A, "1a 26" + " 00" * 38),
        (0x1C, "1c 0a" + " 00" * 10),
    ],
)
def test_changeable_values_are_wce_d_sense_and_swp(page: int, changeable: str) -> None:
    assert sense6(Initiator(), page, pc=1)[4:].hex(" ") == changeable


def test_default_values_stay_when_current_ones_change() -> None:
    initiator = Initiator()
    initiator.good(*select6(NO_CACHING))
    assert sense6(initiator, 8)[4:].hex(" ") == NO_CACHING
    assert sense6(initiator, 8, pc=2)[4:].hex(" ") == CACHING


@pytest.mark.parametrize("page", [8, 0x3F])
def test_saved_values_are_refused_as_not_supported(page: int) -> None:
    for row in (ModeSense6, ModeSense10):
        cdb = row.build(pc=3, page_code=page, allocation_length=255)
        assert Initiator().check(cdb).code == (5, 0x39, 0x00)


@pytest.mark.parametrize("row", [ModeSense6, ModeSense10])
@pytest.mark.parametrize(
    ("page", "subpage", "pointer"),
    [(0x1D, 0, (2, 5)), (0x1D, 0xFF, (2, 5)), (0x0A, 3, (3, 7)), (0x3F, 1, (3, 7)), (0, 0, (2, 5))],
)
def test_an_unknown_page_or_subpage_is_refused(
    row: type[ModeSense6], page: int, subpage: int, pointer: tuple[int, int]
) -> None:
    cdb = row.build(page_code=page, subpage_code=subpage, allocation_length=255)
    assert Initiator().refused(cdb) == pointer


def test_the_block_descriptor_tells_blocks_and_their_length() -> None:
    data = sense6(Initiator(), 8, dbd=0)
    assert data[:12].hex(" ") == "1f 00 10 08 00 00 08 00 00 00 02 00"


def test_mode_sense_10_has_a_longer_header() -> None:
    data = Initiator().good(ModeSense10.build(dbd=1, page_code=8, allocation_length=255))
    assert data.hex(" ") == "00 1a 00 10 00 00 00 00 " + CACHING


def test_long_block_descriptors_are_returned_where_they_are_accepted() -> None:
    initiator = Initiator(make_unit(logical_block_length=4096))
    data = initiator.good(ModeSense10.build(llbaa=1, page_code=8, allocation_length=255))
    assert data[:8].hex(" ") == "00 2a 00 10 01 00 00 10"
    assert data[8:24].hex() == "0000000000000100" + "00000000" + "00001000"
    short = initiator.good(ModeSense10.build(page_code=8, allocation_length=255))
    assert short[:16].hex(" ") == "00 22 00 10 00 00 00 08 00 00 01 00 00 00 10 00"
    none = initiator.good(ModeSense10.build(llbaa=1, dbd=1, page_code=8, allocation_length=255))
    assert none[4:8] == bytes(4)


def test_a_read_only_unit_shows_write_protect() -> None:
    assert sense6(Initiator(make_unit(read_only=True)), 8)[2] == 0x90


def test_a_unit_made_without_a_write_cache_has_that_as_its_default() -> None:
    initiator = Initiator(make_unit(write_cache=False))
    assert sense6(initiator, 8)[4:].hex(" ") == NO_CACHING
    assert sense6(initiator, 8, pc=2)[4:].hex(" ") == NO_CACHING


# ---- MODE SELECT ---------------------------------------------------------------------------------------


def test_wce_can_be_changed_and_the_others_are_told() -> None:
    one = Initiator()
    other = Initiator(one.target)
    one.good(*select6(NO_CACHING))
    assert one.unit.write_through
    one.good("00")
    assert other.check("00").code == MODE_PARAMETERS_CHANGED
    other.good("00")


def test_selecting_what_is_so_already_tells_nobody() -> None:
    one = Initiator()
    other = Initiator(one.target)
    one.good(*select6(RECOVERY + CACHING + CONTROL))
    other.good("00")


def test_turning_the_cache_off_makes_what_it_holds_durable() -> None:
    medium = FaultyMedium()
    initiator = Initiator(make_unit(medium=medium))
    initiator.good(Write10.build(transfer_length=1), bytes(512))
    assert medium.flushes == 0
    initiator.good(*select6(NO_CACHING))
    assert medium.flushes == 1
    initiator.good(*select6(CONTROL.replace("02 10", "06 10")))  # there is nothing in it any more
    initiator.good(*select6(CACHING))
    assert medium.flushes == 1


def test_mode_select_10_works_with_each_kind_of_block_descriptor() -> None:
    initiator = Initiator()
    short = HEADER10[:7] + b"\x08" + (MIB // 512).to_bytes(4) + b"\0" + (512).to_bytes(3)
    long = bytes(4) + b"\x01\0\0\x10" + bytes(8) + bytes(4) + (512).to_bytes(4)
    for header, pages in ((HEADER10, NO_CACHING), (short, CACHING), (long, NO_CACHING)):
        data = header + bytes.fromhex(pages)
        initiator.good(ModeSelect10.build(pf=1, parameter_list_length=len(data)), data)
        assert sense6(initiator, 8)[4:].hex(" ") == pages


def test_what_mode_sense_returned_can_be_sent_back() -> None:
    initiator = Initiator()
    six = bytearray(sense6(initiator, 0x3F, dbd=0))
    initiator.good(*select6(bytes(six[4:]), bytes(six[:4])))
    ten = initiator.good(ModeSense10.build(llbaa=1, page_code=0x3F, allocation_length=255))
    initiator.good(ModeSelect10.build(pf=1, parameter_list_length=len(ten)), ten)


@pytest.mark.parametrize("row", [ModeSelect6, ModeSelect10])
def test_an_empty_parameter_list_changes_nothing(row: type[ModeSelect6]) -> None:
    Initiator().good(row.build(pf=1))
    Initiator().good(row.build(pf=0))


@pytest.mark.parametrize(("bit", "pointer"), [(0x11, (1, 0)), (0x12, (1, 1))])
def test_saving_and_reverting_are_refused(bit: int, pointer: tuple[int, int]) -> None:
    for cdb in (bytes([0x15, bit, 0, 0, 0, 0]), bytes([0x55, bit]) + bytes(8)):
        assert Initiator().refused(cdb) == pointer


def test_pages_in_a_vendor_specific_format_are_refused() -> None:
    data = HEADER6 + bytes.fromhex(CACHING)
    assert Initiator().refused(ModeSelect6.build(parameter_list_length=len(data)), data) == (1, 4)
    Initiator().good(ModeSelect6.build(parameter_list_length=4), HEADER6)


@pytest.mark.parametrize("cut", range(1, 3 + 20 + 8))
def test_a_list_that_ends_inside_a_header_descriptor_or_page_is_a_length_error(cut: int) -> None:
    header = bytes([0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 2, 0])
    data = (header + bytes.fromhex(NO_CACHING))[:-cut]
    initiator = Initiator()
    if len(data) == len(header):
        initiator.good(*select6(data[4:], data[:4]))  # ends between them: nothing is cut
        return
    assert initiator.check(*select6(data[4:], data[:4])).code == PARAMETER_LIST_LENGTH_ERROR
    assert not initiator.unit.write_through


def test_a_short_mode_select_10_header_is_a_length_error() -> None:
    for length in range(1, 8):
        cdb = ModeSelect10.build(pf=1, parameter_list_length=length)
        assert Initiator().check(cdb, bytes(length)).code == PARAMETER_LIST_LENGTH_ERROR


def test_a_subpage_header_that_is_cut_is_a_length_error() -> None:
    assert Initiator().check(*select6("4a 01 00")).code == PARAMETER_LIST_LENGTH_ERROR
    assert Initiator().check(*select6("4a")).code == PARAMETER_LIST_LENGTH_ERROR


@pytest.mark.parametrize(
    ("pages", "byte", "bit"),
    [
        (CACHING.replace("08 12 04", "08 12 05"), 6, 0),  # RCD
        (CACHING.replace("08 12 04", "08 12 84"), 6, 7),  # IC
        ("08 12 04" + " 00" * 16 + " 01", 23, 0),  # a byte of no field
        (CONTROL.replace("02 10", "22 10"), 6, 7),  # TST
        (CONTROL.replace("02 10", "02 12"), 7, 2),  # QERR
        (RECOVERY + " " + CONTROL.replace("02 10", "02 00"), 19, 7),  # the second page
        ("08 0a" + " 00" * 10, 5, 7),  # page length
        ("1d 0a" + " 00" * 10, 4, 5),  # unknown page
        ("4a 03 00 1c" + " 00" * 28, 5, 7),  # unknown subpage
        ("1c 0a" + " 00" * 10, 6, 3),  # DEXCPT
        ("1a 26 00 01" + " 00" * 36, 7, 0),  # STANDBY_Z
        ("4a 01 00 1c 04" + " 00" * 27, 8, 1),  # SCSIP
        ("3f 00", 4, 5),
    ],
)
def test_what_cannot_be_changed_is_pointed_at(pages: str, byte: int, bit: int) -> None:
    initiator = Initiator()
    sense = initiator.check(*select6(pages))
    assert (sense.code, sense.in_cdb, sense.byte, sense.bit) == (INVALID_FIELD_IN_PARAMETER_LIST, False, byte, bit)


def test_nothing_is_changed_when_a_later_page_is_refused() -> None:
    initiator = Initiator()
    initiator.check(*select6(NO_CACHING + CONTROL.replace("02 10", "02 00")))
    assert not initiator.unit.write_through


@pytest.mark.parametrize(
    ("header", "byte", "bit"),
    [
        ("00 01 00 00", 1, 7),  # medium type
        ("00 00 00 10" + " 00" * 16, 3, 7),  # block descriptor length
        ("00 00 00 08 00 00 07 ff 00 00 02 00", 4, 7),  # another capacity
        ("00 00 00 08 00 00 00 00 00 00 10 00", 9, 7),  # another block length
        ("00 00 00 08 00 00 00 00 00 00 00 00", 9, 7),  # none at all
    ],
)
def test_a_header_that_asks_for_another_disk_is_pointed_at(header: str, byte: int, bit: int) -> None:
    sense = Initiator().check(*select6(CACHING, bytes.fromhex(header)))
    assert (sense.code, sense.in_cdb, sense.byte, sense.bit) == (INVALID_FIELD_IN_PARAMETER_LIST, False, byte, bit)


@pytest.mark.parametrize(
    ("header", "byte"),
    [
        ("00 00 07 00 00 00 00 00", 2),
        ("00 00 00 00 01 00 00 08" + " 00" * 8, 6),  # a short descriptor under LONGLBA
        ("00 00 00 00 00 00 00 10" + " 00" * 16, 6),
        ("00 00 00 00 01 00 00 10" + " 00" * 7 + " 01" + " 00" * 8, 8),
        ("00 00 00 00 01 00 00 10" + " 00" * 16, 20),
    ],
)
def test_a_mode_select_10_header_that_asks_for_another_disk_is_pointed_at(header: str, byte: int) -> None:
    data = bytes.fromhex(header)
    sense = Initiator().check(ModeSelect10.build(pf=1, parameter_list_length=len(data)), data)
    assert (sense.code, sense.byte, sense.bit) == (INVALID_FIELD_IN_PARAMETER_LIST, byte, 7)


@pytest.mark.parametrize("blocks", ["00 00 08 00", "ff ff ff ff", "00 00 00 00"])
def test_the_number_of_blocks_may_be_told_or_left_open(blocks: str) -> None:
    Initiator().good(*select6(CACHING, bytes.fromhex("00 00 00 08" + blocks + "00 00 02 00")))


def test_data_out_shorter_than_the_parameter_list_is_refused() -> None:
    cdb, data = select6(NO_CACHING)
    initiator = Initiator()
    assert initiator.check(cdb, data[:-1]).code == SHORT_DATA_OUT
    assert not initiator.unit.write_through


def test_a_reset_brings_the_default_values_back() -> None:
    initiator = Initiator()
    initiator.good(*select6(NO_CACHING))
    initiator.unit.reset(ResetCause.LOGICAL_UNIT_RESET)
    assert not initiator.unit.write_through


# ---- saved values --------------------------------------------------------------------------------------


def keeping(state: MemoryState) -> Initiator:
    return Initiator(make_unit(state=state))


def saving(pages: str, row: type[ModeSelect6] | type[ModeSelect10] = ModeSelect6) -> tuple[bytes, bytes]:
    data = (HEADER6 if row is ModeSelect6 else HEADER10) + bytes.fromhex(pages)
    return row.build(pf=1, sp=1, parameter_list_length=len(data)), data


@pytest.mark.parametrize("row", [ModeSelect6, ModeSelect10])
def test_what_was_saved_outlives_a_reset_and_a_restart(row: type[ModeSelect6] | type[ModeSelect10]) -> None:
    state = MemoryState()
    initiator = keeping(state)
    initiator.good(*saving(NO_CACHING, row))
    initiator.good(*select6(CACHING))
    assert sense6(initiator, 8, pc=3)[6] == 0
    initiator.unit.reset(ResetCause.LOGICAL_UNIT_RESET)
    initiator.check("00")
    assert sense6(initiator, 8)[6] == 0
    again = keeping(state)
    assert [sense6(again, 8, pc=pc)[6] for pc in (0, 2, 3)] == [0, 4, 0]


def test_only_pages_with_something_to_save_say_so() -> None:
    initiator = keeping(MemoryState())
    assert [sense6(initiator, page)[4] >> 7 for page in (0x01, 0x08, 0x0A, 0x1A, 0x1C)] == [0, 1, 1, 0, 0]
    assert sense6(Initiator(), 8)[4] >> 7 == 0
    assert sense6(initiator, 0x3F, pc=3)[4:] == sense6(initiator, 0x3F)[4:]


def test_saving_without_a_page_saves_what_is_current() -> None:
    state = MemoryState()
    initiator = keeping(state)
    initiator.good(*select6(NO_CACHING))
    initiator.good(*saving(""))
    assert sense6(keeping(state), 8)[6] == 0


def test_a_unit_with_nowhere_to_save_to_refuses_to() -> None:
    initiator = Initiator()
    for row in (ModeSelect6, ModeSelect10):
        assert initiator.refused(*saving(NO_CACHING, row)) == (1, 0)
    assert sense6(initiator, 8)[6] == 4


def test_what_was_saved_of_a_page_that_is_another_today_is_left_alone() -> None:
    state = MemoryState()
    keeping(state).good(*saving(NO_CACHING))
    state.sections["modes"] = state.sections["modes"].replace(b'"08/00": "00', b'"08/00": "ff')
    assert sense6(keeping(state), 8)[6] == 4  # WCE, the only bit of it that can change
    state.sections["modes"] = b'{"08/00": "00"}'
    assert sense6(keeping(state), 8)[6] == 4


@pytest.mark.parametrize("kept", [b"", b"[]", b"{", b'{"08/00": 7}', b'{"08/00": "xy"}'])
def test_saved_values_that_cannot_be_read_are_the_default_ones(kept: bytes, caplog: pytest.LogCaptureFixture) -> None:
    state = MemoryState()
    state.sections["modes"] = kept
    assert sense6(keeping(state), 8)[4:].hex(" ") == CACHING.replace("08", "88", 1)
    assert "cannot be read any more" in caplog.text
