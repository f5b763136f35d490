"""A disk's block map over its files, with blocking I/O; the data plane's loops look into the same map."""

import contextlib
import errno
import struct
from array import array
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from vstore.dataplane.native import checked, failure, ffi, lent, lib, made

Bytes = bytes | bytearray | memoryview
_CHANGE = struct.Struct("=6Q")
_SPARE_ROOM = 64  # changes that come while a commit begins


class Allocation(NamedTuple):
    """How a volume makes new blocks: the fields are those of vs_allocation in dataplane.h."""

    sub_shift: int
    keeps_masks: bool
    own_layers: int
    identity: int
    batch_limit: int
    keeps_places: bool
    zero_entry: int


class MapChange(NamedTuple):
    """One change that a commit has to make durable: the fields are those of vs_change in dataplane.h."""

    block: int
    blocks: int
    entry: int
    allocated: int
    zero: int
    unused: int


class Partial(NamedTuple):
    """What a PARTIAL block is loaded with: the fields are those of vs_partial in dataplane.h."""

    beneath: int
    allocated: int
    zero: int
    shared: bool


class Volume:
    """`length` bytes in blocks of `block_size` (a power of two from 512 on). Raises OSError."""

    def __init__(self, length: int, block_size: int) -> None:
        if block_size < 512 or block_size & (block_size - 1):
            raise ValueError(f"block size {block_size}: must be a power of two, 512 or more")
        call = f"volume_new({length}, {block_size})"
        self._volume = made(lib.vs_volume_new(length, block_size.bit_length() - 1), call)
        self.length = length

    @property
    def pointer(self) -> Any:
        """For Device.lun_set, which takes a reference of its own."""
        if self._volume is None:
            raise ValueError("the volume is closed")
        return self._volume

    def set_layer(self, layer: int, descriptor: int, flags: int, alignment: int) -> None:
        """The descriptor is duplicated; flags are formats.image.LayerKind, alignment what O_DIRECT needs (else 1)."""
        result = lib.vs_volume_set_layer(self.pointer, layer, descriptor, flags, alignment)
        checked(result, f"volume_set_layer({layer}, flags {flags:#x}, alignment {alignment})")

    def set_run(self, first: int, count: int, entry: int) -> None:
        """Blocks first .. first+count-1 lie in a row from `entry` on."""
        result = lib.vs_volume_set_run(self.pointer, first, count, entry)
        checked(result, f"volume_set_run({first}, {count}, {entry:#x})")

    def set_entries(self, first: int, entries: "array[int]") -> None:
        """The same, one 64-bit entry for each block from `first` on; each page of 512 at once or not at all."""
        words = ffi.from_buffer("uint64_t[]", entries)
        call = f"volume_set_entries({first}, {len(words)} entries)"
        checked(lib.vs_volume_set_entries(self.pointer, first, len(words), words), call)

    def set_map_limit(self, length: int) -> None:
        """Bytes of memory that the map may take, from 1 MiB on; blocks not looked at for long are NOT_LOADED again."""
        checked(lib.vs_volume_set_map_limit(self.pointer, length), f"volume_set_map_limit({length})")

    def trim(self) -> None:
        """Keeps the map to its limit also where writes have opened pages of it. Never while another thread loads."""
        checked(lib.vs_volume_trim(self.pointer), "volume_trim()")

    def forget(self) -> None:
        """All blocks are NOT_LOADED again. OSError (EBUSY) unless quiesced, with nothing that waits for a commit."""
        checked(lib.vs_volume_forget(self.pointer), "volume_forget()")

    def get_entry(self, block: int) -> int:
        entry = ffi.new("uint64_t *")
        checked(lib.vs_volume_get_entry(self.pointer, block, entry), f"volume_get_entry({block})")
        return int(entry[0])

    def not_loaded(self, first: int, count: int) -> tuple[int, int] | None:
        """First block and number of the first row of NOT_LOADED ones in this range, if there is one."""
        row = ffi.new("uint64_t[2]", [first, count])
        found = lib.vs_volume_not_loaded(self.pointer, row, row + 1)
        return (int(row[0]), int(row[1])) if checked(found, f"volume_not_loaded({first}, {count})") else None

    def resize(self, length: int) -> None:
        checked(lib.vs_volume_resize(self.pointer, length), f"volume_resize({length})")
        self.length = length

    def read(self, offset: int, length: int) -> bytes:
        """Blocks until done; the GIL is released meanwhile."""
        buffer = bytearray(length)
        result = lib.vs_volume_read(self.pointer, offset, ffi.from_buffer(buffer), length)
        checked(result, f"volume_read({offset}, {length})")
        return bytes(buffer)

    def read_over(self, offset: int, composed: Bytes) -> bytes:
        """As `read`, where what is COMPRESSED is taken from `composed`."""
        buffer = bytearray(composed)
        result = lib.vs_volume_read_over(self.pointer, offset, ffi.from_buffer(buffer), len(buffer))
        checked(result, f"volume_read_over({offset}, {len(buffer)})")
        return bytes(buffer)

    def write(self, offset: int, data: Bytes) -> None:
        """Blocks until the file has it; durable only after flush()."""
        with lent(data) as source:
            result = lib.vs_volume_write(self.pointer, offset, source, len(source))
        checked(result, f"volume_write({offset}, {len(data)})")

    def zero(self, offset: int, length: int, deallocate: bool) -> None:
        result = lib.vs_volume_zero(self.pointer, offset, length, deallocate)
        checked(result, f"volume_zero({offset}, {length})")

    def status(self, offset: int, length: int) -> tuple[int, int]:
        """For how many bytes from `offset` on it is so: 0: no room on the host, and zeros; 1: room; 2: room, and zeros.
        OSError (ENODATA) where the map must be loaded."""
        found = ffi.new("uint64_t *", length)
        status = checked(lib.vs_volume_status(self.pointer, offset, found), f"volume_status({offset}, {length})")
        return int(found[0]), int(status)

    def flush(self) -> None:
        checked(lib.vs_volume_flush(self.pointer), "volume_flush()")

    def lost(self, layer: int, error: int = 0) -> int:
        """The errno of a flush that lost writes to this layer, 0 if none did; `error` notes one, for good."""
        return checked(lib.vs_volume_lost(self.pointer, layer, error), f"volume_lost({layer}, {error})")

    def drain(self) -> None:
        """Returns when all I/O that was under way has ended, so that places which the map named before are free."""
        checked(lib.vs_volume_drain(self.pointer), "volume_drain()")

    def quiesce(self) -> None:
        """From its return to `resume` nothing writes to the disk: those that begin wait, also in the calling thread."""
        checked(lib.vs_volume_quiesce(self.pointer), "volume_quiesce()")

    def resume(self) -> None:
        """Ends what `quiesce` began."""
        checked(lib.vs_volume_resume(self.pointer), "volume_resume()")

    @contextlib.contextmanager
    def held(self, offset: int, length: int, *, exclusive: bool = False) -> Iterator[None]:
        """Inside, only this thread writes to the range; who else wants to waits. OSError (EINVAL) outside the disk."""
        checked(lib.vs_volume_hold(self.pointer, offset, length, exclusive), f"volume_hold({offset}, {length})")
        try:
            yield
        finally:
            checked(lib.vs_volume_release_hold(self.pointer, offset, length), f"volume_release_hold({offset})")

    # ---- what writes touch ----

    def track(self, granularity: int) -> None:
        """From now on it is noted which pieces of this many bytes writes touch. OSError (EBUSY) unless quiesced."""
        checked(lib.vs_volume_track(self.pointer, granularity.bit_length() - 1), f"volume_track({granularity})")

    def tracked(self) -> Iterator[tuple[int, int]]:
        """Offset and length of what was touched since `track`. OSError (ENOMEM) where that could not be noted."""
        offset, length = ffi.new("uint64_t *"), ffi.new("uint64_t *")
        while checked(lib.vs_volume_tracked(self.pointer, offset, length), "volume_tracked()"):
            yield int(offset[0]), int(length[0])
            offset[0] += length[0]

    # ---- copy-on-write ----

    def allocates(self, allocation: Allocation) -> None:
        """From now on writes to HOLE, ZERO and SHARED blocks take new ones."""
        settings = ffi.new("vs_allocation *", allocation._asdict())
        checked(lib.vs_volume_allocates(self.pointer, settings), f"volume_allocates({allocation})")

    def give(self, layer: int, offset: int, blocks: int, *, zeroed: bool) -> None:
        """Room for new blocks; `zeroed`: it reads as zeros now."""
        result = lib.vs_volume_give(self.pointer, layer, offset, blocks, zeroed)
        checked(result, f"volume_give({layer}, {offset}, {blocks})")

    def take_back(self) -> list[tuple[int, int, int]]:
        """What is left of the window: (layer, offset, blocks)."""
        layer, offset, blocks = ffi.new("uint32_t *"), ffi.new("uint64_t *"), ffi.new("uint64_t *")
        left = []
        while lib.vs_volume_take_back(self.pointer, layer, offset, blocks):
            left.append((int(layer[0]), int(offset[0]), int(blocks[0])))
        return left

    def notice_fd(self) -> int:
        """Readable when the window is half used or the batch is full."""
        return int(lib.vs_volume_notice_fd(self.pointer))

    @property
    def pending(self) -> int:
        """Blocks that the next commit will name."""
        return int(lib.vs_volume_pending(self.pointer))

    def commit_begin(self) -> tuple[list[MapChange], OSError | None]:
        """All changes since the last commit, ready to be told; blocks while they are filled. And what kept others from
        being so, which are in the next batch."""
        room, count, failed = 0, -errno.E2BIG, ffi.new("int *")
        while count == -errno.E2BIG:  # others write between the two calls
            room = max(2 * room, self.pending + _SPARE_ROOM)
            changes = ffi.new("vs_change[]", room)
            count = lib.vs_volume_commit_begin(self.pointer, changes, room, failed)
        call = f"volume_commit_begin({room})"
        checked(count, call)
        words = ffi.buffer(changes)[0 : count * _CHANGE.size]
        return [MapChange(*row) for row in _CHANGE.iter_unpack(words)], failure(failed[0], call)

    def commit_end(self, *, committed: bool) -> None:
        checked(lib.vs_volume_commit_end(self.pointer, committed), "volume_commit_end()")

    def replace(self, block: int, data: Bytes) -> bool:
        """A COMPRESSED block's bytes take a place of their own; False: it is not COMPRESSED any more."""
        with lent(data) as source:
            result = lib.vs_volume_replace(self.pointer, block, source, len(source))
        return result != -errno.EAGAIN and not checked(result, f"volume_replace({block})")

    @property
    def window(self) -> int:
        """Blocks left in the window."""
        return int(lib.vs_volume_window(self.pointer))

    def set_partials(self, first: int, entries: "array[int]", partials: Sequence[Partial]) -> None:
        """As `set_entries`, of one page; a row for each PARTIAL block."""
        words = ffi.from_buffer("uint64_t[]", entries)
        rows = ffi.new("vs_partial[]", partials)
        call = f"volume_set_partials({first}, {len(words)} entries)"
        checked(lib.vs_volume_set_partials(self.pointer, first, len(words), words, rows), call)

    def copy_up(self, offset: int, data: Bytes) -> None:
        """Whole units of one block that show a compressed parent get these bytes, its own."""
        with lent(data) as source:
            result = lib.vs_volume_copy_up(self.pointer, offset, source, len(source))
        checked(result, f"volume_copy_up({offset})")

    def close(self) -> None:
        """Gives up our reference; the files are closed when no LUN uses the volume any more."""
        volume, self._volume = self._volume, None
        if volume is not None:
            lib.vs_volume_release(volume)
