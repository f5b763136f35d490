"""Names, labels and LUN addresses as management takes them: checked once here, trusted everywhere below."""

import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

from vstore.scsi.identity import SERIAL_LENGTH
from vstore.sizes import LARGEST, SECTOR
from vstore.store.errors import InvalidArgument

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_LABEL_KEY = re.compile(r"[a-z0-9][a-z0-9._/-]{0,62}")
_LABEL_VALUE = re.compile(r"[^\x00-\x1f\x7f\ud800-\udfff]{0,255}")  # a lone surrogate is no text
_LUN_ADDRESS = re.compile(r"(?:(\d{1,3}):)?(\d{1,5})", re.ASCII)
_SERIAL = re.compile(rf"[!-~]{{1,{SERIAL_LENGTH}}}", re.ASCII)

MAX_LABELS = 64
MAX_SCSI_TARGET = 255  # virtio 1.3 5.6.4: max_target, one byte of the LUN field
MAX_LUN = 16383  # SAM-6 4.7.7.5: flat space addressing has 14 bits


def check_name(field: str, name: str) -> str:
    """A name that is also a safe file name. Raises InvalidArgument."""
    if not NAME.fullmatch(name):
        raise InvalidArgument(
            field, f"{name[:80]!r} is not a name", "use 1 to 63 of a-z 0-9 . _ -, beginning with a letter or digit"
        )
    return name


def check_labels(labels: Mapping[str, str]) -> dict[str, str]:
    """Labels by key. Raises InvalidArgument."""
    if len(labels) > MAX_LABELS:
        raise InvalidArgument("labels", f"{len(labels)} labels are too many", f"at most {MAX_LABELS}")
    for key, value in labels.items():
        if not _LABEL_KEY.fullmatch(key):
            raise InvalidArgument(
                "labels", f"{key[:80]!r} is not a label key", "use 1 to 63 of a-z 0-9 . _ / -, beginning with a-z 0-9"
            )
        if not _LABEL_VALUE.fullmatch(value):
            raise InvalidArgument(
                f"labels/{key}", f"{value[:80]!r} is no label value", "at most 255 printable characters"
            )
    return dict(labels)


def check_serial(serial: str) -> str:
    """A unit serial number: printable ASCII without spaces (SPC-6 7.7.19). Raises InvalidArgument."""
    if not _SERIAL.fullmatch(serial):
        right = f"use 1 to {SERIAL_LENGTH} ASCII characters without spaces"
        raise InvalidArgument("serial", f"{serial[:80]!r} is not a serial number", right)
    return serial


def check_size(field: str, size: int) -> int:
    """Bytes of a disk: whole 512-byte sectors, at least one. Raises InvalidArgument naming the nearest sizes."""
    if size < SECTOR or size > LARGEST:
        raise InvalidArgument(field, f"{size} is no size of a disk", f"choose {SECTOR} to {LARGEST} bytes")
    if size % SECTOR:
        below = size // SECTOR * SECTOR
        raise InvalidArgument(field, f"{size} is not a multiple of {SECTOR}", f"nearest: {below} or {below + SECTOR}")
    return size


@dataclass(frozen=True, order=True)
class LunAddress:
    """Where a logical unit sits behind one endpoint: SCSI target number and LUN."""

    scsi_target: int
    lun: int

    @classmethod
    def parse(cls, text: str) -> "LunAddress":
        """`LUN` or `TARGET:LUN`, decimal. Raises InvalidArgument."""
        match = _LUN_ADDRESS.fullmatch(text)
        if not match:
            raise InvalidArgument("lun", f"{text[:80]!r} is not a LUN", "write LUN or TARGET:LUN, such as 0 or 1:5")
        address = cls(int(match[1] or 0), int(match[2]))
        if address.scsi_target > MAX_SCSI_TARGET or address.lun > MAX_LUN:
            raise InvalidArgument(
                "lun", f"{text!r} is out of range", f"targets end at {MAX_SCSI_TARGET}, LUNs at {MAX_LUN}"
            )
        return address

    def __str__(self) -> str:
        return f"{self.scsi_target}:{self.lun}" if self.scsi_target else str(self.lun)


def new_id() -> str:
    """A UUIDv7 (RFC 9562 5.7): sorts by its time of birth."""
    milliseconds = time.time_ns() // 1_000_000
    value = milliseconds << 80 | 0x7 << 76 | secrets.randbits(12) << 64 | 0b10 << 62 | secrets.randbits(62)
    return str(UUID(int=value))


def timestamp() -> str:
    """Now, RFC 3339 in UTC."""
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
