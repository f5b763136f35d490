"""A small virtio-blk driver over the client's Transport, for back-ends that are not ours (virtio 1.2, 5.2.6)."""

import os
import struct
from typing import Self

from vstore.client.memory import Span
from vstore.client.ring import Segment
from vstore.client.transport import Transport, TransportSettings

_HEADER = struct.Struct("<IIQ")  # type, reserved, sector
_IN, _OUT, _FLUSH = 0, 1, 4
_OK = b"\0"
SECTOR = 512


class BlkProbe:
    """Reads, writes and flushes by sector; `segment_bytes`: most bytes that one descriptor covers."""

    def __init__(
        self, path: str | os.PathLike[str], settings: TransportSettings, *, queues: int = 1, segment_bytes: int = 4096
    ) -> None:
        self.transport = Transport(path, queues, settings, wanted=1 << 9)  # VIRTIO_BLK_F_FLUSH
        self._segment_bytes = segment_bytes
        self._in_flight: dict[tuple[int, int], tuple[Span, int, int]] = {}  # by queue and head
        self._done: dict[int, tuple[bytes, int]] = {}  # by the number that submit gave
        self._last_number = 0

    def submit(
        self, kind: int, sector: int, data: bytes = b"", room: int = 0, *, queue: int = 0, publish: bool = True
    ) -> int:
        """The number to `finish` the request by."""
        memory = self.transport.memory
        buffer = memory.allocate(_HEADER.size + len(data) + room + 1)
        memory.write(buffer.address, _HEADER.pack(kind, 0, sector) + data)
        memory.write(buffer.end - 1, b"\xff")
        parts = [(_HEADER.size, False), (len(data), False), (room, True), (1, True)]
        head = self.transport.add(queue, self._segments(buffer.address, parts))
        self._last_number += 1
        self._in_flight[queue, head] = buffer, room, self._last_number
        if publish:
            self.transport.publish(queue)
        return self._last_number

    def submit_read(self, sector: int, length: int, **options: int) -> int:
        return self.submit(_IN, sector, room=length, queue=options.get("queue", 0))

    def submit_write(self, sector: int, data: bytes, **options: int) -> int:
        return self.submit(_OUT, sector, data, queue=options.get("queue", 0))

    def finish(self, number: int) -> bytes:
        """Data of a read; b"" of a write."""
        while number not in self._done:
            assert self._poll(), "the back-end completed nothing for 10 s"
        data, used_length = self._done.pop(number)
        assert used_length == len(data) + 1, f"used length {used_length} for {len(data)} bytes and a status"
        return data

    def read(self, sector: int, length: int) -> bytes:
        return self.finish(self.submit_read(sector, length))

    def write(self, sector: int, data: bytes) -> None:
        self.finish(self.submit_write(sector, data))

    def flush(self) -> None:
        self.finish(self.submit(_FLUSH, 0))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.transport.close()

    def _segments(self, address: int, parts: list[tuple[int, bool]]) -> list[Segment]:
        segments = []
        for length, device_writes in parts:
            end = address + length
            while address < end:
                count = min(self._segment_bytes, end - address)
                segments.append(Segment(address, count, device_writes))
                address += count
        return segments

    def _poll(self) -> bool:
        found = self.transport.poll(10)
        for queue, used in found:
            buffer, room, number = self._in_flight.pop((queue, used.head))
            data = self.transport.memory.read(buffer.end - 1 - room, room + 1)
            self.transport.memory.release(buffer)
            assert data[-1:] == _OK, f"virtio-blk status {data[-1]}"
            self._done[number] = data[:-1], used.length
        return bool(found)
