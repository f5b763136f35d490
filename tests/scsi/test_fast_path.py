from pathlib import Path

import pytest

from vstore.scsi.commands import fast_rows
from vstore.scsi.fast_path import FastPath, FastRow

ROWS = {row.opcode: row for row in fast_rows()}
HEADER = Path(__file__).parents[2] / "vstore" / "dataplane" / "dataplane.h"


def slow(row: FastRow) -> str:
    return row.slow_mask.hex(" ").removesuffix(" 00" * (32 - {0: 6, 1: 10, 2: 10, 4: 16, 5: 12}[row.opcode >> 5]))


def test_read_10_is_told_where_its_fields_lie() -> None:
    row = ROWS[0x28]
    assert (row.lba_at, row.lba_width, row.length_at, row.length_width, row.length_of_zero) == (2, 4, 7, 2, 0)
    assert (row.fua_mask, row.unmap_mask, row.ndob_mask) == (0, 0, 0)


def test_read_6_has_21_bits_of_address_and_256_blocks_for_zero() -> None:
    row = ROWS[0x08]
    assert (row.lba_at, row.lba_width, row.length_at, row.length_width, row.length_of_zero) == (1, 3, 4, 1, 256)
    assert slow(row) == "00 e0 00 00 00 ff"  # what is left of byte 1 must be zero, or the address would be wrong


def test_write_16_is_told_where_fua_is() -> None:
    row = ROWS[0x8A]
    assert (row.lba_at, row.lba_width, row.length_at, row.length_width) == (2, 8, 10, 4)
    assert (row.fua_at, row.fua_mask) == (1, 0x08)


def test_write_same_16_is_told_where_unmap_and_ndob_are() -> None:
    row = ROWS[0x93]
    assert (row.unmap_at, row.unmap_mask, row.ndob_at, row.ndob_mask) == (1, 0x08, 1, 0x01)


def test_unmap_has_a_parameter_list_and_no_address() -> None:
    row = ROWS[0x42]
    assert (row.lba_at, row.lba_width, row.length_at, row.length_width) == (0, 0, 7, 2)


@pytest.mark.parametrize(
    ("opcode", "mask"),
    [
        # RDPROTECT, FUA, RARC and a reserved bit; not DPO, not the group number
        (0x28, "00 ef 00 00 00 00 e0 00 00 ff"),
        # WRPROTECT and three reserved bits; not FUA
        (0x2A, "00 e7 00 00 00 00 e0 00 00 ff"),
        # IMMED too
        (0x35, "00 ff 00 00 00 00 e0 00 00 ff"),
        # ANCHOR too; not UNMAP
        (0x41, "00 f7 00 00 00 00 e0 00 00 ff"),
        (0x42, "00 ff ff ff ff ff e0 00 00 ff"),
        (0x93, "00 f6 00 00 00 00 00 00 00 00 00 00 00 00 e0 ff"),
        (0xAA, "00 e7 00 00 00 00 00 00 00 00 e0 ff"),
    ],
)
def test_every_bit_that_the_data_plane_does_not_understand_is_slow(opcode: int, mask: str) -> None:
    assert slow(ROWS[opcode]) == mask


@pytest.mark.parametrize("row", ROWS.values(), ids=lambda row: f"{row.opcode:02X}h")
def test_what_the_data_plane_reads_is_never_slow(row: FastRow) -> None:
    for at, width in ((row.lba_at, row.lba_width), (row.length_at, row.length_width)):
        first_byte_may_share = row.opcode in (0x08, 0x0A) and at == 1
        assert not any(row.slow_mask[at + first_byte_may_share : at + width])
    for at, mask in ((row.fua_at, row.fua_mask), (row.unmap_at, row.unmap_mask), (row.ndob_at, row.ndob_mask)):
        assert not row.slow_mask[at] & mask


@pytest.mark.parametrize(("kind", "structure"), [(FastRow, "vs_fast_row"), (FastPath, "vs_lun_settings")])
def test_the_data_plane_declares_the_same_members(kind: type[FastRow | FastPath], structure: str) -> None:
    declaration = HEADER.read_text().split(f"}} {structure};")[0].rsplit("typedef struct {", 1)[1]
    names = set(kind._fields)
    if kind is FastPath:
        names = names - {"read", "write", "flush"} | {"gate"}
    code = "".join(line.split("/*")[0] for line in declaration.splitlines())
    declared = {
        name.split("[")[0].strip()
        for part in code.split(";")
        if part.strip()
        for name in part.split(None, 1)[1].split(",")
    }
    assert declared == names
