"""A recording: what happened to the files of one folder, and when the guest was told what, in one order.

    recorder.so (in the processes under test) --+
                                                +--> log: 0 file, 1 write, 2 mark, 3 barrier ... --> Recording
    Marker (the guest: asked, answered) --------+

An event's number is its place in the log. A crash at position p is one after events 0 .. p - 1.
"""

import json
import os
import struct
import subprocess
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RECORDER = HERE.parents[1] / "build" / "crash" / "recorder.so"
SECTOR = 512

_RECORD = struct.Struct("<IIQQII")  # recorder.c, struct record


class Kind(IntEnum):
    """What recorder.c writes, and marks."""

    FILE = 1
    WRITE = 2
    TRUNCATE = 3
    PUNCH = 4
    ZERO = 5
    ALLOCATE = 6
    BARRIER = 7
    MARK = 8
    FAILURE = 9  # a call that was made to fail: `offset` is its kind, `length` its errno
    READ = 10


_DURABLE, _KEEP_SIZE = 1, 2


@dataclass(frozen=True, slots=True)
class Event:
    """One change of one file (offset, length in bytes), a barrier, or a mark with its words."""

    kind: Kind
    file: str = ""
    offset: int = 0
    length: int = 0
    data: bytes = b""
    durable: bool = False
    keep_size: bool = False

    def __str__(self) -> str:
        place = "" if self.kind == Kind.BARRIER else f" {self.offset:#x}+{self.length:#x}"
        return f"{self.kind.name.lower()} {self.file}{place}{' durable' if self.durable else ''}"

    @property
    def mark(self) -> dict[str, Any]:
        words: dict[str, Any] = json.loads(self.data)
        return words

    @property
    def changes(self) -> bool:
        return Kind.WRITE <= self.kind <= Kind.ALLOCATE

    @property
    def failed_barrier(self) -> bool:
        return self.kind == Kind.FAILURE and self.offset == Kind.BARRIER

    @property
    def answers(self) -> bool:
        """Whether the guest is told something, which must be true from then on."""
        return self.kind == Kind.MARK and "answer" in self.mark

    def apply(self, content: bytearray, unit: int = 0, there: list[bool] | None = None) -> None:
        """Does it to a file's bytes; with `unit`, only to those units of it that are `there`."""
        if self.kind == Kind.TRUNCATE:
            del content[self.length :]
            content.extend(bytes(self.length - len(content)))
            return
        end = self.offset + self.length
        if self.keep_size:
            end = min(end, len(content))
        if self.kind == Kind.ALLOCATE:
            content.extend(bytes(max(0, end - len(content))))
            return
        content.extend(bytes(max(0, end - len(content))))
        data = self.data if self.kind == Kind.WRITE else bytes(max(0, end - self.offset))
        if there is None:
            content[self.offset : self.offset + len(data)] = data
            return
        for part, at in _cut(self.offset, data, unit):
            if there[at // unit % len(there)]:
                content[at : at + len(part)] = part


def _cut(offset: int, data: bytes, unit: int) -> list[tuple[bytes, int]]:
    """Pieces of a write and their places, cut where the file's units begin."""
    pieces, at = [], 0
    while at < len(data):
        take = unit - (offset + at) % unit
        pieces.append((data[at : at + take], offset + at))
        at += take
    return pieces


@dataclass
class Recording:
    """`before`: the files as they were when the log began."""

    before: dict[str, bytes]
    events: list[Event]

    @classmethod
    def load(cls, folder: Path) -> "Recording":
        """Reads what `record` left in a folder."""
        before = {path.name: path.read_bytes() for path in sorted((folder / "before").iterdir())}
        return cls(before, read_log(folder / "log"))


def read_log(path: Path) -> list[Event]:
    log, at = path.read_bytes(), 0
    names: dict[int, str] = {}
    events = []
    while at < len(log):
        kind, file, offset, length, flags, payload = _RECORD.unpack_from(log, at)
        at += _RECORD.size + payload
        data = log[at - payload : at]
        if kind == Kind.FILE:
            names[file] = data.decode()
        name = names[file] if kind != Kind.MARK else ""
        event = Event(Kind(kind), name, offset, length, data, bool(flags & _DURABLE), bool(flags & _KEEP_SIZE))
        events.append(event)
    return events


class Marker:
    """Puts marks into a log; safe from any thread, and from any process."""

    def __init__(self, log: Path) -> None:
        self._descriptor = os.open(log, os.O_WRONLY | os.O_APPEND)

    def __call__(self, **words: object) -> None:
        data = json.dumps(words).encode()
        os.write(self._descriptor, _RECORD.pack(Kind.MARK, 0, 0, 0, 0, len(data)) + data)


def recorder() -> Path:
    """The library, built if need be."""
    subprocess.run(["make", "-s", "-C", str(HERE)], check=True)
    return RECORDER


@dataclass(frozen=True, slots=True)
class Fault:
    """The calls of one kind that fail: those of these numbers, counted from 0, with this errno; see recorder.c."""

    kind: Kind
    first: int
    last: int
    error: int

    @classmethod
    def parse(cls, text: str) -> "Fault":
        kind, *numbers = map(int, text.split(":"))
        return cls(Kind(kind), *numbers)

    def __str__(self) -> str:
        return f"{self.kind.value}:{self.first}:{self.last}:{self.error}"


def environment(folder: Path, *, refuse: str = "", fault: Fault | None = None) -> dict[str, str]:
    """What tells the recorder to note the doings in `folder`/files, in `folder`/log."""
    names = {"VSTORE_CRASH_FOLDER": str(folder / "files"), "VSTORE_CRASH_LOG": str(folder / "log")}
    return names | {"VSTORE_CRASH_REFUSE": refuse, "VSTORE_CRASH_FAIL": str(fault or "")}
