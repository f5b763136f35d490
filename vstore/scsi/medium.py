"""What the model needs of a disk, and a disk in memory for tests and fuzzers."""

from collections.abc import Callable, Coroutine
from itertools import groupby
from typing import Any, NamedTuple, Protocol, TypeVar

_T = TypeVar("_T")


# What a row of bytes is: it has no room on the host, and reads as zeros; it has room; both.
DEALLOCATED, MAPPED, ANCHORED = range(3)


class Space(Protocol):
    """Bytes: what the medium takes of the host's storage, and what is left there for it and for all others."""

    @property
    def used(self) -> int: ...
    @property
    def available(self) -> int: ...


class Held(Protocol):
    """A medium, to whoever alone may write to a range of it. Calls that wait; OSError as of a medium."""

    def read(self, offset: int, length: int) -> bytes: ...

    def write(self, offset: int, data: bytes) -> None: ...

    def flush(self) -> None: ...


class Medium(Protocol):
    """Bytes on a disk. Every call raises OSError on failure; its errno decides the sense data.

    Offsets and lengths are bytes inside the medium: to check them is the caller's duty.
    """

    @property
    def length(self) -> int:
        """Bytes."""
        ...

    @property
    def read_only(self) -> bool: ...

    @property
    def deallocates(self) -> bool:
        """Whether deallocating gives space back; deallocated bytes read as zeros."""
        ...

    @property
    def caches(self) -> bool:
        """Whether what was read once is likely to be read sooner again."""
        ...

    async def read(self, offset: int, length: int) -> bytes: ...

    async def write(self, offset: int, data: bytes | bytearray | memoryview) -> None: ...

    async def write_zeroes(self, offset: int, length: int, *, deallocate: bool) -> None: ...

    @property
    def anchors(self) -> bool:
        """Whether a range can be zeroed and have room of its own on the host all the same."""
        ...

    async def anchor(self, offset: int, length: int) -> None:
        """Makes a range so; where a part of a block is left over at an end, that is zeroed. Only where it `anchors`."""
        ...

    async def status(self, offset: int, length: int) -> list[tuple[int, int]]:
        """Rows of bytes in order, from `offset` on, and of each whether it is MAPPED, DEALLOCATED or ANCHORED. At least
        one of them; they may end before the range does."""
        ...

    @property
    def encrypted(self) -> bool:
        """Whether the bytes lie encrypted, so that nothing of them may be kept elsewhere in clear."""
        ...

    @property
    def replaces_key(self) -> bool:
        """Whether the bytes are encrypted with a key that can be replaced, and nothing else can be read."""
        ...

    async def replace_key(self) -> None:
        """All that was written is noise from there on, durably. Only where it `replaces_key`."""
        ...

    async def space(self) -> Space | None:
        """None: nobody knows."""
        ...

    async def alone(self, offset: int, length: int, work: Callable[[Held], _T], *, exclusive: bool = False) -> _T:
        """What `work` returns, or raises; meanwhile nobody else writes to the range, on whatever path, and with
        `exclusive` nobody else reads there. It may run in a thread of its own."""
        ...

    async def flush(self) -> None:
        """Returns when everything written before the call is durable."""
        ...


class Room(NamedTuple):
    """The space of a disk in memory, as a test says it is."""

    used: int
    available: int


class MemoryMedium:
    """A disk in memory; its coroutines never suspend."""

    def __init__(
        self,
        length: int,
        *,
        read_only: bool = False,
        deallocates: bool = True,
        anchors: bool = False,
        replaces_key: bool = False,
    ) -> None:
        self.data = bytearray(length)
        self.read_only = read_only
        self.deallocates = deallocates
        self.caches = True
        self.flushes = 0
        self.room: Room | None = None
        self.anchors = anchors
        self.replaces_key, self.encrypted = replaces_key, False
        self.holes: set[int] = set()  # sectors of 512 bytes that were deallocated
        self.anchored: set[int] = set()

    @property
    def length(self) -> int:
        return len(self.data)

    async def read(self, offset: int, length: int) -> bytes:
        assert 0 <= offset <= offset + length <= len(self.data)
        return bytes(self.data[offset : offset + length])

    async def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        assert 0 <= offset <= offset + len(data) <= len(self.data)
        assert not self.read_only
        self.data[offset : offset + len(data)] = data
        for unmapped in (self.holes, self.anchored):
            if unmapped:
                unmapped.difference_update(range(offset // 512, -(-(offset + len(data)) // 512)))

    async def write_zeroes(self, offset: int, length: int, *, deallocate: bool) -> None:
        await self.write(offset, bytes(length))
        if deallocate and self.deallocates:
            self.holes.update(range(-(-offset // 512), (offset + length) // 512))

    async def anchor(self, offset: int, length: int) -> None:
        assert self.anchors
        await self.write(offset, bytes(length))
        self.anchored.update(range(-(-offset // 512), (offset + length) // 512))

    async def status(self, offset: int, length: int) -> list[tuple[int, int]]:
        sectors = range(offset // 512, (offset + length) // 512)
        return [(512 * len(list(row)), each) for each, row in groupby(sectors, self._status_of)]

    def _status_of(self, sector: int) -> int:
        return ANCHORED if sector in self.anchored else DEALLOCATED if sector in self.holes else MAPPED

    async def replace_key(self) -> None:
        assert self.replaces_key
        self.data[:] = bytes(byte ^ 0x5A for byte in self.data)

    async def space(self) -> Space | None:
        return self.room

    async def alone(self, offset: int, length: int, work: Callable[[Held], _T], *, exclusive: bool = False) -> _T:  # noqa: ARG002
        assert 0 <= offset <= offset + length <= self.length
        return work(_AtOnce(self))

    async def flush(self) -> None:
        self.flushes += 1


class _AtOnce:
    """The same disk without waiting, because it never does."""

    def __init__(self, medium: MemoryMedium) -> None:
        self._medium = medium

    def read(self, offset: int, length: int) -> bytes:
        return _end_of(self._medium.read(offset, length))

    def write(self, offset: int, data: bytes) -> None:
        _end_of(self._medium.write(offset, data))

    def flush(self) -> None:
        _end_of(self._medium.flush())


def _end_of(work: Coroutine[Any, Any, _T]) -> _T:
    try:
        work.send(None)
    except StopIteration as end:
        result: _T = end.value
        return result
    raise AssertionError("a disk in memory waited for something")
