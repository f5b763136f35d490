"""The same guest on a disk whose host breaks or is full: some system calls fail, and the guest goes on.

    write, flush, verb --fails--> the guest is told          the sectors may be as before or as asked for, nothing else
    close, or the image alone --fails--> opened once more    what was not flushed may be lost

Where a barrier failed nobody can know what of the file is on the disk, so the run ends with the next close.
"""

import contextlib
import random
from collections.abc import Callable, Iterator

from formats.errors import ImageError
from tests.crash.guest import PHASES, Guest
from tests.crash.recording import SECTOR, Fault, Kind

TRIES = 3  # to open it again

EIO, ENOSPC, EOPNOTSUPP = 5, 28, 95
HALF = 0  # of a write or read is done
FOR_GOOD = 1 << 30
ERRORS = {
    Kind.WRITE: (EIO, ENOSPC, HALF),
    Kind.BARRIER: (EIO, ENOSPC),
    Kind.TRUNCATE: (EIO, ENOSPC),
    Kind.PUNCH: (EIO, EOPNOTSUPP),
    Kind.ZERO: (EIO, EOPNOTSUPP),
    Kind.ALLOCATE: (ENOSPC, EOPNOTSUPP),
    Kind.READ: (EIO, EIO, HALF),
}


def draw(source: random.Random, calls: dict[Kind, int]) -> Fault:
    """One that strikes; `calls`: how many there are of each kind where nothing fails."""
    kind = source.choices(list(calls), [number**0.5 for number in calls.values()])[0]
    first = source.randrange(calls[kind])
    return Fault(kind, first, first + source.choice([0, 0, 0, 3, FOR_GOOD]), source.choice(ERRORS[kind]))


class FaultyGuest(Guest):
    """What fails is marked, and never answered."""

    fault: Fault
    _failed = False

    def _open(self) -> None:
        if self._failed and self.fault.kind == Kind.BARRIER:
            raise OSError(EIO, "a barrier has failed, so what the page cache shows may not be on the disk")
        for _ in range(TRIES - 1):
            with contextlib.suppress(OSError, ImageError):
                return super()._open()
        return super()._open()

    def run(self) -> None:
        for phase in range(PHASES):
            self._use_a_while()
            if phase == PHASES - 1 or not self._survives(getattr(self, f"_{self._draw.choice(self._variant.verbs)}")):
                break
        with contextlib.suppress(OSError, ImageError):
            self._close()

    @contextlib.contextmanager
    def _asked(self, verb: str, **words: object) -> Iterator[int]:
        number = next(self._numbers)
        self._mark(ask=number, verb=verb, **words)
        try:
            yield number
        except (OSError, ImageError) as error:
            self._mark(failed=number, error=str(error))
            self._failed = True
            if verb == "close" and self.fault.kind == Kind.BARRIER:
                raise  # nobody may go on with the file
        else:
            self._mark(answer=number)

    def _read_at(self, offset: int, length: int) -> bytes:
        with contextlib.suppress(OSError):  # a read may need room, to write what it has composed
            return super()._read_at(offset, length)
        return b""

    def _survives(self, verb: Callable[[], None]) -> bool:
        """Whether the disk can be used on. What failed may have changed its length."""
        self._failed = False
        try:
            verb()
        except (OSError, ImageError):
            self._failed = True
        if not self._failed:
            return True
        if self.fault.kind == Kind.BARRIER:
            return False
        with contextlib.suppress(OSError, ImageError):
            self._close()
        return self._opens()

    def _opens(self) -> bool:
        with contextlib.suppress(OSError, ImageError):
            self._open()
            with super()._asked("resize", sectors=self._disk.length // SECTOR):
                self._flush()
            return True
        return False
