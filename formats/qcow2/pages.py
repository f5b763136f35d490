"""Pages: the metadata of a qcow2 file in pieces of 4 KiB, read when first wanted and written back only where changed.

A change waits in memory until its stage is written, and the stages make the order of a commit:

    Stage.BLOCK     new refcount blocks, which nothing points at yet (rare)                 -> barrier
    Stage.TARGET    new tables, changed refcounts, refcount table words                     -> barrier
    Stage.POINTER   words in L1 and L2 tables that are in use: they make targets visible    -> barrier

A page is never longer than a cluster, so that none spans metadata and a guest's data. Clean pages are dropped when
there are too many, the least recently used first.
"""

import struct
from collections.abc import Sequence
from enum import IntEnum
from itertools import pairwise

from formats.host_file import HostFile
from formats.qcow2.structures import WORD

_LONGEST = 4096
_KEPT = 2048  # pages, so 8 MiB


class Stage(IntEnum):
    BLOCK = 0
    TARGET = 1
    POINTER = 2


class Pages:
    """Offsets are in bytes of the file. Raises OSError where the file does."""

    def __init__(self, file: HostFile, cluster_size: int) -> None:
        self.file = file
        self.size = min(_LONGEST, cluster_size)
        self._pages: dict[int, bytearray] = {}  # by offset, in order of use
        self._dirty: dict[int, Stage] = {}

    def _page(self, offset: int) -> bytearray:
        page = self._pages.pop(offset, None)
        if page is None:
            page = bytearray(self.file.pread(offset, self.size).ljust(self.size, b"\0"))
            if len(self._pages) >= _KEPT + len(self._dirty):
                self._evict()
        self._pages[offset] = page
        return page

    def _evict(self) -> None:
        clean = [offset for offset in self._pages if offset not in self._dirty]
        for offset in clean[: _KEPT // 4]:
            del self._pages[offset]

    def read(self, offset: int, length: int) -> bytes:
        """The bytes of a range, zeros past the end of the file."""
        start, end = offset // self.size * self.size, offset + length
        if end <= start + self.size:
            return bytes(self._page(start)[offset - start : end - start])
        whole = b"".join(bytes(self._page(at)) for at in range(start, end, self.size))
        return whole[offset - start : end - start]

    def peek(self, offset: int, length: int) -> bytes:
        """As `read`, for whole tables that are looked at once: what is not kept yet is not kept afterwards."""
        data = bytearray(self.file.pread(offset, length).ljust(length, b"\0"))
        for at in range(offset, offset + length, self.size):
            page = self._pages.get(at)
            if page is not None:
                data[at - offset : at - offset + self.size] = page
        return bytes(data)

    def begin(self, offset: int, data: bytes) -> None:
        """Writes a whole new table at once, which nothing on disk names before a barrier to come."""
        self.forget(offset, len(data))
        self.file.pwrite(offset, data)

    def words(self, offset: int, count: int) -> Sequence[int]:
        """`count` 64-bit words."""
        return struct.unpack(f">{count}Q", self.read(offset, count * WORD))

    def word(self, offset: int) -> int:
        start = offset & -self.size
        return int.from_bytes(self._page(start)[offset - start : offset - start + WORD], "big")

    def write(self, offset: int, data: bytes, stage: Stage) -> None:
        """Changes a range in memory."""
        done = 0
        while done < len(data):
            start = (offset + done) // self.size * self.size
            within = offset + done - start
            take = min(self.size - within, len(data) - done)
            self._page(start)[within : within + take] = data[done : done + take]
            self.mark(start, stage)
            done += take

    def put_word(self, offset: int, word: int, stage: Stage) -> None:
        start = offset & -self.size
        self._page(start)[offset - start : offset - start + WORD] = word.to_bytes(WORD, "big")
        self.mark(start, stage)

    def view(self, offset: int) -> bytearray:
        """The page at `offset` itself, to change at once and then `mark`."""
        return self._page(offset)

    def clear(self, offset: int, length: int, stage: Stage = Stage.TARGET) -> None:
        """Begins a new table of zeros, to be written whole."""
        for at in range(offset, offset + length, self.size):
            self._pages[at] = bytearray(self.size)
            self._dirty[at] = stage

    def mark(self, page: int, stage: Stage) -> None:
        """The page has changed."""
        self._dirty[page] = min(stage, self._dirty.get(page, stage))  # what is new stays new until it is written

    def hasten(self, page: int, stage: Stage) -> None:
        """A page that waits will be written at this stage, if not before."""
        self.mark(page, stage)

    def forget(self, offset: int, length: int) -> None:
        """Drops what is known of clusters that are no longer metadata, changes included."""
        for at in range(offset, offset + length, self.size):
            self._pages.pop(at, None)
            self._dirty.pop(at, None)

    def drop(self) -> None:
        """Forgets everything; nothing may be waiting to be written."""
        assert not self._dirty
        self._pages.clear()

    def dirty(self, stage: Stage) -> list[int]:
        """Offsets of the pages that wait for this stage."""
        return sorted(at for at, waits in self._dirty.items() if waits == stage)

    def write_back(self, stage: Stage) -> list[int]:
        """Writes what waits for this stage; it counts as written only when `written` is told, after the barrier."""
        waiting = self.dirty(stage)
        run: list[int] = []
        for at, following in pairwise([*waiting, -1]):
            run.append(at)
            if following != at + self.size:
                self.file.pwrite(run[0], b"".join(bytes(self._pages[page]) for page in run))
                run = []
        return waiting

    def written(self, pages: Sequence[int]) -> None:
        """These are durable."""
        for at in pages:
            self._dirty.pop(at, None)
