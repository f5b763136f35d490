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
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.fuzz.messages_conversation import VRINGS, Conversation, Descriptors, Draws
from tests.vhost_user.conftest import open_descriptors
from tests.vhost_user.fake_device import FakeDevice
from tests.vhost_user.frontend import Frontend
from vstore.dataplane import Device
from vstore.scsi.identity import Identity
from vstore.scsi.logical_unit import LogicalUnit
from vstore.scsi.medium import MemoryMedium
from vstore.vhost_user.messages import MESSAGES
from vstore.vhost_user.session import Session
from vstore.vhost_user.virtio_scsi import ScsiEndpoint

CORPUS = Path(__file__).parents[2] / "fixtures" / "vhost_user" / "corpus"
CASE_BYTES = 600
PATIENCE = 20  # seconds for one case, which takes milliseconds


class FindingError(AssertionError):
    """A case after which something is not as it must be."""


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
