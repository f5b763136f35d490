"""Fuzzes the SCSI model: python -m tests.fuzz.cdb [--seconds N] [--seed S] [--atheris] [--replay FILE...] [--keep]

A case is a string of bytes; it is read as decisions: which command of the table, which values in its fields, which bits
turned over, which nexus and unit, how much room, which event in between. So the same bytes can come from a seeded
generator (plain mode), from Atheris, which breeds them by the coverage they reach, or from fixtures/cdb.

    bytes --> Draws --> steps --> Target.execute --> Bench checks: a status, never an exception; data-in within the
                                                     allocation length and the room; well-formed sense data; the bytes
                                                     on every unit as the model says

A finding is minimised and written to fixtures/cdb, where the tests replay it ever after.
"""

import argparse
import collections
import errno
import hashlib
import logging
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.fuzz.cdb_model import MISCOMPARE, ByteModel, cdb_length, most_data_in
from tests.scsi.sense_parser import ParsedSense, parse_sense
from vstore.scsi.cdb import Cdb
from vstore.scsi.commands import BY_OPERATION_CODE, COMMANDS, ModeSelect6, ModeSelect10, Unmap
from vstore.scsi.field import EVALUATED, HINT, IGNORED, Field
from vstore.scsi.identity import Identity
from vstore.scsi.logical_unit import LogicalUnit, ResetCause
from vstore.scsi.medium import MemoryMedium
from vstore.scsi.target import WELL_KNOWN_REPORT_LUNS, Target
from vstore.scsi.task import ITNexus, Response, Status, Task, TaskAttribute

FIXTURES = Path(__file__).parents[2] / "fixtures" / "cdb"
MOST_STEPS = 24
LENGTH = 80 << 10  # of every disk: 160 blocks of 512 bytes, 20 of 4096
LONG = 256 * 512  # what READ (6) and WRITE (6) of zero blocks move: the first disk is that long
_INTERNAL_FAILURE = (4, 0x44, 0x00)


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


