"""StateFile: what a logical unit keeps over a restart, in one small file beside its image.

       0                              SLOT                            2 * SLOT
       +------+-----------------------+------+------------------------+
       | head | JSON: section -> text | head | JSON: section -> text  |      head: magic, generation, length, CRC-32
       +------+-----------------------+------+------------------------+

A save writes the whole state to the slot whose generation is the older one, and makes it durable: a crash in the middle
leaves the other slot as it was. The file is only ever used through one descriptor, because a target process has no
directory. It is JSON, for it is small and people may have to read it: `strings FILE`.
"""

import asyncio
import errno
import json
import os
import struct
import threading
import zlib
from collections.abc import Callable

from formats import plain_io
from vstore.scsi.kept_state import StateLost

SLOT = 1 << 20
_HEAD = struct.Struct(">8sQII")
_MAGIC = b"VSTSTATE"
_LOST = "lost"  # a section that says: what has no section was perhaps kept, and cannot be read any more

# Opens the file, and makes it if told to; None: there is none.
Opener = Callable[[bool], int | None]


class StateFile:
    """Satisfies vstore.scsi.kept_state.State. `open_file` is called when the file is needed; it is made with the first
    save. Errors: OSError, also of what the file cannot be read for."""

    def __init__(self, open_file: Opener) -> None:
        self._open = open_file
        self._saving = threading.Lock()
        self._saves: set[asyncio.Task[None]] = set()
        self._descriptor = open_file(False)
        self._generation = 0
        self._lengths = [0, 0]  # of what the slots hold, or held
        self._sections: dict[str, str] = {}
        self._lost = False
        try:
            if self._descriptor is not None:
                self._read(self._descriptor)
        except BaseException:
            self.close()
            raise

    def section(self, name: str) -> "FileSection":
        return FileSection(self, name)

    async def settle(self) -> None:
        """Returns when nothing is being saved; call it before `close`."""
        if self._saves:
            await asyncio.wait(self._saves)

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    # ---- what a section does ----------------------------------------------------------------------------

    def load(self, name: str) -> bytes | None:
        text = self._sections.get(name)
        if text is None and (self._lost or _LOST in self._sections):
            raise StateLost
        return None if text is None else text.encode()

    async def save(self, name: str, data: bytes) -> None:
        """One after the other, so that none undoes another's; to its end also when the one who waits is cancelled."""
        saving = asyncio.get_running_loop().create_task(asyncio.to_thread(self.save_blocking, name, data))
        self._saves.add(saving)
        saving.add_done_callback(self._saves.discard)
        await asyncio.shield(saving)

    def save_blocking(self, name: str, data: bytes) -> None:
        """For threads that may wait; they have ended before `close`."""
        with self._saving:
            self._write(self._sections | {name: data.decode()})

    # ---- the file ---------------------------------------------------------------------------------------

    def _read(self, descriptor: int) -> None:
        data = [plain_io.read(descriptor, number * SLOT, SLOT) for number in (0, 1)]
        self._lengths = [len(each.rstrip(b"\0")) for each in data]
        found = [slot for each in data if (slot := _slot(each))]
        if found:
            self._generation, self._sections = max(found, key=lambda slot: slot[0])
        else:
            # A file that is shorter was being made when the power failed: nobody was told that it holds anything.
            self._lost = os.fstat(descriptor).st_size > SLOT

    def _write(self, sections: dict[str, str]) -> None:
        if self._descriptor is None:
            self._descriptor = self._open(True)
        if self._descriptor is None:
            raise OSError(errno.EROFS, "there is no place for the state")
        if not self._generation:
            self._write_slot({}, 0)
        if self._lost:  # the others stay lost, also over a restart: nobody knows what they were
            sections = sections | {_LOST: ""}
        self._write_slot(sections, self._generation + 1)
        self._generation, self._sections, self._lost = self._generation + 1, sections, False

    def _write_slot(self, sections: dict[str, str], generation: int) -> None:
        assert self._descriptor is not None
        data = json.dumps(sections, indent=1, sort_keys=True).encode()
        slot = _HEAD.pack(_MAGIC, generation, len(data), _sum(generation, data)) + data
        if len(slot) > SLOT:
            raise OSError(errno.EFBIG, f"the state has {len(data)} bytes; {SLOT - _HEAD.size} are possible")
        number = generation % 2
        before, self._lengths[number] = self._lengths[number], max(self._lengths[number], len(slot))
        # Of what is no longer kept nothing stays: it may have been bytes of the disk.
        padded = slot.ljust(before, b"\0")
        if os.pwrite(self._descriptor, padded, number * SLOT) != len(padded):
            raise OSError(errno.ENOSPC, "no room for the state")
        self._lengths[number] = len(slot)
        os.fsync(self._descriptor)


class FileSection:
    """Satisfies vstore.scsi.kept_state.Section."""

    def __init__(self, file: StateFile, name: str) -> None:
        self._file, self._name = file, name

    def load(self) -> bytes | None:
        return self._file.load(self._name)

    async def save(self, data: bytes) -> None:
        await self._file.save(self._name, data)

    def save_blocking(self, data: bytes) -> None:
        self._file.save_blocking(self._name, data)


def _sum(generation: int, data: bytes) -> int:
    return zlib.crc32(data, zlib.crc32(generation.to_bytes(8)))


def _slot(data: bytes) -> tuple[int, dict[str, str]] | None:
    """Generation and sections; None: it is not whole."""
    if len(data) < _HEAD.size:
        return None
    magic, generation, length, told = _HEAD.unpack_from(data)
    text = data[_HEAD.size : _HEAD.size + length]
    if magic != _MAGIC or len(text) != length or _sum(generation, text) != told:
        return None
    sections: dict[str, str] = json.loads(text)
    return generation, sections
