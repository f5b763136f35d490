"""SANITIZE (CRYPTOGRAPHIC ERASE): only where there is a key to be lost, and all is lost with it."""

import errno

from tests.scsi.faulty import FaultyMedium
from tests.scsi.initiator import MIB, Initiator, make_unit
from vstore.scsi.commands import Read10, SanitizeCryptographicErase

SANITIZE_FAILED = (3, 0x31, 0x03)


def test_it_is_laid_out_as_sbc_3_prints_it() -> None:
    assert SanitizeCryptographicErase.build(immed=1, ause=1).hex() == "48a30000000000000000"


def encrypted(**settings: bool) -> tuple[Initiator, FaultyMedium]:
    medium = FaultyMedium(replaces_key=True)
    medium.data[:] = b"secret.." * (MIB // 8)
    return Initiator(make_unit(medium=medium, **settings)), medium


def test_cryptographic_erase_replaces_the_key_and_deallocates_every_block_of_a_thin_unit() -> None:
    initiator, medium = encrypted()
    initiator.good(SanitizeCryptographicErase.build())
    assert medium.calls == [("replace_key",), ("write_zeroes", 0, MIB, True), ("flush",)]
    assert not any(initiator.data)


def test_cryptographic_erase_leaves_noise_where_nothing_is_deallocated() -> None:
    initiator, medium = encrypted(thin=False)
    initiator.good(SanitizeCryptographicErase.build())
    assert medium.calls == [("replace_key",), ("flush",)]
    assert b"secret" not in initiator.data


def told_of_cryptographic_erase(initiator: Initiator) -> tuple[int, int]:
    """SUPPORT of REPORT SUPPORTED OPERATION CODES, and WACEREQ of the page B1h."""
    supported = initiator.good("a3 0c 02 48 0003 00001000 00 00")[1] & 7
    return supported, initiator.good("12 01 b1 0040 00")[7] >> 4 & 3


def test_cryptographic_erase_is_there_and_told_only_where_a_key_can_be_replaced() -> None:
    assert told_of_cryptographic_erase(encrypted()[0]) == (3, 1)
    for other in (Initiator(), encrypted(read_only=True)[0]):
        assert told_of_cryptographic_erase(other) == (1, 0)
        assert other.refused(SanitizeCryptographicErase.build()) == (1, 4)


def test_a_key_that_cannot_be_replaced_is_a_failed_sanitize() -> None:
    initiator, medium = encrypted()
    medium.errors["replace_key"] = errno.EIO
    assert initiator.check(SanitizeCryptographicErase.build()).code == SANITIZE_FAILED
    assert initiator.check(Read10.build(transfer_length=1)).code == SANITIZE_FAILED
    medium.errors.clear()
    initiator.good(SanitizeCryptographicErase.build())
    initiator.good(Read10.build(transfer_length=1))
