"""The data plane's view of the command table: where a few fields lie, and which bits it must leave to the model."""

from typing import NamedTuple

from vstore.scsi.cdb import Cdb, Fast
from vstore.scsi.field import HINT, IGNORED

CDB_BYTES = 32

# The field that says how much, by kind of command.
_LENGTH_FIELDS = {
    Fast.READ: "transfer_length",
    Fast.WRITE: "transfer_length",
    Fast.SYNCHRONIZE: "number_of_logical_blocks",
    Fast.WRITE_SAME: "number_of_logical_blocks",
    Fast.UNMAP: "parameter_list_length",
}


class FastRow(NamedTuple):
    """`vs_fast_row` of dataplane.h, field by field: byte offsets, widths in bytes, masks within one byte."""

    opcode: int
    kind: Fast
    lba_at: int
    lba_width: int
    length_at: int
    length_width: int
    length_of_zero: int
    fua_at: int
    fua_mask: int
    unmap_at: int
    unmap_mask: int
    ndob_at: int
    ndob_mask: int
    slow_mask: bytes


class FastPath(NamedTuple):
    """What the data plane may do with a logical unit right now, for one I_T nexus."""

    read: bool
    write: bool
    flush: bool
    write_through: bool
    blocks: int
    block_shift: int
    max_transfer: int  # blocks
    max_unmap_descriptors: int
    max_write_same: int  # blocks
    deallocates: bool


def fast_row(row: type[Cdb]) -> FastRow:
    assert row.fast is not None
    length_name = _LENGTH_FIELDS[row.fast]
    # A read with FUA must flush first (SBC-3 4.15.2); it is rare, and the model's.
    fua = "" if row.fast is Fast.READ else "fua"
    lba_at, lba_width = _bytes_of(row, "lba")
    length_at, length_width = _bytes_of(row, length_name)
    fua_at, fua_mask = _bit_of(row, fua)
    unmap_at, unmap_mask = _bit_of(row, "unmap")
    ndob_at, ndob_mask = _bit_of(row, "ndob")
    return FastRow(
        row.opcode,
        row.fast,
        lba_at,
        lba_width,
        length_at,
        length_width,
        # SBC-3 5.9: a TRANSFER LENGTH of zero in a 6-byte CDB means 256 blocks.
        256 if row.length == 6 else 0,
        fua_at,
        fua_mask,
        unmap_at,
        unmap_mask,
        ndob_at,
        ndob_mask,
        _slow_mask(row, {"lba", length_name, fua, "unmap", "ndob"}),
    )


def _bytes_of(row: type[Cdb], name: str) -> tuple[int, int]:
    """Offset and width of a field that ends at a byte's end; bits before it in its first byte must be slow."""
    member = row.fields.get(name)
    return (member.byte, member.size) if member else (0, 0)


def _bit_of(row: type[Cdb], name: str) -> tuple[int, int]:
    member = row.fields.get(name)
    return (member.byte, 1 << member.msb) if member else (0, 0)


def _slow_mask(row: type[Cdb], understood: set[str]) -> bytes:
    """Every bit but the operation code, the fields the data plane reads, and those that change nothing."""
    plain = sum(m.mask for m in row.fields.values() if m.name in understood or m.use in (HINT, IGNORED))
    slow = ~(row.fixed | plain) & ((1 << row.length * 8) - 1)
    return slow.to_bytes(row.length).ljust(CDB_BYTES, b"\0")
