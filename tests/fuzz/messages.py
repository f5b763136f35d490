"""Fuzzes vhost-user sessions: python -m tests.fuzz.messages [--seconds N] [--seed S] [--real] [--atheris] [--replay F]

A case is a string of bytes, read as decisions: which message of the table, which values in its fields, which lie about
its size, descriptors or flags, and what the data plane does in between. So the same bytes can come from a seeded
generator, from Atheris, which breeds them by the coverage they reach, or from fixtures/vhost_user/corpus.

    bytes --> Draws --> messages --> a session, with the fake data plane or (--real) with the one in C behind it

After every case: the session has ended without an exception and with nothing logged as our defect, every reply is well
formed, no descriptor is left open, no ring runs, no memory is mapped, and a new connection is served as ever. A finding
is written to fixtures/vhost_user/corpus, where the tests replay it ever after.
"""

import argparse
import asyncio
import contextlib
import hashlib
import logging
import os
import random
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from tests.vhost_user.conftest import open_descriptors
from tests.vhost_user.fake_device import FakeDevice
from tests.vhost_user.frontend import Frontend
from vstore.dataplane import Device
from vstore.scsi.identity import Identity
from vstore.scsi.logical_unit import LogicalUnit
from vstore.scsi.medium import MemoryMedium
from vstore.vhost_user.messages import MESSAGES, DeviceConfig, MemoryRegion, MemoryTable, Row
from vstore.vhost_user.session import Session
from vstore.vhost_user.structure import Structure
from vstore.vhost_user.virtio_scsi import ScsiEndpoint

CORPUS = Path(__file__).parents[2] / "fixtures" / "vhost_user" / "corpus"
VRINGS = 5
MOST_MESSAGES = 60
CASE_BYTES = 600
PATIENCE = 20  # seconds for one case, which takes milliseconds
USER, SIZE = 0x7F0000000000, 0x200000


class FindingError(AssertionError):
    """A case after which something is not as it must be."""


