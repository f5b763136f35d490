from typing import Any

import pytest

from tests.scsi.initiator import INVALID_FIELD_IN_PARAMETER_LIST, SHORT_DATA_OUT, Initiator, make_unit
from vstore.scsi.commands import ReportIdentifyingInformation, ReportSupportedOperationCodes, SetIdentifyingInformation
from vstore.scsi.kept_state import MemoryState

PERIPHERAL, TEXT, SUPPORTED = 0, 2, 0x7F
DEVICE_IDENTIFIER_CHANGED = (6, 0x3F, 0x05)


def keeping(state: MemoryState | None = None) -> Initiator:
    return Initiator(make_unit(state=state or MemoryState()))


def told(initiator: Initiator, kind: int) -> bytes:
    data = initiator.good(ReportIdentifyingInformation.build(identifying_information_type=kind, allocation_length=4096))
    assert data[:2] == b"\0\0"
    assert int.from_bytes(data[2:4]) == len(data) - 4
    return data[4:]


def named(kind: int, information: bytes, **more: Any) -> tuple[bytes, bytes]:
    length = more.get("length", len(information))
    return SetIdentifyingInformation.build(identifying_information_type=kind, parameter_list_length=length), information


def test_the_commands_are_laid_out_as_spc_4_prints_them() -> None:
    built = ReportIdentifyingInformation.build(identifying_information_type=0x7F, allocation_length=0x01020304)
    assert built.hex(" ") == "a3 05 00 00 00 00 01 02 03 04 fe 00"
    built = SetIdentifyingInformation.build(identifying_information_type=2, parameter_list_length=0x01020304)
    assert built.hex(" ") == "a4 06 00 00 00 00 01 02 03 04 04 00"


def test_the_supported_types_are_told_with_their_lengths() -> None:
    assert told(keeping(), SUPPORTED).hex(" ") == "00 00 00 40 04 00 01 00"


def test_a_unit_has_no_name_until_it_gets_one() -> None:
    initiator = keeping()
    assert (told(initiator, PERIPHERAL), told(initiator, TEXT)) == (b"", b"")


def test_names_are_kept_over_a_restart_and_the_others_are_told() -> None:
    state = MemoryState()
    one = keeping(state)
    other = Initiator(one.target)
    one.good(*named(PERIPHERAL, bytes(range(64))))
    one.good(*named(TEXT, "Zoë\0".encode()))
    assert other.check("00").code == DEVICE_IDENTIFIER_CHANGED
    other.good("00")
    one.good("00")
    again = keeping(state)
    assert told(again, PERIPHERAL) == bytes(range(64))
    assert told(again, TEXT) == "Zoë\0".encode()


@pytest.mark.parametrize("kind", [PERIPHERAL, TEXT])
def test_a_name_of_no_bytes_is_none(kind: int) -> None:
    initiator = keeping()
    initiator.good(*named(kind, b"x\0"))
    initiator.good(*named(kind, b""))
    assert told(initiator, kind) == b""


@pytest.mark.parametrize(("kind", "longest"), [(PERIPHERAL, 64), (TEXT, 256)])
def test_a_name_has_its_longest_length(kind: int, longest: int) -> None:
    initiator = keeping()
    initiator.good(*named(kind, b"x" * (longest - 1) + b"\0"))
    assert initiator.refused(*named(kind, b"x" * longest + b"\0")) == (6, 7)
    assert len(told(initiator, kind)) == longest
    assert initiator.check(*named(kind, b"x" * (longest - 1), length=longest)).code == SHORT_DATA_OUT


@pytest.mark.parametrize("length", range(10))
def test_what_is_told_is_cut_at_the_allocation_length(length: int) -> None:
    initiator = keeping()
    initiator.good(*named(PERIPHERAL, b"abcd"))
    cdb = ReportIdentifyingInformation.build(allocation_length=length)
    assert initiator.good(cdb) == b"\0\0\0\4abcd"[:length]


@pytest.mark.parametrize(("text", "byte"), [(b"x", 0), (b"a\0b\0", 1), (b"\xff\0", 0), (b"ab\xc3\0", 2)])
def test_text_is_utf_8_and_ends_with_its_only_null(text: bytes, byte: int) -> None:
    sense = keeping().check(*named(TEXT, text))
    assert (sense.code, sense.byte) == (INVALID_FIELD_IN_PARAMETER_LIST, byte)


@pytest.mark.parametrize("kind", [1, 3, 0x7E])
def test_other_types_are_refused(kind: int) -> None:
    initiator = keeping()
    assert initiator.refused(ReportIdentifyingInformation.build(identifying_information_type=kind)) == (10, 7)
    assert initiator.refused(*named(kind, b"x")) == (10, 7)
    assert initiator.refused(*named(SUPPORTED, b"x")) == (10, 7)


def test_a_unit_with_nowhere_to_keep_it_cannot_be_named() -> None:
    initiator = Initiator()
    initiator.refused(*named(PERIPHERAL, b"x"))
    assert told(initiator, PERIPHERAL) == b""
    asked = ReportSupportedOperationCodes.build(
        reporting_options=3, requested_operation_code=0xA4, requested_service_action=6, allocation_length=64
    )
    assert initiator.good(asked)[1] & 7 == 1
    assert keeping().good(asked)[1] & 7 == 3
