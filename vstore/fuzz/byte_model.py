"""The oracle: what a disk of bytes does, read straight from the bytes of a CDB.

It shares no line with vstore.scsi: offsets and widths stand here a second time, as SBC-3 prints them. It does not say
which refusal is right; it says what a command that ended with GOOD must have done, and that any other did nothing.
"""

from dataclasses import dataclass

from vstore.fuzz.rules import require

# Operation code: offset and width of LBA and length; 6-byte CDBs are read apart.
_TRANSFERS = {
    0x28: (2, 4, 7, 2),
    0x2A: (2, 4, 7, 2),
    0x2E: (2, 4, 7, 2),
    0x2F: (2, 4, 7, 2),
    0x34: (2, 4, 7, 2),
    0x35: (2, 4, 7, 2),
    0x41: (2, 4, 7, 2),
    0x88: (2, 8, 10, 4),
    0x89: (2, 8, 13, 1),
    0x8A: (2, 8, 10, 4),
    0x8B: (2, 8, 10, 4),
    0x8E: (2, 8, 10, 4),
    0x8F: (2, 8, 10, 4),
    0x90: (2, 8, 10, 4),
    0x91: (2, 8, 10, 4),
    0x93: (2, 8, 10, 4),
    0x9C: (2, 8, 12, 2),
    0xA8: (2, 4, 6, 4),
    0xAA: (2, 4, 6, 4),
    0xAE: (2, 4, 6, 4),
    0xAF: (2, 4, 6, 4),
}
_READS = (0x08, 0x28, 0x88, 0xA8)
_WRITES = (0x0A, 0x2A, 0x8A, 0xAA, 0x2E, 0x8E, 0xAE, 0x9C)
_PRE_FETCHES = (0x34, 0x90)
_COMPARE_AND_WRITE, _OR_WRITE = 0x89, 0x8B
_VERIFIES = (0x2F, 0x8F, 0xAF)
_WRITE_SAMES = (0x41, 0x93)
_UNMAP = 0x42
_FORMAT_UNIT, _SANITIZE = 0x04, 0x48

# Offset and width of ALLOCATION LENGTH.
_ALLOCATION_LENGTHS = {
    0x03: (4, 1),
    0x12: (3, 2),
    0x1A: (4, 1),
    0x1C: (3, 2),
    0x37: (7, 2),
    0x3C: (6, 3),
    0x4D: (7, 2),
    0x5A: (7, 2),
    0x5E: (7, 2),
    0x84: (10, 4),
    0x9E: (10, 4),
    0xA0: (6, 4),
    0xA2: (6, 4),
    0xA3: (6, 4),
    0xB7: (6, 4),
}
_CDB_LENGTHS = {0: 6, 1: 10, 2: 10, 4: 16, 5: 12}

MISCOMPARE = (0xE, 0x1D, 0x00)


def cdb_length(cdb: bytes) -> int:
    return _CDB_LENGTHS.get(cdb[0] >> 5, len(cdb)) if cdb else 0


def most_data_in(cdb: bytes, block: int) -> int:
    """Bytes of data-in that this CDB allows."""
    where = _ALLOCATION_LENGTHS.get(cdb[0])
    if where:
        return _number(cdb, *where)
    if cdb[0] in _READS:
        return _range(cdb)[1] * block
    return 8 if cdb[0] == 0x25 else 0


def _number(data: bytes, at: int, width: int) -> int:
    return int.from_bytes(data[at : at + width])


def _range(cdb: bytes) -> tuple[int, int]:
    if cdb[0] in (0x08, 0x0A):
        return _number(cdb, 1, 3) & 0x1FFFFF, cdb[4] or 256
    lba_at, lba_width, length_at, length_width = _TRANSFERS[cdb[0]]
    return _number(cdb, lba_at, lba_width), _number(cdb, length_at, length_width)


