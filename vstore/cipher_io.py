"""CipherIo: reads and writes of a disk whose top image is encrypted, all of them in Python.

    read ----> chain.compose, which decrypts        what is not yet committed: from its new place
    write ---> in its own block: encrypted there    elsewhere: the whole block, composed, into a reserved place
    flush ---> image.commit: the new places become the block's

The data plane moves bytes as they are, so it must not have these; its map of such a disk stays empty, and every command
comes here. Slower by far than a disk in the clear, and right.
"""

import contextlib
import errno
import itertools
import os
import threading
from collections.abc import Iterator

from formats import direct_io, plain_io
from formats.errors import ImageError
from formats.image import SECTOR, BlockState, Change, Cipher, HostExtent, LayerFlags, entry
from vstore.chain import Chain
from vstore.dataplane import Volume

_PLACE = (1 << 48) - 1  # of an entry
_AHEAD = 64  # blocks reserved at once
_MOST_PENDING = 4096  # changes
_AT_ONCE = 4096  # blocks of one look at what has room

Bytes = bytes | bytearray | memoryview


class CipherIo:
    """Raises OSError. Offsets and lengths in bytes, of any alignment, inside the disk. `lock` guards the images."""

    def __init__(self, volume: Volume, chain: Chain, cipher: Cipher, lock: threading.RLock) -> None:
        self._volume, self._chain, self._lock = volume, chain, lock
        self._known: Cipher | None = cipher
        self._image = chain.top
        self._size = self._image.geometry.block_size
        self._pending: dict[int, Change] = {}
        self._room: list[int] = []  # offsets of reserved blocks

    @property
    def _cipher(self) -> Cipher:
        if self._known is None:
            raise OSError(errno.EIO, "a replacement of the disk's key has failed; it is not known which key is its own")
        return self._known

    def read(self, offset: int, length: int) -> bytes:
        _check(offset, length, self._volume.length)
        with self._lock, _told():
            assert self._cipher
            return b"".join(self._read(at, count) for at, count in self._pieces(offset, length))

    def _read(self, offset: int, length: int) -> bytes:
        """Inside one block."""
        block, within = divmod(offset, self._size)
        change = self._pending.get(block)
        if change is None:
            return self._chain.compose(offset, length)
        if change.entry >> 60 != BlockState.DATA:
            return bytes(length)
        place = (change.entry & _PLACE) * SECTOR + within
        start, end = place // SECTOR * SECTOR, -(-(place + length) // SECTOR) * SECTOR
        plain = self._cipher.decrypt(start, self._pread(start, end - start))
        return plain[place - start : place - start + length]

    def write(self, offset: int, data: Bytes) -> None:
        _check(offset, len(data), self._volume.length)
        with self._lock, _told():
            self._image.touched(offset, len(data))
            done = 0
            for at, count in self._pieces(offset, len(data)):
                self._write(at, bytes(data[done : done + count]))
                done += count

    def _write(self, offset: int, data: bytes) -> None:
        """Inside one block."""
        block, within = divmod(offset, self._size)
        place = self._own_place(block)
        if place is None:
            start, end = 0, self._size
        else:
            start, end = within // SECTOR * SECTOR, -(-(within + len(data)) // SECTOR) * SECTOR
        if (start, end) != (within, within + len(data)):
            old = self._read_padded(block * self._size + start, end - start)
            data = old[: within - start] + data + old[within - start + len(data) :]
        if place is not None:
            self._pwrite(place + start, data)
            return
        place = self._take()
        self._pwrite(place, data)
        self._change(Change(block, entry(BlockState.DATA, 0, place)))

    def _read_padded(self, offset: int, length: int) -> bytes:
        """Zeros behind the end of the disk."""
        inside = max(0, min(length, self._volume.length - offset))
        return self._read(offset, inside).ljust(length, b"\0")

    def _own_place(self, block: int) -> int | None:
        """Where the block lies, if it may be overwritten there."""
        change = self._pending.get(block)
        word = self._image.load_entries(block, 1)[0] if change is None else change.entry
        return (word & _PLACE) * SECTOR if word >> 60 == BlockState.DATA else None

    def zero(self, offset: int, length: int, *, deallocate: bool) -> None:
        """Whole blocks become ZERO, or nothing at all where nothing is beneath; the rest is written."""
        _check(offset, length, self._volume.length)
        hole = deallocate and self._chain.depth == 1
        with self._lock, _told():
            for at, count in self._pieces(offset, length):
                ends = at + count == self._volume.length
                if self._image.zeroes and at % self._size == 0 and (count == self._size or ends):
                    self._image.touched(at, count)
                    self._change(Change(at // self._size, entry(BlockState.HOLE if hole else BlockState.ZERO)))
                else:
                    self.write(at, bytes(count))

    def status(self, offset: int, length: int) -> tuple[int, int]:
        """For how many bytes from `offset` on it is so, as `Volume.status`."""
        _check(offset, length, self._volume.length)
        first = offset // self._size
        count = min(-(-(offset + length) // self._size) - first, _AT_ONCE)
        with self._lock, _told():
            words = self._chain.entries(first, count)
            changes = (self._pending.get(block) for block in range(first, first + count))
            states = [_has_room(new.entry if new else old) for old, new in zip(words, changes, strict=True)]
        alike = sum(1 for _ in itertools.takewhile(lambda state: state is states[0], states))
        return min(length, alike * self._size - offset % self._size), states[0]

    @contextlib.contextmanager
    def held(self, offset: int, length: int, *, exclusive: bool = False) -> Iterator[None]:
        """Inside, nobody but this thread reads or writes: all take the lock, and the data plane does neither."""
        del exclusive
        _check(offset, length, self._volume.length)
        with self._lock:
            yield

    def flush(self) -> None:
        """Makes everything written so far durable, with the tables that name it."""
        with self._lock, _told():
            if self._pending:
                self._image.commit(list(self._pending.values()))
                self._pending.clear()
            else:
                self._volume.flush()

    def replace_key(self) -> None:
        """Every sector of the disk is another one then. After an error nothing is read or written."""
        with self._lock, _told():
            self.flush()
            self._known = None
            self._image.touched(0, self._volume.length)
            self._image.replace_key()
            self._known = self._image.cipher

    def close(self) -> None:
        """Gives back what was reserved in vain. Call it after the last flush."""
        if self._room:
            self._image.free([HostExtent(place, 1) for place in self._room])
            self._room.clear()

    def _change(self, change: Change) -> None:
        old = self._pending.pop(change.block, None)
        if old is not None and old.entry >> 60 == BlockState.DATA:
            self._room.append((old.entry & _PLACE) * SECTOR)
        self._pending[change.block] = change
        if len(self._pending) >= _MOST_PENDING:
            self.flush()

    def _take(self) -> int:
        if not self._room:
            for extent in self._image.reserve(_AHEAD):
                self._room += range(extent.offset, extent.offset + extent.blocks * self._size, self._size)
            self._room.reverse()
        return self._room.pop()

    def _pieces(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        end = offset + length
        while offset < end:
            count = min(self._size - offset % self._size, end - offset)
            yield offset, count
            offset += count

    def _pread(self, offset: int, length: int) -> bytes:
        layer = self._image.layers[0]
        if LayerFlags.DIRECT in layer.flags:
            data = direct_io.read(layer.descriptor, offset, length, layer.alignment)
        else:
            data = plain_io.read(layer.descriptor, offset, length)
        return data.ljust(length, b"\0")

    def _pwrite(self, offset: int, plain: bytes) -> None:
        layer, data = self._image.layers[0], self._cipher.encrypt(offset, plain)
        if LayerFlags.DIRECT in layer.flags:
            direct_io.write(layer.descriptor, offset, data, layer.alignment)
            return
        done = 0
        while done < len(data):
            done += os.pwrite(layer.descriptor, memoryview(data)[done:], offset + done)


def _has_room(word: int) -> int:
    return int(word >> 60 not in (BlockState.HOLE, BlockState.ZERO))


def _check(offset: int, length: int, end: int) -> None:
    if offset < 0 or offset + length > end:
        raise OSError(errno.EINVAL, f"{length} bytes at {offset} reach behind the end of the disk at {end}")


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """What is wrong with the image is an error of the medium to whoever reads or writes."""
    try:
        yield
    except ImageError as error:
        raise OSError(errno.EIO, str(error)) from error