class WatchedDataOut:
    """A data-out buffer that catches a read beyond its end."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    @property
    def length(self) -> int:
        return len(self.data)

    def read(self, offset: int, length: int) -> bytes:
        assert 0 <= offset <= offset + length <= len(self.data), "data-out read beyond its end"
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


def _disk(number: int, **settings: object) -> Disk:
    read_only = bool(settings.pop("read_only", False))
    length = LENGTH if number else LONG
    medium = BreakableMedium(length, read_only=read_only, deallocates=number != 1)
    medium.data[:] = _PATTERN[:length]
    unit = LogicalUnit(medium, Identity(f"fuzz{number}"), **settings)  # type: ignore[arg-type]
    return Disk(unit, medium, ByteModel(bytearray(medium.data), unit.logical_block_length, not read_only))


@dataclass
class Bench:
    """A target with four units and two initiators; executes one case."""

    outcomes: "collections.Counter[tuple[str, str]]" = field(default_factory=collections.Counter)
    explain: Callable[[str], None] | None = None

    def run(self, data: bytes) -> None:
        """AssertionError, or whatever the model raised, is a finding."""
        draws = Draws(data)
        self.disks = {
            0: _disk(0),
            1: _disk(1, logical_block_length=4096, write_cache=False),
            300: _disk(2, physical_block_exponent=0),
            3: _disk(3, read_only=True),
        }
        self.target = Target()
        for lun, disk in self.disks.items():
            self.target.add(lun, disk.unit)
        self.nexuses = [ITNexus("one"), ITNexus("other")]
        # Most cases begin where a guest's driver would: the power on has been told.
        if not draws.chance(8):
            for disk in self.disks.values():
                for nexus in self.nexuses:
                    disk.unit.add_nexus(nexus)
                    disk.unit.attentions.take(nexus)
        steps = 0
        while draws.left and steps < MOST_STEPS:
            self._step(draws)
            steps += 1
        for disk in self.disks.values():
            assert disk.medium.data == disk.model.data, "bytes changed on a unit that was not addressed"

    # ---- one step ---------------------------------------------------------------------------------------

    def _step(self, draws: Draws) -> None:
        if draws.chance(24):
            self._event(draws)
        lun = self._lun(draws)
        disk = self.disks.get(lun)
        row = COMMANDS[draws.pick(len(COMMANDS))]
        parameters = _parameters(draws, row, disk)
        cdb = self._cdb(draws, row, disk, len(parameters))
        data_out = _shortened(draws, parameters or _wanted(draws, cdb, disk))
        room = _ROOMS[draws.pick(len(_ROOMS))]
        attribute = TaskAttribute(_ATTRIBUTES[draws.pick(len(_ATTRIBUTES))])
        nexus = self.nexuses[draws.pick(2)]
        task = Task(nexus, lun, draws.number(1), attribute, cdb, WatchedDataOut(data_out), room)
        broken = disk is not None and bool(disk.medium.error)
        ready = disk.unit.fast_path(nexus) if disk else None
        response = self._execute(task)
        if self.explain:
            self.explain(f"LUN {lun} {nexus.name} {cdb.hex(' ')} out {len(data_out)} room {room} -> {_told(response)}")
        self._check(task, response, disk, data_out)
        if ready and response.status is Status.CHECK_CONDITION:
            assert not (ready.read and response.sense and _key(response) == 6), (
                "the gate was open, yet an attention was due"
            )
        if disk and broken:
            disk.model.data[:] = disk.medium.data  # how far a failed write got is not the model's to say
        if disk:
            assert disk.medium.data == disk.model.data, f"{row.name} left other bytes than the model says"

    def _lun(self, draws: Draws) -> int:
        kind = draws.pick(16)
        luns = list(self.disks)
        return luns[kind % len(luns)] if kind < 13 else [9, 0x3FFF, WELL_KNOWN_REPORT_LUNS][kind - 13]

    def _cdb(self, draws: Draws, row: type[Cdb], disk: Disk | None, parameters: int) -> bytes:
        blocks = disk.unit.blocks if disk else 128
        values = {
            name: _value(draws, member, blocks, parameters) for name, member in row.fields.items() if _free(member)
        }
        cdb = bytearray(row.build(**values).ljust(32, b"\0"))
        trick = draws.pick(16)
        if trick == 14:
            cdb[draws.pick(row.length)] ^= 1 << draws.pick(8)
        elif trick == 15:
            cdb = cdb[: draws.pick(33)]
        return bytes(cdb)

    def _event(self, draws: Draws) -> None:
        disk = list(self.disks.values())[draws.pick(len(self.disks))]
        kind = draws.pick(6)
        if kind == 0:
            disk.unit.reset(list(ResetCause)[draws.pick(len(ResetCause))], self.nexuses[draws.pick(2)])
        elif kind == 1:
            disk.unit.report_luns_changed()
        elif kind == 2:
            self._resize(disk, 4096 * (1 + draws.pick(16)))
        elif kind == 3:
            disk.medium.error = _ERRNOS[draws.pick(len(_ERRNOS))]
        elif kind == 4:
            disk.unit.remove_nexus(self.nexuses[draws.pick(2)])
        else:
            lun = next(lun for lun, other in self.disks.items() if other is disk)
            self.target.remove(lun)
            self.target.add(lun, disk.unit)

    @staticmethod
    def _resize(disk: Disk, length: int) -> None:
        for data in (disk.medium.data, disk.model.data):
            data[length:] = bytes(max(length - len(data), 0))
        disk.unit.capacity_changed()

    # ---- what must hold ---------------------------------------------------------------------------------

    def _execute(self, task: Task) -> Response:
        work = self.target.execute(task)
        try:
            work.send(None)
        except StopIteration as end:
            response = end.value
            assert isinstance(response, Response)
            return response
        raise AssertionError("the model waited although its medium never does")

    def _check(self, task: Task, response: Response, disk: Disk | None, data_out: bytes) -> None:
        assert isinstance(response.status, Status)
        assert 0 <= response.data_out_used <= len(data_out)
        assert len(response.data_in) <= task.data_in_room, "more data-in than room"
        name = _name(task.cdb)
        if response.status is Status.GOOD:
            assert not response.sense, "GOOD with sense data"
            block = disk.unit.logical_block_length if disk else 512
            assert len(response.data_in) <= most_data_in(task.cdb, block), "more data-in than the CDB allows"
            if disk:
                disk.model.good(task.cdb, data_out, response.data_in, task.data_in_room)
            self.outcomes[name, "GOOD"] += 1
            return
        assert not response.data_in, "data-in beside an error"
        if response.status is Status.TASK_SET_FULL:
            self.outcomes[name, "TASK SET FULL"] += 1
            return
        assert response.status is Status.CHECK_CONDITION
        sense = parse_sense(response.sense)
        self.outcomes[name, "{:X}/{:02X}/{:02X}".format(*sense.code)] += 1
        self._check_sense(task, sense, disk, data_out)

    @staticmethod
    def _check_sense(task: Task, sense: ParsedSense, disk: Disk | None, data_out: bytes) -> None:
        assert sense.code != _INTERNAL_FAILURE or _defects.last is None, f"a defect: {_defects.last}"
        if sense.in_cdb and sense.byte is not None:
            assert sense.byte < max(cdb_length(task.cdb), 1), "the field pointer points past the CDB"
        if sense.code == MISCOMPARE:
            assert disk
            disk.model.miscompare(task.cdb, data_out, sense.information)


_ROOMS = (LONG, LONG, LONG, 0, 1, 255, 512, 4096)
_ATTRIBUTES = (*[0] * 13, 1, 2, 3)
_ERRNOS = (errno.EIO, errno.ENOSPC, errno.ENOMEM, errno.EROFS, errno.ENODATA)
_OUT = (0, 1, 8, 511, 512, 4096, LONG)
_CHOICES = {
    "page_code": (0x00, 0x00, 0x01, 0x08, 0x0A, 0x3F, 0x3F, 0x80, 0x83, 0xB0, 0xB1, 0xB2, 0xFF),
    "subpage_code": (0x00, 0x00, 0x00, 0x00, 0xFF, 0x01),
    "select_report": (0, 1, 2, 3, 0x10, 0xFF),
    "requested_operation_code": (*sorted(BY_OPERATION_CODE), 0xFF),
    "requested_service_action": (0x00, 0x00, 0x0C, 0x0D, 0x10, 0xFF),
}


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
    return draws.likely(member.limit, (0, blocks, blocks // 2, 9))


def _parameters(draws: Draws, row: type[Cdb], disk: Disk | None) -> bytes:
    """The parameter list of a command that has one."""
    if row in (ModeSelect6, ModeSelect10):
        return _mode_parameters(draws, long=row is ModeSelect10, disk=disk)
    if row is Unmap:
        return _unmap_parameters(draws, disk.unit.blocks if disk else 128)
    return b""


def _wanted(draws: Draws, cdb: bytes, disk: Disk | None) -> bytes:
    """Data-out of a command without a parameter list."""
    opcode = cdb[0] if cdb else 0
    if disk and opcode in (0x2F, 0x8F, 0xAF) and draws.pick(4):
        # What is on the medium, perhaps with one bit turned over.
        at = int.from_bytes(cdb[2:10] if opcode == 0x8F else cdb[2:6]) * disk.unit.logical_block_length
        found = bytearray(disk.model.data[at:])
        if found and draws.pick(2):
            found[draws.number(2) % min(len(found), 4096)] ^= 1 << draws.pick(8)
        return bytes(found)
    fill = draws.number(1)
    return bytes([fill]) * (LONG if draws.pick(4) else _OUT[draws.pick(len(_OUT))])


def _shortened(draws: Draws, data: bytes) -> bytes:
    """Mostly what the command wants; sometimes too little."""
    cut = draws.pick(12)
    return data[: len(data) // 2] if cut == 10 else data[:-1] if cut == 11 else data


def _mode_parameters(draws: Draws, *, long: bool, disk: Disk | None) -> bytes:
    """A parameter list of current pages with a few bytes of them changed."""
    pages = b""
    if disk:
        modes = disk.unit.modes
        for address in [*modes.current][: draws.pick(4)]:
            page = bytearray(modes.values(address, 0))  # type: ignore[arg-type]
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


def _name(cdb: bytes) -> str:
    actions = BY_OPERATION_CODE.get(cdb[0], {}) if cdb else {}
    row = actions.get(None) or actions.get(cdb[1] & 0x1F if len(cdb) > 1 else None)
    return row.name if row else "(not a command)"


def _key(response: Response) -> int:
    return parse_sense(response.sense).key


def _told(response: Response) -> str:
    if response.status is not Status.CHECK_CONDITION:
        return f"{response.status.name} in {len(response.data_in)}"
    return str(parse_sense(response.sense))


class _Defects(logging.Handler):
    """Keeps the last exception that the device server turned into INTERNAL TARGET FAILURE."""

    last: str | None = None

    def emit(self, record: logging.LogRecord) -> None:
        self.last = self.format(record)


_defects = _Defects()
_log = logging.getLogger("vstore.scsi.device_server")


def attempt(bench: Bench, data: bytes) -> Exception | None:
    """The finding, if this case is one."""
    _defects.last = None
    _log.addHandler(_defects)
    propagate, _log.propagate = _log.propagate, False
    try:
        bench.run(data)
    except Exception as error:
        return error
    finally:
        _log.removeHandler(_defects)
        _log.propagate = propagate
    return None


# ---- generating, minimising, reporting -----------------------------------------------------------------


def cases(seed: int) -> Iterator[bytes]:
    rng = random.Random(seed)
    while True:
        yield rng.randbytes(rng.randrange(16, 400))


def minimise(data: bytes, same: Callable[[bytes], bool]) -> bytes:
    """Leaves out whatever can be left out, then zeroes whatever can be zero."""
    size = len(data) // 2
    while size:
        at = 0
        while at < len(data):
            shorter = data[:at] + data[at + size :]
            if same(shorter):
                data = shorter
            else:
                at += size
        size //= 2
    for at in range(len(data)):
        zeroed = data[:at] + b"\0" + data[at + 1 :]
        if zeroed != data and same(zeroed):
            data = zeroed
    return data


def keep(data: bytes, prefix: str) -> Path:
    FIXTURES.mkdir(parents=True, exist_ok=True)
    path = FIXTURES / f"{prefix}-{hashlib.sha256(data).hexdigest()[:12]}"
    path.write_bytes(data)
    return path


def report(bench: Bench) -> str:
    """Coverage by command: how often it ended how."""
    rows = []
    names = [row.name for row in COMMANDS] + ["(not a command)"]
    for name in names:
        ends = {end: count for (of, end), count in bench.outcomes.items() if of == name}
        refused = ", ".join(f"{end} {count}" for end, count in sorted(ends.items()) if end != "GOOD")
        rows.append(f"{name:44}{sum(ends.values()):>9}  GOOD {ends.get('GOOD', 0):>8}  {refused}")
    return "\n".join(rows)


def found(data: bytes, error: Exception) -> int:
    print(f"finding: {type(error).__name__}: {error}", file=sys.stderr)
    kind = (type(error), str(error))

    def same(shorter: bytes) -> bool:
        other = attempt(Bench(), shorter)
        return other is not None and (type(other), str(other)) == kind

    path = keep(minimise(data, same), "finding")
    print(f"kept as {path}; see it with: python -m tests.fuzz.cdb --replay {path}", file=sys.stderr)
    return 1


def fuzz_plain(seconds: float, seed: int, *, grow: bool) -> int:
    bench = Bench()
    end = time.monotonic() + seconds
    ran = 0
    for data in cases(seed):
        if time.monotonic() >= end:
            break
        seen = len(bench.outcomes)
        error = attempt(bench, data)
        if error:
            return found(data, error)
        if grow and len(bench.outcomes) > seen:
            keep(data, "case")
        ran += 1
    print(report(bench))
    print(f"{ran} cases, {sum(bench.outcomes.values())} commands, seed {seed}: no finding")
    return 0


def fuzz_atheris(seconds: float, seed: int) -> int:
    """In a process of its own: Atheris must see vstore.scsi being imported, and libFuzzer ends the process."""
    with tempfile.TemporaryDirectory(prefix="vstore-cdb-") as directory:
        arguments = [sys.executable, "-m", "tests.fuzz.cdb_atheris", f"{seconds:.0f}", str(seed), directory]
        status = subprocess.run(arguments, check=False).returncode
        told = Path(directory, "report")
        print(told.read_text() if told.exists() else "no case was run")
    return status


def replay(files: Iterable[Path]) -> int:
    bench = Bench(explain=print)
    for file in files:
        print(f"{file}:")
        error = attempt(bench, file.read_bytes())
        if error:
            print(f"finding: {type(error).__name__}: {error}")
            return 1
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.cdb", description="Fuzzes the SCSI model with CDBs.")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--atheris", action="store_true", help="breed cases by the coverage they reach")
    parser.add_argument(
        "--keep", action="store_true", help="keep cases with a new outcome in fixtures/cdb (plain mode)"
    )
    parser.add_argument("--replay", type=Path, nargs="+", metavar="FILE", help="run these cases and print every step")
    options = parser.parse_args()
    if options.replay:
        return replay(options.replay)
    if options.atheris:
        return fuzz_atheris(options.seconds, options.seed)
    return fuzz_plain(options.seconds, options.seed, grow=options.keep)


if __name__ == "__main__":
    sys.exit(main())
