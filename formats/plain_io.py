"""Reading a file through the page cache: the counterpart of `direct_io`, which needs no buffers of its own."""

import os


def read(descriptor: int, offset: int, length: int) -> bytes:
    """The bytes of the range, fewer only at the end of the file: a read may do less than it was asked for, and what it
    left out would be taken for zeros. OSError."""
    data = os.pread(descriptor, length, offset)
    if len(data) == length:
        return data
    parts = bytearray(data)
    while len(parts) < length and (part := os.pread(descriptor, length - len(parts), offset + len(parts))):
        parts += part
    return bytes(parts)
