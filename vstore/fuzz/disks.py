"""The disks that commands are sent to, each with the model of its bytes."""

import os
from dataclasses import dataclass

from vstore.fuzz.byte_model import ByteModel
from vstore.fuzz.rules import require
from vstore.scsi.identity import Identity
from vstore.scsi.kept_state import MemoryState
from vstore.scsi.logical_unit import LogicalUnit
from vstore.scsi.medium import MemoryMedium

LENGTH = 80 << 10  # of every disk: 160 blocks of 512 bytes, 20 of 4096
LONG = 256 * 512  # what READ (6) and WRITE (6) of zero blocks move: the first disk is that long


class WatchedDataOut:
    """A data-out buffer that catches a read beyond its end."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    @property
    def length(self) -> int:
        return len(self.data)

    def read(self, offset: int, length: int) -> bytes:
        require(0 <= offset <= offset + length <= len(self.data), "data-out read beyond its end")
        return self.data[offset : offset + length]


class BreakableMedium(MemoryMedium):
    """Fails the next call with `error`."""

    def __init__(self, length: int, **settings: bool) -> None:
        super().__init__(length, **settings)
        self.error = 0

    def _fail(self) -> None:
        number, self.error = self.error, 0
        if number:
            raise OSError(number, os.strerror(number))

    async def read(self, offset: int, length: int) -> bytes:
        self._fail()
        return await super().read(offset, length)

    async def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        self._fail()
        await super().write(offset, data)

    async def flush(self) -> None:
        self._fail()
        await super().flush()


@dataclass
class Disk:
    unit: LogicalUnit
    medium: BreakableMedium
    model: ByteModel


# Every block differs from its neighbours, and no block is zero.
_PATTERN = b"".join((1 + n * 7919 % 65535).to_bytes(2) * 256 for n in range(LONG // 512))


def make_disk(number: int, **settings: object) -> Disk:
    read_only = bool(settings.pop("read_only", False))
    length = LENGTH if number else LONG
    medium = BreakableMedium(
        length,
        read_only=read_only,
        deallocates=number != 1,
        anchors=number == 0,
        replaces_key=number == 0 and settings.get("thin") is not False,  # a thick disk would hold noise afterwards
    )
    medium.caches = number != 2
    medium.data[:] = _PATTERN[:length]
    state = None if number == 2 else MemoryState()
    unit = LogicalUnit(medium, Identity(f"fuzz{number}"), state=state, **settings)  # type: ignore[arg-type]
    return Disk(unit, medium, ByteModel(bytearray(medium.data), unit.logical_block_length, not read_only))
