"""The structures of virtio-scsi as the driver writes and reads them, against offsets printed in the specification."""

import pytest

from vstore.client.virtio_scsi import (
    COMMAND_BYTES,
    EVENT_BYTES,
    RESPONSE_BYTES,
    TASK_MANAGEMENT_BYTES,
    Event,
    LunFormat,
    ResponseHeader,
    encode_command,
    encode_lun,
    encode_task_management,
)


def test_structures_have_the_sizes_of_the_default_cdb_and_sense() -> None:
    assert (COMMAND_BYTES, RESPONSE_BYTES, TASK_MANAGEMENT_BYTES, EVENT_BYTES) == (51, 108, 24, 16)


@pytest.mark.parametrize(
    ("target", "lun", "lun_format", "address"),
    [
        (0, 0, LunFormat.FLAT, "0100400000000000"),
        (7, 0x1234, LunFormat.FLAT, "0107523400000000"),
        (255, 16383, LunFormat.FLAT, "01ff7fff00000000"),
        (3, 200, LunFormat.PERIPHERAL, "010300c800000000"),
    ],
)
def test_both_lun_formats_put_target_and_lun_where_drivers_do(
    target: int, lun: int, lun_format: LunFormat, address: str
) -> None:
    assert encode_lun(target, lun, lun_format).hex() == address


@pytest.mark.parametrize(
    ("target", "lun", "lun_format", "limit"),
    [
        (256, 0, LunFormat.FLAT, "LUNs 0..16383"),
        (0, 16384, LunFormat.FLAT, "LUNs 0..16383"),
        (0, 256, LunFormat.PERIPHERAL, "LUNs 0..255"),
        (-1, 0, LunFormat.PERIPHERAL, "targets 0..255"),
    ],
)
def test_an_address_that_the_format_cannot_say_is_refused_with_its_limits(
    target: int, lun: int, lun_format: LunFormat, limit: str
) -> None:
    with pytest.raises(ValueError, match=limit):
        encode_lun(target, lun, lun_format)


def test_a_command_header_pads_its_cdb() -> None:
    header = encode_command(bytes(range(8)), 0x1122334455667788, 2, b"\x12\x01")
    assert header.hex() == "0001020304050607" + "8877665544332211" + "020000" + "1201" + "00" * 30


def test_a_task_management_header_names_function_lun_and_tag() -> None:
    assert (
        encode_task_management(5, bytes(range(8)), 9).hex()
        == "00000000" + "05000000" + "0001020304050607" + "0900000000000000"
    )


def test_a_response_is_taken_apart_and_its_sense_cut() -> None:
    data = bytes.fromhex("12000000 00020000 0300 02 00") + bytes(range(96))
    header = ResponseHeader.decode(data)
    assert header == ResponseHeader(0x200, 3, 2, 0, bytes(range(18)), 18)


def test_an_event_says_apart_that_others_were_missed() -> None:
    event = Event.decode(bytes.fromhex("03000080 0100400000000000 2a090000"))
    assert event == Event(kind=3, lun=encode_lun(0, 0), reason=0x092A, missed=True)
