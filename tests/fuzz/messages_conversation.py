"""Bytes as a conversation: honest messages of the table, lies about their values, sizes, flags and descriptors."""

import os
import random
import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any

from vstore.vhost_user.messages import MESSAGES, DeviceConfig, MemoryRegion, MemoryTable, Row
from vstore.vhost_user.structure import Structure

VRINGS = 5
MOST_MESSAGES = 60
USER, SIZE = 0x7F0000000000, 0x200000


class Draws:
    """Decisions read from bytes; past their end every decision is zero."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def left(self) -> bool:
        return self._at < len(self._data)

    def number(self, width: int = 1) -> int:
        taken = self._data[self._at : self._at + width]
        self._at += width
        return int.from_bytes(taken)

    def pick(self, *choices: Any) -> Any:
        return choices[self.number() % len(choices)]

    def chance(self, one_in: int) -> bool:
        return self.number() % one_in == one_in - 1

    def bytes(self, length: int) -> bytes:
        """Reproducible filling, of any length, from four bytes of the case."""
        return random.Random(self.number(4)).randbytes(length)


# Values that a field of this name may honestly have; a lie is an edge, or anything.
_HONEST: dict[str, Callable[[Draws], int]] = {
    "index": lambda draws: draws.number() % VRINGS,
    "num": lambda draws: draws.pick(128, 1, 0, 256),
    "flags": lambda draws: draws.pick(0, 1),
    "descriptor": lambda draws: USER + 0x1000 + 0x10000 * (draws.number() % 8),
    "available": lambda draws: USER + 0x2000 + 0x10000 * (draws.number() % 8),
    "used": lambda draws: USER + 0x3000 + 0x10000 * (draws.number() % 8),
    "log": lambda draws: 0x3000 * (draws.number() % 8),
    "guest_address": lambda draws: SIZE * (draws.number() % 4),
    "user_address": lambda draws: USER + SIZE * (draws.number() % 4),
    "size": lambda _: SIZE,
    "mmap_offset": lambda draws: draws.pick(0, SIZE),
    "offset": lambda draws: draws.pick(0, 4096),
    "value": lambda draws: draws.pick(0, 1, 2, 0x100, 0x102, 0x170000006, 0x174000006, 0xA00B, 0x8),
    "padding": lambda _: 0,
}
_EDGES = (0, 1, 2, 0xFF, 0x100, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 63, (1 << 64) - 1, USER, SIZE)


def field_value(draws: Draws, name: str) -> int:
    kind = draws.number() % 16
    if kind < 12:
        return _HONEST.get(name, lambda _: 0)(draws)
    return int(draws.pick(*_EDGES)) if kind < 15 else draws.number(8)


def structure(draws: Draws, kind: type[Structure]) -> bytes:
    limits = [1 << 8 * struct.calcsize(f"={code}") for code in kind.codec.format.lstrip("=<")]
    values = [field_value(draws, field.name) % limit for field, limit in zip(fields(kind), limits, strict=True)]  # type: ignore[arg-type]
    return kind(*values).pack()


def payload(draws: Draws, row: Row) -> bytes:
    if row.payload is MemoryTable:
        count = draws.pick(1, 2, 0, 8)
        return struct.pack("=II", count, 0) + b"".join(structure(draws, MemoryRegion) for _ in range(count))
    if row.payload is DeviceConfig:
        length = draws.pick(4, 36, 0, 1, 256)
        return struct.pack("=III", draws.pick(0, 20, 24, 36, 255, 0xFFFFFFFF), length, 0) + draws.bytes(length)
    assert issubclass(row.payload, Structure)
    return structure(draws, row.payload)


class Descriptors:
    """Descriptors of every kind that a front-end could attach."""

    def __init__(self) -> None:
        self.memory = os.memfd_create("guest memory", os.MFD_CLOEXEC)
        os.truncate(self.memory, 4 * SIZE)
        self.event = os.eventfd(0, os.EFD_NONBLOCK)
        self._short = os.memfd_create("short")
        self._null = os.open("/dev/null", os.O_RDWR)
        self._directory = os.open("/", os.O_RDONLY)
        self._pipe = os.pipe()
        self._socket = socket.socket(socket.AF_UNIX)
        self.all = (
            self.event,
            self.memory,
            self._short,
            self._null,
            self._directory,
            *self._pipe,
            self._socket.fileno(),
        )

    def close(self) -> None:
        self._socket.detach()
        for descriptor in self.all:
            os.close(descriptor)


class Conversation:
    """What one case says, message by message."""

    def __init__(self, draws: Draws, descriptors: Descriptors) -> None:
        self._draws = draws
        self._descriptors = descriptors

    def __iter__(self) -> Iterator[tuple[bytes, list[int]]]:
        draws = self._draws
        if not draws.chance(4):  # most cases begin with an honest negotiation: behind it lies most of the code
            yield message(16, 1, struct.pack("=Q", draws.pick(0xA20B, 0xA00B, 0x2009, 0))), []
            yield message(2, 1, struct.pack("=Q", 0x170000006)), []
        if not draws.chance(3):
            region = struct.pack("=QQQQQ", 0, 0, SIZE, USER, 0)
            yield message(37, 1 | 8, region), [self._descriptors.memory]
        for _ in range(MOST_MESSAGES):
            if not draws.left:
                return
            yield from self._ring() if draws.chance(6) else [self._any()]

    def _ring(self) -> Iterator[tuple[bytes, list[int]]]:
        """An honest set-up of one ring."""
        ring = self._draws.number() % VRINGS
        where = USER + 0x10000 * ring
        yield message(8, 1, struct.pack("=II", ring, 128)), []
        yield message(9, 1, struct.pack("=IIQQQQ", ring, 0, where + 0x1000, where + 0x3000, where + 0x2000, 0)), []
        yield message(12, 1, struct.pack("=Q", ring)), [self._descriptors.event]
        yield message(18, 1 | 8, struct.pack("=II", ring, 1)), []

    def _any(self) -> tuple[bytes, list[int]]:
        draws = self._draws
        row = draws.pick(*MESSAGES.values())
        body, flags, number = payload(draws, row), draws.pick(1, 9), row.id
        count = row.descriptors[draws.number() % 2]
        attached = [self._honest(row)] * count
        size = None
        match draws.number() % 64:
            case 0:
                size = draws.pick(0, len(body) + 1, 4096, 4097, 0xFFFFFFFF)
            case 1:
                body = body[: draws.number() % (len(body) + 1)]
            case 2:
                body += draws.bytes(draws.number())
            case 3:
                body = draws.bytes(len(body))
            case 4 | 5 | 6:
                attached = [draws.pick(*self._descriptors.all) for _ in range(draws.pick(1, 0, 2, 8))]
            case 7:
                attached = [self._descriptors.event] * draws.pick(9, 60)
            case 8:
                number = draws.pick(0, 19, 33, 41, 44, 1000, 0xFFFFFFFF)
            case 9:
                flags = draws.number(4)
        whole = message(number, flags, body, size)
        return whole[: draws.number() % (len(whole) + 1)] if draws.chance(100) else whole, attached

    def _honest(self, row: Row) -> int:
        return self._descriptors.event if row.payload.__name__ == "Integer" else self._descriptors.memory


def message(number: int, flags: int, body: bytes, size: int | None = None) -> bytes:
    return struct.pack("=III", number, flags, len(body) if size is None else size) + body
