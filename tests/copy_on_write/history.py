"""History: what has been written to a disk since its last flush, and so what may be found there after a crash."""

import threading

from tests.copy_on_write.model import Model

SECTOR = 512


class History:
    """Keeps the model of a disk and every change to it; several threads may tell of theirs."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self._lock = threading.Lock()
        self.begin()

    def begin(self) -> None:
        """Everything is durable as it is now."""
        self._durable = self.model.copy()
        self._since: list[tuple[int, bytes]] = []

    def changed(self, offset: int, data: bytes) -> None:
        with self._lock:
            self.model.write(offset, data)
            self._since.append((offset, data))

    def now(self, offset: int, length: int) -> bytes:
        """What the disk has to read as."""
        with self._lock:
            return self.model.read(offset, length)

    def wrong_sector(self, offset: int, found: bytes, wanted: bytes) -> tuple[int, bytes, bytes] | None:
        """Of a range that was found to hold other bytes than it should: the first sector that is not even as it was at
        the last flush, or as some change since then has left it. Offset, found bytes, wanted bytes."""
        for at in range(0, len(found), SECTOR):
            sector, now = found[at : at + SECTOR], wanted[at : at + SECTOR]
            if sector != now and not self._was(offset + at, sector):
                return offset + at, sector, now
        return None

    def _was(self, offset: int, sector: bytes) -> bool:
        state = self._durable.read(offset, len(sector))
        for at, data in self._since:
            if state == sector:
                break
            if at < offset + len(sector) and at + len(data) > offset:
                state = _laid_over(state, offset, at, data)
        return state == sector


def _laid_over(state: bytes, offset: int, at: int, data: bytes) -> bytes:
    """`state` of a sector at `offset` after `data` was written at `at`."""
    start, stop = max(at, offset), min(at + len(data), offset + len(state))
    return state[: start - offset] + data[start - at : stop - at] + state[stop - offset :]
