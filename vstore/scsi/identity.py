"""Who a logical unit is: what INQUIRY and the device identification page say, and initiators recognise it by."""

from dataclasses import dataclass
from uuid import NAMESPACE_OID, UUID, uuid5

from vstore import __version__

# Some initiators break on long designators (virtio-win 1622), so the serial number, which is part of one, is short.
SERIAL_LENGTH = 36


def _revision(version: str) -> str:
    """Major and minor number of vstore: PRODUCT REVISION LEVEL has room for four characters."""
    return ".".join(version.split(".")[:2])[:4]


REVISION = _revision(__version__)


@dataclass(frozen=True, slots=True)
class Identity:
    """`serial` is unique among the units that an initiator sees; without `uuid` one is derived from it.

    ValueError for text that is not printable ASCII or does not fit its field.
    """

    serial: str
    uuid: UUID | None = None
    vendor: str = "VSTORE"
    product: str = "DISK"
    revision: str = REVISION

    def __post_init__(self) -> None:
        limits = {"serial": SERIAL_LENGTH, "vendor": 8, "product": 16, "revision": 4}
        for name, limit in limits.items():
            words: str = getattr(self, name)
            if not 1 <= len(words) <= limit or not words.isascii() or not words.isprintable():
                raise ValueError(f"{name} is {words!r}; it must be 1 to {limit} printable ASCII characters")

    @property
    def naa(self) -> int:
        """Locally assigned NAA identifier, 64 bits (SPC-4 7.8.6.6.4): 3h and 60 bits of the UUID."""
        uuid = self.uuid or uuid5(NAMESPACE_OID, f"vstore:{self.serial}")
        return 0x3 << 60 | uuid.int & ((1 << 60) - 1)
