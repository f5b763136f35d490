"""Judging one crash state: valid for qemu-img and for us, nothing acknowledged lost, nothing shown that nobody wrote.

files of the state --> check (no corruption; leaks are fine)
                   --> opened as a disk, writable: every sector shows what the history allows
                   --> written to in places, closed --> check (no corruption), content and snapshots as they must be
                   --> repaired --> check (nothing at all), content as before
"""

import random
import subprocess
from pathlib import Path

from formats.host_file import HostFile
from formats.image import Image
from formats.qcow2.check import check
from formats.qcow2.header import Header
from formats.qcow2.image import Qcow2
from formats.qcow2.structures import MAGIC, BitmapFlags, Extension, Incompatible
from formats.registry import open_chain, open_image
from tests.crash.history import History, filled
from tests.crash.recording import SECTOR
from tests.crash.states import State
from tests.crash.variants import KEY, TOP, opened
from vstore.chain import Chain
from vstore.disk import Disk

AFTER = 1 << 30  # generation of what is written after the crash


class Judge:
    """Lays states out in `folder`. What it returns are sentences, none where the state is fine."""

    def __init__(self, folder: Path, history: History) -> None:
        self._folder, self._history = folder, history
        self._top = folder / TOP
        self._complaints: list[str] = []
        self._written: dict[str, bytes] = {}

    def judge(self, state: State, *, qemu: bool) -> list[str]:
        """`qemu`: qemu-img looks too, and must agree with us."""
        self._complaints = []
        self._lay_out(state)
        try:
            self._examine(state, qemu)
        except Exception as error:  # whatever it is, it is what this state does to vstore
            self._complaints.append(f"{type(error).__name__}: {error}")
        return self._complaints

    def _lay_out(self, state: State) -> None:
        for path in self._folder.iterdir():
            if path.name not in state.files:
                path.unlink()
        for name, content in state.files.items():
            path = self._folder / name
            if self._written.get(name) != content or not path.exists():
                path.write_bytes(content)
            self._written[name] = content if name == "parent" else b""  # the others change while they are judged

    def _examine(self, state: State, qemu: bool) -> None:
        with HostFile.from_path(self._top, read_only=True) as file:
            dirty = bool(Header.read(file).incompatible & Incompatible.DIRTY)
        if not dirty:  # else who opens it recounts first, and so does qemu
            self._check("as the crash left it", qemu=qemu, leaks=True)
        expected = self._use(state)
        if qemu:
            self._check("used and closed after the crash", qemu=True, leaks=True)
        self._repair()
        if qemu:
            self._check("repaired", qemu=True, leaks=False)
        chain = open_chain("qcow2", self._top, read_only=True, secrets=[KEY])
        self._look_at_snapshots(chain, state.position)
        content = Chain(chain).compose(0, len(expected))
        if content != expected:
            self._complaints.append("the content changed when it was closed, or by the repair")
        for image in chain:
            image.close()

    def _use(self, state: State) -> bytes:
        """Looks at all of it, writes to some of it; returns what is to be read from now on."""
        bitmaps = self._believable()
        disk = Disk(*open_chain("qcow2", self._top, secrets=[KEY]))
        try:
            content = bytearray(disk.read_blocking(0, disk.length))
            self._look_at_bitmaps(bitmaps, state.position, bytes(content))
            sectors = len(content) // SECTOR
            if sectors not in self._history.length_allowed(state.position):
                self._complaints.append(f"the disk has {sectors} sectors")
            self._complaints += self._history.wrong(bytes(content), state.position)
            draw = random.Random(state.name)
            for _ in range(3):
                first, count = draw.randrange(sectors - 9), draw.randint(1, 9)
                data = filled(first, count, AFTER)
                disk.write_blocking(first * SECTOR, data)
                content[first * SECTOR : (first + count) * SECTOR] = data
        finally:
            disk.close()
        return bytes(content)

    def _believable(self) -> dict[str, set[int]]:
        """Of each bitmap that says it is true, the sectors that it says are dirty."""
        with HostFile.from_path(self._top, read_only=True) as file:
            if not Header.read(file).extension(Extension.BITMAPS):
                return {}
        found = {}
        with open_image("qcow2", self._top, read_only=True) as image:
            assert isinstance(image, Qcow2)
            for entry in image.bitmaps.entries:
                if not entry.flags & BitmapFlags.IN_USE:
                    spans = image.bitmaps.find(entry.name).dirty()
                    found[entry.name] = {
                        sector for at, length in spans for sector in range(at // SECTOR, (at + length) // SECTOR)
                    }
        return found

    def _look_at_bitmaps(self, found: dict[str, set[int]], position: int, content: bytes) -> None:
        for name, dirty in found.items():
            clean = self._history.clean(name, position, content)
            misled = sorted(set(range(len(content) // SECTOR)) - dirty - clean)
            if misled:
                self._complaints.append(f"bitmap {name} says that sectors {misled[:8]} have not changed")

    def _look_at_snapshots(self, chain: list[Image], position: int) -> None:
        top = chain[0]
        assert isinstance(top, Qcow2)
        there = {snapshot.name for snapshot in top.snapshots}
        for name, kept in self._history.snapshots.items():
            if name not in there:
                if kept.taken < position <= kept.deleting:
                    self._complaints.append(f"the snapshot {name} is gone")
                continue
            there.remove(name)
            content = Chain([top.open_snapshot(name), *chain[1:]]).compose(0, len(kept.content) * SECTOR)
            wrong = kept.wrong(content)
            self._complaints += [f"in snapshot {name} {sentence}" for sentence in wrong]
        if there:
            self._complaints.append(f"there are snapshots that nobody took: {there}")

    def _repair(self) -> None:
        """Only leaks may need it; also those of a parent that was committed to."""
        for path in self._folder.iterdir():
            with HostFile.from_path(path) as file:
                if file.pread(0, len(MAGIC)) != MAGIC:
                    continue
                report = check(file, repair="all")
            if report.corruptions or report.corruptions_fixed or report.leaks:
                self._complaints.append(f"{path.name} used, closed and repaired: {report}")

    def _check(self, when: str, *, qemu: bool, leaks: bool) -> None:
        with HostFile.from_path(self._top, read_only=True) as file:
            report, encrypted = check(file), Header.read(file).encrypted
        if report.corruptions or (report.leaks and not leaks):
            self._complaints.append(f"{when}: {sorted(report.findings)[:4]}")
        if not qemu:
            return
        # there, because it looks for data files where it runs
        argv = ["qemu-img", "check", *opened(secret=encrypted)]
        told = subprocess.run(argv, cwd=self._folder, capture_output=True, check=False)
        ours = 2 if report.corruptions else 3 if report.leaks else 0
        if told.returncode != ours:
            said = (told.stdout + told.stderr).decode()[:600]
            self._complaints.append(f"{when}: qemu-img check ends with {told.returncode}, ours is {ours}: {said}")
