"""What WRITE BUFFER writes to: buffer 0, which all nexuses share, and an echo buffer for each of them."""

from functools import cached_property
from weakref import WeakKeyDictionary

from vstore.scsi.task import ITNexus

BUFFER_BYTES, ECHO_BYTES = 64 << 10, 4096


class Buffers:
    def __init__(self) -> None:
        self.echo: WeakKeyDictionary[ITNexus, bytes] = WeakKeyDictionary()

    @cached_property
    def data(self) -> bytearray:
        """Made when it is first asked for: of most units it never is."""
        return bytearray(BUFFER_BYTES)
