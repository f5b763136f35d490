"""How an I_T nexus is named for good: TransportIDs (SPC-4 7.6.4.6) and relative target port identifiers.

No standard gives a TransportID to virtual machines. An initiator device name in the format of iSCSI is used, because it
is text: READ FULL STATUS then tells which virtual machine has registered.

    target web  -->  initiator port iqn.2024-08.internal.vstore:web        .internal is nobody's: for private use
                     05 00 00 24  69 71 6e 2e ... 77 65 62 00 00           TPID FORMAT 00b, name, zeros to 4 bytes
"""

import re
from typing import NamedTuple, Self
from uuid import NAMESPACE_OID, uuid5

from vstore.scsi.field import EVALUATED, Layout, bits, u16

_AUTHORITY = "iqn.2024-08.internal.vstore"
_PLAIN = re.compile(r"[a-z0-9][a-z0-9.-]{0,62}")
_ISCSI_NAME = re.compile(r"(iqn\.|eui\.|naa\.)[a-z0-9.:-]+")  # RFC 3722: what is left after its mapping
_ISCSI = 0x5
LONGEST_NAME = 223  # bytes (RFC 7143 4.2.7.1)
_SHORTEST = 20  # ADDITIONAL LENGTH


class TransportIdHeader(Layout, length=4):
    """SPC-4 7.6.4.6, iSCSI; the name follows."""

    tpid_format = bits(0, 7, 6)
    protocol_identifier = bits(0, 3, 0)
    additional_length = u16(2)


class NexusName(NamedTuple):
    """An I_T nexus, whether it is there now or not: initiator port and relative target port identifier."""

    initiator: str
    port: int

    @classmethod
    def of_machine(cls, name: str, port: int) -> Self:
        """The nexus of the virtual machine that a target of this name serves. No two names give the same."""
        if _PLAIN.fullmatch(name):
            return cls(f"{_AUTHORITY}:{name}", port)
        return cls(f"{_AUTHORITY}.id:{uuid5(NAMESPACE_OID, name).hex}", port)


def encode_transport_id(initiator: str) -> bytes:
    """A name that `parse_transport_id` gave, or of a NexusName."""
    name = initiator.encode("ascii") + b"\0"
    name = name.ljust(max(_SHORTEST, -(-len(name) // 4) * 4), b"\0")
    return TransportIdHeader.of(protocol_identifier=_ISCSI, additional_length=len(name)).encode() + name


def parse_transport_id(data: bytes) -> tuple[str, int] | None:
    """Initiator and length in bytes of the TransportID at the start of `data`; None when that is none, or cut off.

    TPID FORMAT 01b, a name with a session identifier, is none: there are no sessions here.
    """
    if len(data) < TransportIdHeader.length:
        return None
    header = TransportIdHeader.parse(data)
    end = TransportIdHeader.length + header.additional_length
    reserved = header.value & ~TransportIdHeader.mask_of(EVALUATED)
    if reserved or header.tpid_format or header.protocol_identifier != _ISCSI:
        return None
    if header.additional_length < _SHORTEST or header.additional_length % 4 or end > len(data):
        return None
    name, _, padding = data[TransportIdHeader.length : end].partition(b"\0")
    initiator = name.decode("latin-1").lower()  # these names are compared without regard to case
    if any(padding) or len(name) == header.additional_length or len(name) > LONGEST_NAME:
        return None
    return (initiator, end) if _ISCSI_NAME.fullmatch(initiator) else None
