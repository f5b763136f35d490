"""Bytes read as decisions: which CDB of the table, with which values, parameters and data."""

import errno
from collections.abc import Callable, Iterable, Mapping

from vstore.fuzz.disks import LONG, Disk
from vstore.scsi.cdb import Cdb
from vstore.scsi.commands import (
    BY_OPERATION_CODE,
    ExtendedCopy,
    FormatUnit,
    LogSelect,
    ModeSelect6,
    ModeSelect10,
    SanitizeOverwrite,
    SetIdentifyingInformation,
    Unmap,
)
from vstore.scsi.field import EVALUATED, HINT, IGNORED, Field
from vstore.scsi.mode_parameters import PageControl

ROOMS = (LONG, LONG, LONG, 0, 1, 255, 512, 4096)
ATTRIBUTES = (*[0] * 13, 1, 2, 3)
ERRNOS = (errno.EIO, errno.ENOSPC, errno.ENOMEM, errno.EROFS, errno.ENODATA)
_OUT = (0, 1, 8, 511, 512, 4096, LONG)
LOGS = (0x02, 0x03, 0x0C, 0x10, 0x15, 0x19)
_CHOICES = {
    "page_code": (0x00, 0x00, 0x01, 0x08, 0x0A, 0x1A, 0x1C, 0x3F, 0x3F, 0x80, 0x83, 0xB0, 0xB1, 0xB2, 0xFF, *LOGS),
    "parameter_pointer": (0, 0, 0, 0, 1, 6, 20, 0xFFFF),
    "subpage_code": (0x00, 0x00, 0x00, 0x00, 0xFF, 0x01),
    "mode": (0x02, 0x02, 0x03, 0x0A, 0x0A, 0x0B, 0x00, 0x05),
    "buffer_id": (0, 0, 0, 0, 0, 0, 1, 0xFF),
    "buffer_offset": (0, 0, 0, 4, 0xFFFF, 0x10000, 0x10001, 0xFFFFFF),
    "security_protocol": (0, 0, 0, 1),
    "security_protocol_specific": (0, 0, 1, 2, 0x100),
    "list_identifier": (0, 0, 0, 1),
    "scope": (0, 0, 0, 0, 0, 0, 0, 1),
    "type": (1, 3, 5, 5, 6, 7, 8, 2),
    "identifying_information_type": (0, 0, 2, 2, 0x7F, 1),
    "select_report": (0, 1, 2, 3, 0x10, 0xFF),
    "requested_operation_code": (*sorted(BY_OPERATION_CODE), 0xFF),
    "requested_service_action": (0x00, 0x00, 0x0C, 0x0D, 0x10, 0x12, 0xFF),
}


