"""Logical unit numbers: the eight bytes of a virtio-scsi request, and those that REPORT LUNS returns (SAM-5 4.7)."""

from functools import lru_cache
from typing import NamedTuple

MAXIMUM_LUN = 0x3FFF
WELL_KNOWN_REPORT_LUNS = 0xC101  # extended logical unit addressing, well known (SAM-5 4.7.7.5)

_WELL_KNOWN = bytes.fromhex("c101000000000000")
_PERIPHERAL, _FLAT = 0, 1


class InvalidLun(ValueError):  # noqa: N818
    """Eight bytes that address nothing that vstore could have."""


class LunAddress(NamedTuple):
    target: int
    lun: int


@lru_cache(1024)
def parse_lun(address: bytes) -> LunAddress:
    """Of `01h, target, two bytes of single-level LUN, four zero bytes` (virtio 1.2 5.6.6.1), or of the REPORT LUNS well
    known logical unit, which stands in place of all of it and is taken as target 0's. InvalidLun for anything else."""
    if len(address) != 8:
        raise InvalidLun(f"a LUN has 8 bytes, not {len(address)}")
    if address == _WELL_KNOWN:
        return LunAddress(0, WELL_KNOWN_REPORT_LUNS)
    if address[0] != 1 or any(address[4:]):
        raise InvalidLun(f"LUN {address.hex()} is not 01h, a target, a single-level LUN and four zero bytes")
    return LunAddress(address[1], parse_single_level(address[2:4]))


def parse_single_level(address: bytes) -> int:
    """Peripheral device addressing on bus 0, flat space addressing, or the REPORT LUNS well known logical unit."""
    method, number = address[0] >> 6, int.from_bytes(address) & MAXIMUM_LUN
    if method == _FLAT or (method == _PERIPHERAL and number <= 0xFF):
        return number
    if int.from_bytes(address) == WELL_KNOWN_REPORT_LUNS:
        return WELL_KNOWN_REPORT_LUNS
    raise InvalidLun(f"LUN {address.hex()} is in neither peripheral (bus 0) nor flat space addressing")


def encode_lun(lun: int) -> bytes:
    """As REPORT LUNS returns it: peripheral device addressing up to 255, flat space addressing above (SAM-5 4.7.3)."""
    if lun == WELL_KNOWN_REPORT_LUNS:
        return _WELL_KNOWN
    assert 0 <= lun <= MAXIMUM_LUN
    method = _PERIPHERAL if lun <= 0xFF else _FLAT
    return (method << 14 | lun).to_bytes(2) + bytes(6)
