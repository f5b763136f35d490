"""Mode pages that say that nothing is so: the bytes that sdparm and Linux take them by."""

from tests.scsi.initiator import Initiator
from vstore.scsi.commands import ModeSense6, ModeSense10

HINTS = "4a 05 04 0c" + " 00" * 12 + (" 40" + " 00" * 15) * 64  # no group has any


def test_a_page_too_long_for_mode_sense_6_comes_by_mode_sense_10() -> None:
    initiator = Initiator()
    assert initiator.refused(ModeSense6.build(page_code=0x0A, subpage_code=5, allocation_length=255)) == (3, 7)
    data = initiator.good(ModeSense10.build(dbd=1, page_code=0x0A, subpage_code=5, allocation_length=2048))
    assert data[8:].hex(" ") == HINTS
    whole = initiator.good(ModeSense10.build(dbd=1, page_code=0x3F, subpage_code=0xFF, allocation_length=2048))
    assert HINTS in whole.hex(" ")
    assert int.from_bytes(whole[:2]) == len(whole) - 2