class Draws:
    """Decisions read from bytes; past their end every decision is zero."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def left(self) -> bool:
        return self._at < len(self._data)

    def number(self, width: int) -> int:
        taken = self._data[self._at : self._at + width]
        self._at += width
        return int.from_bytes(taken)

    def pick(self, count: int) -> int:
        return self.number(1) % count

    def chance(self, one_in: int) -> bool:
        return self.number(1) % one_in == one_in - 1

    def likely(self, limit: int, edges: Iterable[int]) -> int:
        """A number up to the last edge, an edge or its neighbour, the top, or anything up to `limit`."""
        near = list(edges)
        kind = self.pick(8)
        if kind < 4:
            value = self.number(1) % (near[-1] + 1)
        elif kind < 6:
            value = near[self.pick(len(near))] + self.pick(3) - 1
        else:
            value = limit - self.number(1) if kind == 6 else self.number(8)
        return max(value, 0) & limit


def draw_cdb(draws: Draws, row: type[Cdb], disk: Disk | None, parameters: int) -> bytes:
    blocks = disk.unit.blocks if disk else 128
    values = {name: _value(draws, member, blocks, parameters) for name, member in row.fields.items() if _free(member)}
    cdb = bytearray(row.build(**values).ljust(32, b"\0"))
    trick = draws.pick(16)
    if trick == 14:
        cdb[draws.pick(row.length)] ^= 1 << draws.pick(8)
    elif trick == 15:
        cdb = cdb[: draws.pick(33)]
    return bytes(cdb)


def _free(member: Field) -> bool:
    return member.use in (EVALUATED, HINT, IGNORED)


def _value(draws: Draws, member: Field, blocks: int, parameters: int) -> int:
    name = member.name
    if name in _CHOICES:
        return _CHOICES[name][draws.pick(len(_CHOICES[name]))] & member.limit
    if name == "parameter_list_length" and draws.pick(8):
        return min(parameters, member.limit)
    if member.width <= 3:
        return draws.pick(member.limit + 1)
    if name == "lba":
        return draws.likely(member.limit, (0, blocks // 2, blocks))
    if name == "allocation_length":
        return draws.likely(member.limit, (0, 4, 8, 12, 24, 36, 40, 96, 255))
    return draws.likely(member.limit, (0, 1, 2, 9) if member.width <= 8 else (0, blocks, blocks // 2, 9))


def draw_parameters(draws: Draws, row: type[Cdb], disk: Disk | None) -> bytes:
    """The parameter list of a command that has one."""
    if row in (ModeSelect6, ModeSelect10):
        return _mode_parameters(draws, long=row is ModeSelect10, disk=disk)
    if row is Unmap:
        return _unmap_parameters(draws, disk.unit.blocks if disk else 128)
    draw = _PARAMETERS.get(row)
    return draw(draws) if draw else b""


def _name(draws: Draws) -> bytes:
    return b"name\0"[: draws.pick(6)]


def _overwrite_parameters(draws: Draws) -> bytes:
    length = draws.pick(4)
    return bytes([draws.number(1) & 0x9F, 0, 0, length]) + bytes([draws.number(1)]) * max(length, 1)


def draw_data_out(draws: Draws, cdb: bytes, disk: Disk | None) -> bytes:
    """Data-out of a command without a parameter list."""
    opcode = cdb[0] if cdb else 0
    if disk and opcode in (0x2F, 0x89, 0x8F, 0xAF) and draws.pick(4):
        # What is on the medium, perhaps with one bit turned over.
        size = disk.unit.logical_block_length
        at = int.from_bytes(cdb[2:10] if opcode in (0x89, 0x8F) else cdb[2:6]) * size
        found = bytearray(
            disk.model.data[at : at + int.from_bytes(cdb[13:14]) * size] if opcode == 0x89 else disk.model.data[at:]
        )
        if found and draws.pick(2):
            found[draws.number(2) % min(len(found), 4096)] ^= 1 << draws.pick(8)
        return bytes(found) + (bytes([draws.number(1)]) * len(found) if opcode == 0x89 else b"")
    fill = draws.number(1)
    return bytes([fill]) * (LONG if draws.pick(4) else _OUT[draws.pick(len(_OUT))])


def shortened(draws: Draws, data: bytes) -> bytes:
    """Mostly what the command wants; sometimes too little."""
    cut = draws.pick(12)
    return data[: len(data) // 2] if cut == 10 else data[:-1] if cut == 11 else data


def _mode_parameters(draws: Draws, *, long: bool, disk: Disk | None) -> bytes:
    """A parameter list of current pages with a few bytes of them changed."""
    pages = b""
    if disk:
        modes = disk.unit.modes
        for address in [*modes.current][: draws.pick(4)]:
            page = bytearray(modes.values(address, PageControl.CURRENT))
            if draws.pick(2):
                page[draws.pick(len(page))] ^= 1 << draws.pick(8) if draws.pick(2) else 0x04
            pages += page
    header = bytearray(8 if long else 4)
    descriptor = b""
    if draws.pick(2):
        descriptor = bytes(4) + (disk.unit.logical_block_length if disk else 512).to_bytes(4)
        header[-1] = 8
        if long and draws.pick(2):
            header[4], header[7] = 1, 16
            descriptor = bytes(8) + descriptor
    if draws.chance(8):
        header[draws.pick(len(header))] ^= 1 << draws.pick(8)
    return bytes(header) + descriptor + pages


def _log_parameters(draws: Draws) -> bytes:
    """Mostly nothing, or a page of error counters; now and then a bit is turned over."""
    if draws.pick(2):
        return b""
    counters = b"".join(bytes([0, code, 0x20, 8]) + draws.number(8).to_bytes(8) for code in range(draws.pick(4)))
    page = bytearray(bytes([(2, 3, 5, 0x10)[draws.pick(4)], 0]) + len(counters).to_bytes(2) + counters)
    if draws.chance(6):
        page[draws.pick(len(page))] ^= 1 << draws.pick(8)
    return bytes(page)


def _format_parameters(draws: Draws) -> bytes:
    """Mostly what can be served, with a short or a long header, and now and then a bit turned over."""
    header = bytearray(8 if draws.pick(2) else 4)
    header[1] = (0x00, 0x80, 0x88, 0x88, 0xF0, 0xFA)[draws.pick(6)]
    length = draws.pick(4)
    parameters = header + bytes([0, min(length, 1), 0, length]) + bytes([draws.number(1)]) * length
    if draws.chance(6):
        parameters[draws.pick(len(parameters))] ^= 1 << draws.pick(8)
    return bytes(parameters)


def _unmap_parameters(draws: Draws, blocks: int) -> bytes:
    ranges = [
        draws.likely((1 << 64) - 1, (0, blocks // 2, blocks)).to_bytes(8)
        + draws.likely((1 << 32) - 1, (0, 1, blocks // 2)).to_bytes(4)
        + bytes(4)
        for _ in range(draws.pick(5))
    ]
    body = b"".join(ranges) * (100 if draws.chance(16) else 1)
    told = len(body) if draws.pick(4) else draws.number(2)
    return (told + 6 & 0xFFFF).to_bytes(2) + (told & 0xFFFF).to_bytes(2) + bytes(4) + body + bytes(24)


def _reservation_parameters(draws: Draws) -> bytes:
    """Keys that are known already, more often than not, and now and then a flag."""
    key, new = min(draws.pick(4), 1), min(draws.pick(4), 1)
    return key.to_bytes(8) + new.to_bytes(8) + bytes([0, 0, 0, 0, draws.chance(4), 0, 0, 0])


def _copy_parameters(draws: Draws) -> bytes:
    """A list of nothing to copy, or of what cannot be."""
    counts = (0, 0, 0, 32, 33, 0xFFFF)[draws.pick(6)], (0, 0, 0, 28, 29, 0xFFFF)[draws.pick(6)]
    head = bytes([draws.pick(2), draws.pick(4) << 3 & 0x10]) + counts[0].to_bytes(2) + bytes(4) + counts[1].to_bytes(4)
    return head + bytes(4) + bytes([0xE4, *(draws.number(1) for _ in range(8))]).ljust(60, b"\0")


_PARAMETERS: Mapping[type[Cdb], Callable[[Draws], bytes]] = {
    ExtendedCopy: _copy_parameters,
    FormatUnit: _format_parameters,
    LogSelect: _log_parameters,
    SanitizeOverwrite: _overwrite_parameters,
    SetIdentifyingInformation: _name,
    **dict.fromkeys(BY_OPERATION_CODE[95].values(), _reservation_parameters),
}
