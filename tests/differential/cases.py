"""The cases: commands drawn from the command table, each at the edges of what the fast path may serve.

The table says which fields a command has; this file says which values are near an edge. A case carries everything
that an initiator chooses: the CDB, the task attribute, both buffers, and how the buffers are cut into descriptors.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from vstore.scsi.cdb import Cdb, Fast
from vstore.scsi.commands import (
    COMMANDS,
    CompareAndWrite,
    ModeSelect6,
    OrWrite16,
    ReadCapacity16,
    RequestSense,
    StartStopUnit,
    TestUnitReady,
    Unmap,
    Verify16,
)
from vstore.scsi.field import ZERO

FAST_ROWS = [row for row in COMMANDS if row.fast is not None]
_MOST_BYTES = 1 << 20
_CACHING_PAGE = 0x08
_WCE = 1 << 2


@dataclass(frozen=True)
class Geometry:
    """What the cases aim at: blocks and bytes of the unit, and the limits that it reports (in blocks)."""

    blocks: int
    block_length: int
    max_transfer: int
    max_write_same: int
    max_unmap_descriptors: int


@dataclass(frozen=True)
class Case:
    """One command. `segment_bytes`: most bytes that one descriptor covers. Lengths in bytes."""

    row: type[Cdb]
    cdb: bytes
    data_out: bytes = b""
    data_in_length: int = 0
    attribute: int = 0
    segment_bytes: int = 1 << 20

    def __str__(self) -> str:
        data = f"{len(self.data_out)} bytes out {self.data_out[:40].hex()}" if self.data_out else "no data-out"
        return (
            f"{self.row.name} {self.cdb.hex()}, attribute {self.attribute}, {data}, "
            f"room for {self.data_in_length} bytes in, descriptors of {self.segment_bytes}"
        )


def random_case(rng: Random, geometry: Geometry) -> Case:
    """Mostly a command of the fast path; now and then one that opens or shuts the gate, or looks at the state."""
    if rng.random() < 0.08:
        return rng.choice(_OTHERS)(rng, geometry)
    row = rng.choice(FAST_ROWS)
    assert row.fast is not None
    case = _KINDS[row.fast](rng, geometry, row)
    return _spoil(rng, case)


def _lba_and_count(rng: Random, geometry: Geometry, limit: int) -> tuple[int, int]:
    """Mostly a range on the medium, often one that touches an end of it; sometimes empty, too long, or past the end."""
    count = rng.choice([1, 1, 2, 3, rng.randint(1, 64), rng.randint(1, limit), limit])
    if rng.random() < 0.08:
        count = rng.choice([0, limit + 1, 256])
    last = max(geometry.blocks - count, 0)
    lba = rng.choice([0, 1, last, max(last - 1, 0), rng.randint(0, last), rng.randint(0, last)])
    if rng.random() < 0.08:
        near_the_end = [last + 1, geometry.blocks - 1, geometry.blocks, geometry.blocks + 1]
        lba = rng.choice([*near_the_end, *near_the_end, (1 << 21) - 1, (1 << 32) - 1, (1 << 64) - 1])
    return lba, count


def _range(rng: Random, geometry: Geometry, count_name: str, limit: int) -> dict[str, int]:
    lba, count = _lba_and_count(rng, geometry, limit)
    return {"lba": lba, count_name: count}


def _usual(rng: Random, row: type[Cdb]) -> dict[str, int]:
    """The plain form of a command: most optional bits zero, so that not every case is one for the slow path."""
    names = ("immed", "unmap", "ndob", "fua", "dpo", "group_number")
    return {name: rng.randint(0, 1) if rng.random() < 0.3 else 0 for name in names if name in row.fields}


def _about(rng: Random, exact: int, block_length: int) -> int:
    """A buffer's length: right, or wrong by a byte, by a block, by all of it. Never above _MOST_BYTES."""
    wrong = [exact - 1, exact + 1, exact - block_length, exact + block_length, 0, 1, block_length // 2]
    return max(0, min(rng.choice([exact] * 60 + wrong), _MOST_BYTES))


def _transfer_bytes(row: type[Cdb], cdb: bytes, block_length: int) -> int:
    """Bytes that the CDB itself asks to move (SBC-3 5.9: 0 is 256 blocks in a 6-byte CDB)."""
    count: int = row(int.from_bytes(cdb)).transfer_length  # type: ignore[attr-defined]
    return (count or (256 if row.length == 6 else 0)) * block_length


def _longest(geometry: Geometry) -> int:
    """Blocks in the longest transfer that the cases make."""
    return min(geometry.max_transfer, _MOST_BYTES // geometry.block_length, 300)


def _read(rng: Random, geometry: Geometry, row: type[Cdb]) -> Case:
    values = _usual(rng, row) | _range(rng, geometry, "transfer_length", _longest(geometry))
    cdb = row.random(rng, **values)
    wanted = _transfer_bytes(row, cdb, geometry.block_length)
    return Case(row, cdb, data_in_length=_about(rng, wanted, geometry.block_length))


def _write(rng: Random, geometry: Geometry, row: type[Cdb]) -> Case:
    values = _usual(rng, row) | _range(rng, geometry, "transfer_length", _longest(geometry))
    cdb = row.random(rng, **values)
    wanted = _transfer_bytes(row, cdb, geometry.block_length)
    return Case(row, cdb, data_out=rng.randbytes(_about(rng, wanted, geometry.block_length)))


def _synchronize(rng: Random, geometry: Geometry, row: type[Cdb]) -> Case:
    values = _usual(rng, row) | _range(rng, geometry, "number_of_logical_blocks", geometry.blocks)
    return Case(row, row.random(rng, **values))


def _write_same(rng: Random, geometry: Geometry, row: type[Cdb]) -> Case:
    values = _usual(rng, row) | _range(rng, geometry, "number_of_logical_blocks", geometry.blocks)
    cdb = row.random(rng, **values)
    without = values.get("ndob") and rng.random() < 0.7  # SBC-3 5.43: with NDOB there is no data-out, says the standard
    length = _about(rng, 0 if without else geometry.block_length, geometry.block_length)
    zeros, last_bit = bytes(length), bytes(max(length - 1, 0)) + b"\x01" * bool(length)
    return Case(row, cdb, data_out=rng.choice([zeros] * 6 + [last_bit, rng.randbytes(length)]))


def _unmap(rng: Random, geometry: Geometry, row: type[Cdb]) -> Case:
    most = geometry.max_unmap_descriptors
    count = rng.choice([1, 1, 1, 2, 2, 3, 5, 16, 64] if rng.random() < 0.9 else [0, 65, most, most + 1])
    descriptors = b"".join(_unmap_descriptor(rng, geometry) for _ in range(count))
    honest = (len(descriptors) + 6, len(descriptors))
    told, told_descriptors = (
        (value if rng.random() < 0.97 else rng.choice([0, value - 1, value + 1, value + 16, 0xFFFF])) & 0xFFFF
        for value in honest
    )
    parameters = told.to_bytes(2) + told_descriptors.to_bytes(2) + bytes(4) + descriptors
    parameters += rng.randbytes(rng.choice([0] * 40 + [1, 8, 15, 16]))
    length = max(
        rng.choice([len(parameters)] * 80 + [0, 7, 8, 23, len(parameters) - 1, len(parameters) + 1, 0xFFFF]), 0
    )
    cdb = row.random(rng, **_usual(rng, row), parameter_list_length=min(length, 0xFFFF))
    cut = _about(rng, len(parameters), 16)
    return Case(row, cdb, data_out=parameters[:cut] + bytes(max(cut - len(parameters), 0)))


def _unmap_descriptor(rng: Random, geometry: Geometry) -> bytes:
    if rng.random() < 0.01:
        lba, count = _lba_and_count(rng, geometry, geometry.blocks)
    else:
        lba = rng.randrange(geometry.blocks)
        count = rng.randint(1, min(geometry.blocks - lba, 40))
    reserved = rng.choice([bytes(4)] * 9 + [rng.randbytes(4)])
    return lba.to_bytes(8) + count.to_bytes(4) + reserved


_KINDS: dict[Fast, Callable[[Random, Geometry, type[Cdb]], Case]] = {
    Fast.READ: _read,
    Fast.WRITE: _write,
    Fast.SYNCHRONIZE: _synchronize,
    Fast.WRITE_SAME: _write_same,
    Fast.UNMAP: _unmap,
}


def _spoil(rng: Random, case: Case) -> Case:
    """A small chance of everything that is not the command itself."""
    cdb, attribute, data_out, data_in_length = bytearray(case.cdb), 0, case.data_out, case.data_in_length
    if rng.random() < 0.05:  # any bit: reserved ones, CONTROL, protection
        place = rng.randrange(8, len(cdb) * 8)
        cdb[place // 8] ^= 1 << place % 8
    if rng.random() < 0.01:  # a field that must be zero
        for member in case.row.fields.values():
            if member.use is ZERO:
                cdb = bytearray((int.from_bytes(cdb) | member.mask).to_bytes(len(cdb)))
    if rng.random() < 0.02:
        attribute = rng.choice([1, 2, 3, 4, 255])
    if rng.random() < 0.02:  # a buffer of the wrong direction
        data_out, data_in_length = (b"", len(data_out)) if data_out else (rng.randbytes(data_in_length), 0)
    if rng.random() < 0.03:  # a buffer that nobody asked for, beside the right one or alone
        data_out, data_in_length = rng.choice(
            [(data_out or bytes(512), data_in_length), (data_out, data_in_length or 512)]
        )
    if rng.random() < 0.02:  # what follows the CDB in its 32 bytes
        cdb = cdb.ljust(32, b"\xff")
    longest = max(len(data_out), data_in_length)
    segment_bytes = rng.choice([1 << 20, 1 << 20, 4096, 512, 509, 61, 16, 5])
    segment_bytes = max(segment_bytes, longest // 60)  # stay well below the longest chain that a driver may build
    return Case(case.row, bytes(cdb), data_out, data_in_length, attribute, segment_bytes)


def _mode_select(rng: Random, _: Geometry) -> Case:
    """WCE on or off: with it off, every write of the fast path must be durable."""
    page = bytes([_CACHING_PAGE, 0x12, rng.choice([0, _WCE, _WCE])]) + bytes(17)
    parameters = bytes(4) + page
    return Case(ModeSelect6, ModeSelect6.build(pf=1, parameter_list_length=len(parameters)), data_out=parameters)


def _start_stop(rng: Random, _: Geometry) -> Case:
    return Case(StartStopUnit, StartStopUnit.build(start=rng.randint(0, 1)))


def _start(_: Random, __: Geometry) -> Case:
    return Case(StartStopUnit, StartStopUnit.build(start=1))


def _test_unit_ready(_: Random, __: Geometry) -> Case:
    return Case(TestUnitReady, TestUnitReady.build())


def _request_sense(rng: Random, _: Geometry) -> Case:
    return Case(RequestSense, RequestSense.build(desc=rng.randint(0, 1), allocation_length=252), data_in_length=252)


def _read_capacity(_: Random, __: Geometry) -> Case:
    return Case(ReadCapacity16, ReadCapacity16.build(allocation_length=32), data_in_length=32)


def _verify(rng: Random, geometry: Geometry) -> Case:
    """A slow command over bytes that fast commands wrote."""
    lba, count = _lba_and_count(rng, geometry, 8)
    count = min(count, 8)
    cdb = Verify16.build(lba=lba, verification_length=count, bytchk=1)
    return Case(Verify16, cdb, data_out=bytes(count * geometry.block_length))


def _or_write(rng: Random, geometry: Geometry) -> Case:
    """A slow command that reads what fast commands wrote, and writes."""
    lba, count = _lba_and_count(rng, geometry, 8)
    count = min(count, 8)
    return Case(
        OrWrite16, OrWrite16.build(lba=lba, transfer_length=count), rng.randbytes(count * geometry.block_length)
    )


def _compare_and_write(rng: Random, geometry: Geometry) -> Case:
    """Equal only where zeros were written; else the place of the first difference tells of the medium."""
    lba, count = _lba_and_count(rng, geometry, 8)
    count = min(count, 8)
    length = count * geometry.block_length
    cdb = CompareAndWrite.build(lba=lba, number_of_logical_blocks=count)
    return Case(CompareAndWrite, cdb, bytes(length) + rng.randbytes(length))


_OTHERS: Sequence[Callable[[Random, Geometry], Case]] = (
    _mode_select,
    _start_stop,
    _start,
    _start,
    _start,
    _test_unit_ready,
    _request_sense,
    _read_capacity,
    _verify,
    _or_write,
    _compare_and_write,
)

assert Unmap in FAST_ROWS, "the fast path serves UNMAP"
