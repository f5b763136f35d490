"""A crash recorder: a HostFile that notes every change and barrier, and what a disk may hold if power fails anywhere.

    writes --> Recording --> states(): every prefix of the changes, where what no barrier has covered yet may be there
                                       whole, not at all, or in any of its sectors

A truncation or a punched range counts as a change like a write; a barrier covers its own file only.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from formats.host_file import HostFile

SECTOR = 512


@dataclass(frozen=True)
class Step:
    """One change of one file, or (kind “barrier”) what makes the changes before it durable."""

    kind: str
    file: str
    offset: int = 0
    data: bytes = b""
    length: int = 0

    def apply(self, content: bytearray, sectors: list[bool] | None = None) -> None:
        """Does it to a file's bytes; with `sectors`, only to those of it."""
        if self.kind == "truncate":
            del content[self.length :]
            content.extend(bytes(self.length - len(content)))
            return
        data = self.data if self.kind == "write" else bytes(self.length)
        if self.kind == "punch":  # keeps the file's length
            data = data[: max(0, len(content) - self.offset)]
        content.extend(bytes(max(0, self.offset + len(data) - len(content))))
        for n, at in enumerate(range(0, len(data), SECTOR)):
            if sectors is None or sectors[n % len(sectors)]:
                part = data[at : at + SECTOR]
                content[self.offset + at : self.offset + at + len(part)] = part


@dataclass
class Recording:
    """What has happened to some files since `watch`."""

    steps: list[Step] = field(default_factory=list)
    before: dict[str, bytes] = field(default_factory=dict)

    def watch(self, path: Path) -> "RecordedFile":
        """Opens a file whose changes are noted from now on."""
        self.before[path.name] = path.read_bytes()
        file = RecordedFile.from_path(path)
        file.recording, file.key = self, path.name
        return file

    def state(self, step: int, draw: random.Random | None = None) -> dict[str, bytes]:
        """The files after a crash behind `step` steps; without `draw`, all that was written has arrived."""
        contents = {name: bytearray(content) for name, content in self.before.items()}
        durable = {name: self._last_barrier(name, step) for name in contents}
        for number, change in enumerate(self.steps[:step]):
            if change.kind == "barrier":
                continue
            lost = draw is not None and number > durable[change.file]
            change.apply(contents[change.file], _some(draw) if lost and draw else None)
        return {name: bytes(content) for name, content in contents.items()}

    def _last_barrier(self, name: str, step: int) -> int:
        found = [n for n, s in enumerate(self.steps[:step]) if s.kind == "barrier" and s.file == name]
        return found[-1] if found else -1

    def states(self, draw: random.Random, most: int) -> Iterator[tuple[int, dict[str, bytes]]]:
        """At most `most` crash states with the number of steps behind each: prefixes, and random losses at each."""
        steps = range(len(self.steps) + 1)
        for step in sorted(draw.sample(steps, min(len(steps), most // 2))):
            yield step, self.state(step)
            yield step, self.state(step, draw)


def _some(draw: random.Random) -> list[bool]:
    kind = draw.random()
    if kind < 0.4:
        return [False]
    return [True] if kind < 0.7 else [draw.random() < 0.5 for _ in range(8)]


class RecordedFile(HostFile):
    """Passes everything on and notes it."""

    recording: Recording
    key: str

    def _note(self, kind: str, offset: int = 0, data: bytes = b"", length: int = 0) -> None:
        self.recording.steps.append(Step(kind, self.key, offset, bytes(data), length))

    def pwrite(self, offset: int, data: bytes) -> None:
        self._note("write", offset, data)
        super().pwrite(offset, data)

    def fdatasync(self) -> None:
        super().fdatasync()
        self._note("barrier")

    def truncate(self, length: int) -> None:
        self._note("truncate", length=length)
        super().truncate(length)

    def punch(self, offset: int, length: int) -> None:
        self._note("punch", offset, length=length)
        super().punch(offset, length)

    def zero_range(self, offset: int, length: int) -> None:
        self._note("punch", offset, length=length)
        super().zero_range(offset, length)