class Draws:
    """Decisions read from bytes; past their end every decision is zero."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def left(self) -> bool:
        return self._at < len(self._data)

    def number(self, width: int = 1) -> int:
        taken = self._data[self._at : self._at + width]
        self._at += width
        return int.from_bytes(taken)

    def pick(self, *choices: Any) -> Any:
        return choices[self.number() % len(choices)]

    def chance(self, one_in: int) -> bool:
        return self.number() % one_in == one_in - 1

    def bytes(self, length: int) -> bytes:
        """Reproducible filling, of any length, from four bytes of the case."""
        return random.Random(self.number(4)).randbytes(length)


# Values that a field of this name may honestly have; a lie is an edge, or anything.
_HONEST: dict[str, Callable[[Draws], int]] = {
    "index": lambda draws: draws.number() % VRINGS,
    "num": lambda draws: draws.pick(128, 1, 0, 256),
    "flags": lambda draws: draws.pick(0, 1),
    "descriptor": lambda draws: USER + 0x1000 + 0x10000 * (draws.number() % 8),
    "available": lambda draws: USER + 0x2000 + 0x10000 * (draws.number() % 8),
    "used": lambda draws: USER + 0x3000 + 0x10000 * (draws.number() % 8),
    "log": lambda draws: 0x3000 * (draws.number() % 8),
    "guest_address": lambda draws: SIZE * (draws.number() % 4),
    "user_address": lambda draws: USER + SIZE * (draws.number() % 4),
    "size": lambda _: SIZE,
    "mmap_offset": lambda draws: draws.pick(0, SIZE),
    "offset": lambda draws: draws.pick(0, 4096),
    "value": lambda draws: draws.pick(0, 1, 2, 0x100, 0x102, 0x170000006, 0x174000006, 0xA00B, 0x8),
    "padding": lambda _: 0,
}
_EDGES = (0, 1, 2, 0xFF, 0x100, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 63, (1 << 64) - 1, USER, SIZE)


def field_value(draws: Draws, name: str) -> int:
    kind = draws.number() % 16
    if kind < 12:
        return _HONEST.get(name, lambda _: 0)(draws)
    return int(draws.pick(*_EDGES)) if kind < 15 else draws.number(8)


def structure(draws: Draws, kind: type[Structure]) -> bytes:
    limits = [1 << 8 * struct.calcsize(f"={code}") for code in kind.codec.format.lstrip("=<")]
    values = [field_value(draws, field.name) % limit for field, limit in zip(fields(kind), limits, strict=True)]  # type: ignore[arg-type]
    return kind(*values).pack()


def payload(draws: Draws, row: Row) -> bytes:
    if row.payload is MemoryTable:
        count = draws.pick(1, 2, 0, 8)
        return struct.pack("=II", count, 0) + b"".join(structure(draws, MemoryRegion) for _ in range(count))
    if row.payload is DeviceConfig:
        length = draws.pick(4, 36, 0, 1, 256)
        return struct.pack("=III", draws.pick(0, 20, 24, 36, 255, 0xFFFFFFFF), length, 0) + draws.bytes(length)
    assert issubclass(row.payload, Structure)
    return structure(draws, row.payload)


class Descriptors:
    """Descriptors of every kind that a front-end could attach."""

    def __init__(self) -> None:
        self.memory = os.memfd_create("guest memory", os.MFD_CLOEXEC)
        os.truncate(self.memory, 4 * SIZE)
        self.event = os.eventfd(0, os.EFD_NONBLOCK)
        self._short = os.memfd_create("short")
        self._null = os.open("/dev/null", os.O_RDWR)
        self._directory = os.open("/", os.O_RDONLY)
        self._pipe = os.pipe()
        self._socket = socket.socket(socket.AF_UNIX)
        self.all = (
            self.event,
            self.memory,
            self._short,
            self._null,
            self._directory,
            *self._pipe,
            self._socket.fileno(),
        )

    def close(self) -> None:
        self._socket.detach()
        for descriptor in self.all:
            os.close(descriptor)


class Conversation:
    """What one case says, message by message."""

    def __init__(self, draws: Draws, descriptors: Descriptors) -> None:
        self._draws = draws
        self._descriptors = descriptors

    def __iter__(self) -> Iterator[tuple[bytes, list[int]]]:
        draws = self._draws
        if not draws.chance(4):  # most cases begin with an honest negotiation: behind it lies most of the code
            yield message(16, 1, struct.pack("=Q", draws.pick(0xA20B, 0xA00B, 0x2009, 0))), []
            yield message(2, 1, struct.pack("=Q", 0x170000006)), []
        if not draws.chance(3):
            region = struct.pack("=QQQQQ", 0, 0, SIZE, USER, 0)
            yield message(37, 1 | 8, region), [self._descriptors.memory]
        for _ in range(MOST_MESSAGES):
            if not draws.left:
                return
            yield from self._ring() if draws.chance(6) else [self._any()]

    def _ring(self) -> Iterator[tuple[bytes, list[int]]]:
        """An honest set-up of one ring."""
        ring = self._draws.number() % VRINGS
        where = USER + 0x10000 * ring
        yield message(8, 1, struct.pack("=II", ring, 128)), []
        yield message(9, 1, struct.pack("=IIQQQQ", ring, 0, where + 0x1000, where + 0x3000, where + 0x2000, 0)), []
        yield message(12, 1, struct.pack("=Q", ring)), [self._descriptors.event]
        yield message(18, 1 | 8, struct.pack("=II", ring, 1)), []

    def _any(self) -> tuple[bytes, list[int]]:
        draws = self._draws
        row = draws.pick(*MESSAGES.values())
        body, flags, number = payload(draws, row), draws.pick(1, 9), row.id
        count = row.descriptors[draws.number() % 2]
        attached = [self._honest(row)] * count
        size = None
        match draws.number() % 64:
            case 0:
                size = draws.pick(0, len(body) + 1, 4096, 4097, 0xFFFFFFFF)
            case 1:
                body = body[: draws.number() % (len(body) + 1)]
            case 2:
                body += draws.bytes(draws.number())
            case 3:
                body = draws.bytes(len(body))
            case 4 | 5 | 6:
                attached = [draws.pick(*self._descriptors.all) for _ in range(draws.pick(1, 0, 2, 8))]
            case 7:
                attached = [self._descriptors.event] * draws.pick(9, 60)
            case 8:
                number = draws.pick(0, 19, 33, 41, 44, 1000, 0xFFFFFFFF)
            case 9:
                flags = draws.number(4)
        whole = message(number, flags, body, size)
        return whole[: draws.number() % (len(whole) + 1)] if draws.chance(100) else whole, attached

    def _honest(self, row: Row) -> int:
        return self._descriptors.event if row.payload.__name__ == "Integer" else self._descriptors.memory


def message(number: int, flags: int, body: bytes, size: int | None = None) -> bytes:
    return struct.pack("=III", number, flags, len(body) if size is None else size) + body


class Alarm(logging.Handler):
    """Keeps what vstore logs as a defect of its own."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.records: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(self.format(record))