@dataclass
class ByteModel:
    """What is on the medium."""

    data: bytearray
    block: int
    writable: bool = True

    def good(self, cdb: bytes, data_out: bytes, data_in: bytes, room: int) -> None:
        """Takes over what a command that ended with GOOD has done. RuleBroken: it cannot have."""
        if cdb[0] == _UNMAP:
            self._unmap(cdb, data_out)
            return
        if cdb[0] in (_FORMAT_UNIT, _SANITIZE):
            self._erase(cdb, data_out)
            return
        if cdb[0] not in _TRANSFERS and cdb[0] not in (0x08, 0x0A):
            return
        lba, count = _range(cdb)
        require((lba + count) * self.block <= len(self.data), "GOOD beyond the last block")
        span = slice(lba * self.block, (lba + count) * self.block)
        if cdb[0] in _READS:
            require(data_in == self.data[span][:room], "data-in is not what was written")
        elif cdb[0] in _WRITES:
            self._write(span, data_out[: span.stop - span.start])
        elif cdb[0] == _COMPARE_AND_WRITE:
            length = span.stop - span.start
            require(self.data[span] == data_out[:length], "COMPARE AND WRITE wrote although there is a difference")
            self._write(span, data_out[length : 2 * length])
        elif cdb[0] == _OR_WRITE:
            require(len(data_out) >= span.stop - span.start, "data-out was too short")
            self._write(span, bytes(a | b for a, b in zip(self.data[span], data_out, strict=False)))
        elif cdb[0] in _WRITE_SAMES:
            require(count, "WRITE SAME of no blocks, although WSNZ is one")
            ndob = cdb[0] == 0x93 and cdb[1] & 1
            self._write(span, (bytes(self.block) if ndob else data_out[: self.block]) * count)
        elif cdb[0] in _VERIFIES:
            require(self._difference(cdb, data_out) is None, "VERIFY saw no difference where there is one")

    def condition_met(self, cdb: bytes) -> None:
        """RuleBroken: it cannot have been."""
        require(cdb[0] in _PRE_FETCHES, "CONDITION MET does not belong to this command")
        lba, count = _range(cdb)
        require((lba + count) * self.block <= len(self.data), "CONDITION MET beyond the last block")

    def miscompare(self, cdb: bytes, data_out: bytes, information: int | None) -> None:
        require(cdb[0] in (*_VERIFIES, _COMPARE_AND_WRITE), "MISCOMPARE does not belong to this command")
        require(self._difference(cdb, data_out) == information, "INFORMATION is not where the difference lies")

    def _write(self, span: slice, data: bytes) -> None:
        require(self.writable, "GOOD for a write to a read-only unit")
        require(len(data) == span.stop - span.start, "GOOD although data-out was too short")
        self.data[span] = data

    def _unmap(self, cdb: bytes, data_out: bytes) -> None:
        require(self.writable, "GOOD for UNMAP of a read-only unit")
        parameters = data_out[: _number(cdb, 7, 2)]
        end = min(len(parameters), 8 + _number(parameters, 2, 2)) if len(parameters) >= 8 else 0
        for at in range(8, end - 15, 16):
            lba, count = _number(parameters, at, 8), _number(parameters, at + 8, 4)
            require((lba + count) * self.block <= len(self.data), "UNMAP beyond the last block")
            self._write(slice(lba * self.block, (lba + count) * self.block), bytes(count * self.block))

    def _erase(self, cdb: bytes, data_out: bytes) -> None:
        pattern = b"\0"
        if cdb[0] == _SANITIZE:
            action = cdb[1] & 0x1F
            if action == 0x1F:
                return
            if action == 1:
                pattern = data_out[4 : 4 + _number(data_out, 2, 2)]  # INVERT: the last pass leaves it itself
        elif cdb[1] & 0x10 and data_out[1] & 8:
            at = 8 if cdb[1] & 0x20 else 4
            pattern = data_out[at + 4 : at + 4 + _number(data_out, at + 2, 2)] or pattern
        block = (pattern * self.block)[: self.block]
        blocks = len(self.data) // self.block
        self._write(slice(0, blocks * self.block), block * blocks)

    def _difference(self, cdb: bytes, data_out: bytes) -> int | None:
        """Where data-out first differs from the medium."""
        lba, count = _range(cdb)
        found = self.data[lba * self.block : (lba + count) * self.block]
        bytchk = 1 if cdb[0] == _COMPARE_AND_WRITE else cdb[1] >> 1 & 3
        if bytchk == 0:
            return None
        require(len(data_out) >= (len(found) if bytchk == 1 else min(self.block, len(found))), "data-out was too short")
        expected = data_out if bytchk == 1 else data_out[: self.block] * count
        at = next((at for at, byte in enumerate(found) if byte != expected[at]), None)
        return at if at is None or bytchk == 1 else at % self.block
