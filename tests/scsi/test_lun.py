import subprocess

import pytest

from vstore.scsi.lun import WELL_KNOWN_REPORT_LUNS, InvalidLun, LunAddress, encode_lun, parse_lun


@pytest.mark.parametrize(
    ("address", "target", "lun"),
    [
        ("0100 0000 00000000", 0, 0),
        ("0103 0005 00000000", 3, 5),  # peripheral device addressing, as Windows sends it
        ("01ff 00ff 00000000", 255, 255),
        ("0103 4005 00000000", 3, 5),  # flat space addressing, as Linux sends it
        ("0100 4100 00000000", 0, 256),
        ("0100 7fff 00000000", 0, 16383),
        ("0105 c101 00000000", 5, WELL_KNOWN_REPORT_LUNS),
        ("c101 0000 00000000", 0, WELL_KNOWN_REPORT_LUNS),
    ],
)
def test_an_address_names_a_target_and_a_lun(address: str, target: int, lun: int) -> None:
    assert parse_lun(bytes.fromhex(address)) == LunAddress(target, lun)


@pytest.mark.parametrize(
    "address",
    [
        "0000 0000 00000000",  # not virtio-scsi's
        "0200 0000 00000000",
        "0100 0100 00000000",  # peripheral device addressing on bus 1
        "0100 8000 00000000",  # logical unit addressing
        "0100 c102 00000000",  # another well known logical unit
        "0100 0000 00000001",  # a second level
        "c101 0001 00000000",
        "0100 0000 000000",
        "0100 0000 0000000000",
        "",
    ],
)
def test_an_address_that_names_nothing_is_refused(address: str) -> None:
    with pytest.raises(InvalidLun):
        parse_lun(bytes.fromhex(address))


@pytest.mark.parametrize("lun", [0, 1, 255, 256, 257, 16383, WELL_KNOWN_REPORT_LUNS])
def test_what_report_luns_returns_can_be_addressed(lun: int) -> None:
    encoded = encode_lun(lun)
    assert len(encoded) == 8
    assert parse_lun(b"\x01\x09" + encoded[:2] + bytes(4)) == LunAddress(9, lun)


@pytest.mark.parametrize(
    ("lun", "words"),
    [
        (5, "Peripheral device addressing: lun=5"),
        (300, "Flat space addressing: lun=300"),
        (WELL_KNOWN_REPORT_LUNS, "REPORT LUNS well known logical unit"),
    ],
)
def test_sg_luns_reads_the_same(lun: int, words: str) -> None:
    told = subprocess.run(["sg_luns", f"--test={encode_lun(lun).hex()}"], capture_output=True, text=True, check=True)
    assert words in told.stdout
