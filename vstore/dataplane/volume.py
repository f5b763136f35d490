"""A disk's block map over its files, with blocking I/O; the data plane's loops look into the same map."""

from typing import Any

from vstore.dataplane.native import checked, ffi, lib, made

Bytes = bytes | bytearray | memoryview


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

    def get_entry(self, block: int) -> int:
        entry = ffi.new("uint64_t *")
        checked(lib.vs_volume_get_entry(self.pointer, block, entry), f"volume_get_entry({block})")
        return int(entry[0])

    def resize(self, length: int) -> None:
        checked(lib.vs_volume_resize(self.pointer, length), f"volume_resize({length})")
        self.length = length

    def read(self, offset: int, length: int) -> bytes:
        """Blocks until done; the GIL is released meanwhile."""
        buffer = bytearray(length)
        result = lib.vs_volume_read(self.pointer, offset, ffi.from_buffer(buffer), length)
        checked(result, f"volume_read({offset}, {length})")
        return bytes(buffer)

    def write(self, offset: int, data: Bytes) -> None:
        """Blocks until the file has it; durable only after flush()."""
        source = ffi.from_buffer(data)
        result = lib.vs_volume_write(self.pointer, offset, source, len(source))
        checked(result, f"volume_write({offset}, {len(source)})")

    def zero(self, offset: int, length: int, deallocate: bool) -> None:
        result = lib.vs_volume_zero(self.pointer, offset, length, deallocate)
        checked(result, f"volume_zero({offset}, {length})")

    def flush(self) -> None:
        checked(lib.vs_volume_flush(self.pointer), "volume_flush()")

    def close(self) -> None:
        """Gives up our reference; the files are closed when no LUN uses the volume any more."""
        volume, self._volume = self._volume, None
        if volume is not None:
            lib.vs_volume_release(volume)
