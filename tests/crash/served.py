"""The same guest over the whole path: SCSI commands through vhost-user's rings, several under way at once."""

import contextlib
import random
import struct
import tempfile
from pathlib import Path

from tests.client.live import LiveEndpoint
from tests.crash.guest import REQUESTS, THREADS, Guest
from tests.crash.history import ZEROS, filled
from tests.crash.recording import SECTOR
from vstore.client import DriverSettings, ScsiDriver
from vstore.client.request import CommandResult, Pending
from vstore.client.transport import TransportSettings
from vstore.client.virtio_scsi import encode_lun

DEPTH = 6  # commands under way at once
WAIT = 30.0  # seconds

LUN = encode_lun(0, 0)
WRITE_10, SYNCHRONIZE_CACHE_10, UNMAP, WRITE_SAME_16 = 0x2A, 0x35, 0x42, 0x93
FUA, UNMAP_BIT = 0x08, 0x08

UnderWay = tuple[Pending[CommandResult], contextlib.ExitStack]


class ServedGuest(Guest):
    """FUA, WRITE SAME and UNMAP too."""

    def _open(self) -> None:
        super()._open()
        self._socket = tempfile.TemporaryDirectory(prefix="vstore-crash-")
        self._live = LiveEndpoint(Path(self._socket.name, "s"))
        self._live.map_disk(self._disk)
        self._driver = ScsiDriver(
            self._live.path, DriverSettings(transport=TransportSettings(region_sizes=(16 << 20,)))
        )
        while self._driver.wait(self._driver.submit(LUN, bytes(6)), WAIT).status:
            pass  # TEST UNIT READY, until it has told of its power on

    def _close(self) -> None:
        self._driver.close()
        with self._asked("close"):
            self._live.close()
        self._socket.cleanup()

    def _use_a_while(self) -> None:
        under_way: list[UnderWay] = []
        with self._together([]):
            for _ in range(THREADS * REQUESTS):
                while len(under_way) >= DEPTH:
                    self._driver.poll(WAIT)
                    under_way = self._answered(under_way)
                under_way.append(self._request(self._draw))
            while under_way:
                self._driver.poll(WAIT)
                under_way = self._answered(under_way)

    def _answered(self, under_way: list[UnderWay]) -> list[UnderWay]:
        """What is still under way; the others are answered."""
        for pending, done in under_way:
            if pending.done:
                assert pending.result.status == 0, (pending.what, pending.result)
                done.close()
        return [(pending, done) for pending, done in under_way if not pending.done]

    def _request(self, draw: random.Random) -> UnderWay:
        kind, done = draw.random(), contextlib.ExitStack()
        if kind > 0.85:
            done.enter_context(self._asked("flush"))
            return self._driver.submit(LUN, struct.pack(">BBIBHB", SYNCHRONIZE_CACHE_10, 0, 0, 0, 0, 0)), done
        first, count = done.enter_context(self._claim(draw))
        if kind < 0.65:
            fua, generation = kind < 0.12, next(self._numbers)
            words = {"first": first, "count": count, "generation": generation, "fua": fua}
            done.enter_context(self._asked("write", **words))
            cdb = struct.pack(">BBIBHB", WRITE_10, FUA if fua else 0, first, 0, count, 0)
            return self._driver.submit(LUN, cdb, filled(first, count, generation)), done
        done.enter_context(self._asked("zero", first=first, count=count, generation=ZEROS))
        thin = self._disk.deallocates
        if thin and kind < 0.7:
            cdb = struct.pack(">BBIBHB", UNMAP, 0, 0, 0, 24, 0)
            return self._driver.submit(LUN, cdb, struct.pack(">HHIQII", 22, 16, 0, first, count, 0)), done
        flags = UNMAP_BIT if thin and kind < 0.78 else 0
        cdb = struct.pack(">BBQIBB", WRITE_SAME_16, flags, first, count, 0, 0)
        return self._driver.submit(LUN, cdb, bytes(SECTOR)), done
