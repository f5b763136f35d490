import subprocess

import pytest
from pyscsi.pyscsi.scsi_sense import sense_ascq_dict, sense_key_dict

from vstore.fuzz.sense_data import parse_sense
from vstore.scsi.field import Position
from vstore.scsi.sense import (
    NO_SENSE,
    AdditionalSense,
    CheckCondition,
    Forwarded,
    Sense,
    SenseDataSource,
    SenseKey,
)
from vstore.scsi.task import Status


def _letters(words: str) -> str:
    return "".join(letter for letter in words.upper() if letter.isalnum())


@pytest.mark.parametrize("code", [code for code in AdditionalSense if code.value])
def test_every_additional_sense_code_bears_the_name_that_pyscsi_knows(code: AdditionalSense) -> None:
    assert _letters(sense_ascq_dict[code.value]) == _letters(code.name)


@pytest.mark.parametrize("key", SenseKey)
def test_every_sense_key_bears_the_name_that_pyscsi_knows(key: SenseKey) -> None:
    assert _letters(sense_key_dict[key]) == _letters(key.name)


@pytest.mark.parametrize("descriptor", [False, True])
def test_a_field_pointer_is_told_in_both_formats(descriptor: bool) -> None:
    sense = Sense.invalid_field(Position(14, 4), in_cdb=True).encode(descriptor=descriptor)
    parsed = parse_sense(sense)
    assert parsed.descriptor is descriptor
    assert (parsed.code, parsed.in_cdb, parsed.byte, parsed.bit) == ((5, 0x24, 0), True, 14, 4)


@pytest.mark.parametrize("descriptor", [False, True])
def test_a_field_of_the_parameter_list_is_another_code_and_not_in_the_cdb(descriptor: bool) -> None:
    parsed = parse_sense(Sense.invalid_field(Position(300, 7), in_cdb=False).encode(descriptor=descriptor))
    assert (parsed.code, parsed.in_cdb, parsed.byte, parsed.bit) == ((5, 0x26, 0), False, 300, 7)


@pytest.mark.parametrize(
    ("descriptor", "information", "told"),
    [
        (False, 0, 0),
        (False, 0xFFFFFFFF, 0xFFFFFFFF),
        (False, 1 << 32, None),  # four bytes cannot hold it: VALID is zero
        (True, 1 << 40, 1 << 40),
        (False, None, None),
        (True, None, None),
    ],
)
def test_information_is_valid_only_where_it_fits(descriptor: bool, information: int | None, told: int | None) -> None:
    sense = Sense.illegal(AdditionalSense.LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE, information)
    assert parse_sense(sense.encode(descriptor=descriptor)).information == told


@pytest.mark.parametrize(("descriptor", "response_code"), [(False, 0x71), (True, 0x73)])
def test_a_deferred_error_has_its_own_response_code(descriptor: bool, response_code: int) -> None:
    sense = Sense(SenseKey.MEDIUM_ERROR, AdditionalSense.WRITE_ERROR).as_deferred().encode(descriptor=descriptor)
    assert sense[0] & 0x7F == response_code
    assert parse_sense(sense).deferred


def test_fixed_sense_data_is_byte_for_byte_as_printed() -> None:
    sense = Sense(SenseKey.MISCOMPARE, AdditionalSense.MISCOMPARE_DURING_VERIFY_OPERATION, information=0x1234)
    assert sense.encode(descriptor=False).hex(" ") == "f0 00 0e 00 00 12 34 0a 00 00 00 00 1d 00 00 00 00 00"


def test_descriptor_sense_data_is_byte_for_byte_as_printed() -> None:
    sense = Sense(SenseKey.MISCOMPARE, AdditionalSense.MISCOMPARE_DURING_VERIFY_OPERATION, information=0x1234)
    assert sense.encode(descriptor=True).hex(" ") == ("72 0e 1d 00 00 00 00 0c 00 0a 80 00 00 00 00 00 00 00 12 34")


def _decoded(sense: bytes) -> str:
    return subprocess.run(
        ["sg_decode_sense", *(f"{byte:02x}" for byte in sense)], capture_output=True, text=True, check=True
    ).stdout


@pytest.mark.parametrize("descriptor", [False, True])
def test_sg_decode_sense_reads_the_same(descriptor: bool) -> None:
    told = _decoded(Sense.invalid_field(Position(6, 3), in_cdb=True).encode(descriptor=descriptor))
    assert "Invalid field in cdb" in told
    assert "Error in Command: byte 6 bit 3" in told
    range_error = Sense.illegal(AdditionalSense.LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE, 0xABCDE)
    told = _decoded(range_error.encode(descriptor=descriptor))
    assert "Logical block address out of range" in told
    assert "abcde" in told.lower()


@pytest.mark.parametrize("descriptor", [False, True])
def test_sg_decode_sense_finds_what_a_unit_of_a_copy_answered(descriptor: bool) -> None:
    answered = Sense(SenseKey.MEDIUM_ERROR, AdditionalSense.WRITE_ERROR).encode(descriptor=False)
    forwarded = Forwarded(SenseDataSource.COPY_DESTINATION, Status.CHECK_CONDITION, answered)
    sense = Sense(SenseKey.COPY_ABORTED, AdditionalSense.THIRD_PARTY_DEVICE_FAILURE, segment=3, forwarded=forwarded)
    told = _decoded(sense.encode(descriptor=descriptor))
    assert "Copy Aborted" in told
    if descriptor:  # in fixed format it does not look for an answer
        assert "Extended copy command destination device" in told
        assert "Forwarded status: Check Condition" in told
        assert "Write error" in told


def test_no_sense_is_all_zero_but_for_the_frame() -> None:
    assert NO_SENSE.encode(descriptor=False).hex() == "70000000000000" + "0a" + "00" * 10
    assert NO_SENSE.encode(descriptor=True).hex() == "7200000000000000"


def test_check_condition_says_what_it_carries() -> None:
    assert str(CheckCondition(NO_SENSE)) == "NO_SENSE NO_ADDITIONAL_SENSE_INFORMATION"


def test_the_segment_of_a_copy_is_the_third_and_fourth_byte_of_the_command_specific_information() -> None:
    sense = Sense(SenseKey.COPY_ABORTED, AdditionalSense.THIRD_PARTY_DEVICE_FAILURE, segment=0x0102)
    assert sense.encode(descriptor=False)[8:12].hex() == "00000102"
    descriptor = sense.encode(descriptor=True)
    assert descriptor[7:].hex(" ") == "0c 01 0a 00 00 00 00 01 02 00 00 00 00"
    for data in (sense.encode(descriptor=False), descriptor):
        assert parse_sense(data).segment == 0x0102