class Arena:
    """One endpoint for many cases; the state that one leaves is the state that the next one finds."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.endpoint = ScsiEndpoint(request_queues=VRINGS - 2, config_space=True, device=device)
        self.endpoint.map_lun(0, 0, LogicalUnit(MemoryMedium(1 << 20), Identity("FUZZ")), None)
        self.descriptors = Descriptors()
        self.alarm = Alarm()
        logging.getLogger("vstore").addHandler(self.alarm)
        logging.getLogger("vstore").propagate = False

    async def close(self) -> None:
        logging.getLogger("vstore").removeHandler(self.alarm)
        logging.getLogger("vstore").propagate = True
        await self.endpoint.close()
        self.descriptors.close()

    async def run(self, case: bytes) -> None:
        """Raises FindingError."""
        before = open_descriptors()
        draws = Draws(case)
        async with self._session() as frontend:
            for whole, attached in Conversation(draws, self.descriptors):
                if not await self._say(frontend, whole, attached):
                    break
                self._happen(draws)
            await self._listen(frontend)
        self._check(before)
        async with self._session() as frontend:
            await self._serve_as_ever(frontend)
        self._check(before)

    @contextlib.asynccontextmanager
    async def _session(self) -> Any:
        ours, theirs = socket.socketpair()
        frontend = Frontend(theirs)
        running = asyncio.create_task(Session(self.endpoint, ours).run())
        try:
            yield frontend
        finally:
            frontend.close()
            finishing = asyncio.create_task(self._finish())
            done, _ = await asyncio.wait([running], timeout=PATIENCE)
            finishing.cancel()
        if not done:
            raise FindingError("the session does not end")
        if error := running.exception():
            raise FindingError(f"the session raised {error!r}") from error

    async def _say(self, frontend: Frontend, whole: bytes, attached: list[int]) -> bool:
        if not whole:
            return False
        try:
            socket.send_fds(frontend.socket, [whole], attached)
        except OSError:
            return False  # the session has ended the connection, as it may
        await asyncio.sleep(0)
        return True

    def _happen(self, draws: Draws) -> None:
        """What the data plane may do meanwhile, if it is the fake one."""
        if not isinstance(self.device, FakeDevice):
            return
        kind = draws.number() % 8
        ring = self.device.rings[draws.number() % VRINGS]
        if kind == 0 and ring.started:
            ring.in_flight += 1
        elif kind == 1 and ring.started and ring.enabled:
            header = draws.bytes(draws.pick(51, 24, 16, 0))
            self.device.fetch(self.device.rings.index(ring), header, b"", 512, draws.pick(108, 1, 0))
        elif kind == 2:
            self._let_finish()

    async def _finish(self) -> None:
        while isinstance(self.device, FakeDevice):
            self._let_finish()
            await asyncio.sleep(0)

    def _let_finish(self) -> None:
        """The fast path's requests end; those in Python's hands are not in this count."""
        assert isinstance(self.device, FakeDevice)
        for index, ring in enumerate(self.device.rings):
            fast = ring.in_flight - self.device.in_python[index]
            if fast > 0:
                self.device.finish(index, fast)

    async def _listen(self, frontend: Frontend) -> None:
        """Hears what has been answered so far, which must be well formed."""
        heard = b""
        with contextlib.suppress(OSError):
            while chunk := frontend.socket.recv(1 << 16):
                heard += chunk
        while len(heard) >= 12:
            number, flags, size = struct.unpack_from("=III", heard)
            if flags != 5 or size > 4096 or (number not in MESSAGES and size != 8):
                raise FindingError(f"a reply to message {number} with flags {flags:#x} and {size} bytes")
            heard = heard[12 + size :]
        if heard:
            raise FindingError("a reply of less than a header")

    async def _serve_as_ever(self, frontend: Frontend) -> None:
        await frontend.negotiate()
        if await frontend.add_memory():
            raise FindingError("guest memory is refused")
        frontend.start_ring(2, base=3)
        if await frontend.ask("GET_VRING_BASE", 2, 0) != (2, 3):
            raise FindingError("a ring has a base that nobody gave it")

    def _check(self, before: int) -> None:
        if self.alarm.records:
            raise FindingError(self.alarm.records[0])
        if open_descriptors() != before:
            raise FindingError(f"{open_descriptors() - before} descriptors are left open")
        if any(self.device.vring_count(ring).started for ring in range(VRINGS)):
            raise FindingError("a ring runs and nobody is connected")
        if isinstance(self.device, FakeDevice) and self.device.regions:
            raise FindingError("guest memory is mapped and nobody is connected")


async def arena(*, real: bool) -> Arena:
    """Call it on the loop that runs the cases."""
    return Arena(Device(VRINGS) if real else FakeDevice(VRINGS))


async def replay(cases: Iterable[bytes], *, real: bool = False) -> None:
    """Raises FindingError."""
    bench = await arena(real=real)
    try:
        for case in cases:
            await bench.run(case)
    finally:
        await bench.close()


def keep(case: bytes) -> Path:
    CORPUS.mkdir(parents=True, exist_ok=True)
    path = CORPUS / hashlib.sha256(case).hexdigest()[:16]
    path.write_bytes(case)
    return path


def generate(seconds: float, seed: int, *, real: bool) -> int:
    """Seeded cases for some time; their number. Raises FindingError."""

    async def run() -> int:
        bench = await arena(real=real)
        source, end, count = random.Random(seed), time.monotonic() + seconds, 0
        try:
            while time.monotonic() < end:
                case = source.randbytes(source.randrange(1, CASE_BYTES))
                try:
                    await bench.run(case)
                except BaseException:
                    print(f"case {count} of seed {seed}: {keep(case)}", file=sys.stderr)
                    raise
                count += 1
        finally:
            await bench.close()
        return count

    return asyncio.run(run())


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.messages", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--real", action="store_true", help="with the data plane in C")
    parser.add_argument("--atheris", action="store_true", help="breed cases by the coverage they reach")
    parser.add_argument("--replay", type=Path, nargs="+", metavar="FILE")
    options = parser.parse_args()
    if options.replay:
        asyncio.run(replay([path.read_bytes() for path in options.replay], real=options.real))
        print(f"{len(options.replay)} cases replayed, no finding")
    elif options.atheris:
        breeder = [sys.executable, "-m", "tests.fuzz.messages_atheris", str(int(options.seconds)), str(options.seed)]
        os.execv(sys.executable, [*breeder, "real" if options.real else "fake"])
    else:
        count = generate(options.seconds, options.seed, real=options.real)
        print(f"{count} cases from seed {options.seed}, no finding")


if __name__ == "__main__":
    main()
