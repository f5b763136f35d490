"""Model: the bytes that a disk should have, as a sparse row of immutable chunks, so that a kept state costs little."""

import os
from collections.abc import Iterator
from pathlib import Path

CHUNK = 1 << 14

_ZEROS = bytes(CHUNK)


class Model:
    """Reads as zeros where nobody wrote. Offsets and lengths are in bytes of the disk."""

    def __init__(self, length: int) -> None:
        self.length = length
        self._chunks: dict[int, bytes] = {}

    def copy(self) -> "Model":
        """The disk as it is now."""
        other = Model(self.length)
        other._chunks = dict(self._chunks)
        return other

    def read(self, offset: int, length: int) -> bytes:
        assert 0 <= offset <= offset + length <= self.length, (offset, length, self.length)
        return b"".join(self._chunks.get(chunk, _ZEROS)[span] for chunk, span in _pieces(offset, length))

    def write(self, offset: int, data: bytes) -> None:
        assert 0 <= offset <= offset + len(data) <= self.length, (offset, len(data), self.length)
        done = 0
        for chunk, span in _pieces(offset, len(data)):
            count = span.stop - span.start
            old = self._chunks.get(chunk, _ZEROS)
            self._chunks[chunk] = old[: span.start] + data[done : done + count] + old[span.stop :]
            done += count

    def resize(self, length: int) -> None:
        """What is cut off is gone; what is new reads as zeros."""
        last, within = divmod(length, CHUNK)
        if length < self.length:
            self._chunks = {chunk: data for chunk, data in self._chunks.items() if chunk * CHUNK < length}
            if within and last in self._chunks:
                self._chunks[last] = self._chunks[last][:within].ljust(CHUNK, b"\0")
        self.length = length

    def written(self) -> Iterator[tuple[int, bytes]]:
        """Offset and bytes of every part that may hold anything but zeros, in order."""
        for chunk in sorted(self._chunks):
            yield chunk * CHUNK, self._chunks[chunk][: self.length - chunk * CHUNK]

    def save(self, path: Path) -> None:
        """As a sparse raw file, for tools to compare with."""
        with path.open("wb") as file:
            file.truncate(self.length)
            for offset, data in self.written():
                if data.count(0) < len(data):
                    os.pwrite(file.fileno(), data, offset)


def _pieces(offset: int, length: int) -> Iterator[tuple[int, slice]]:
    """The chunks that a range touches, and which of their bytes."""
    end = offset + length
    while offset < end:
        chunk, within = divmod(offset, CHUNK)
        count = min(CHUNK - within, end - offset)
        yield chunk, slice(within, within + count)
        offset += count
