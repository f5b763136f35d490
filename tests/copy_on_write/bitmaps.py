"""Bitmaps: what the persistent dirty bitmaps of the top image should say, and what qemu finds in them.

    sure       granules that were written to while the bitmap was enabled: they must be dirty
    perhaps    granules that a change of the image's structure may have written to, while the disk stayed what it was

Nothing else may be dirty. After a crash an enabled bitmap is worth nothing, and the image must say so.
"""

import json
import random
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.copy_on_write.layer import KEY, SECRET, Layer, options_of
from tests.formats.reference import run
from vstore.transfer import offline

MOST = 4
PATIENCE = 10  # seconds


@dataclass
class Marks:
    """One bitmap; granules by number."""

    granularity: int
    enabled: bool
    usable: bool = True
    sure: set[int] = field(default_factory=set)
    perhaps: set[int] = field(default_factory=set)

    def granules(self, offset: int, length: int) -> range:
        return range(offset // self.granularity, -(-(offset + length) // self.granularity))

    def spans(self) -> Iterator[tuple["set[int]", int, int]]:
        """Each granule that is or may be dirty: in which of the two sets, its offset, its length."""
        for kind in (self.sure, self.perhaps):
            for granule in kind:
                yield kind, granule * self.granularity, self.granularity

    def merge(self, other: "Marks", length: int) -> None:
        """Of a disk of `length` bytes."""
        for kind, offset, count in list(other.spans()):
            mine = self.sure if kind is other.sure else self.perhaps
            mine.update(self.granules(offset, min(count, length - offset)))

    def cut(self, length: int) -> None:
        """The disk has become so long."""
        end = -(-length // self.granularity)
        self.sure = {granule for granule in self.sure if granule < end}
        self.perhaps = {granule for granule in self.perhaps if granule < end}


class Bitmaps:
    """Those of one image, by name."""

    def __init__(self) -> None:
        self._all: dict[str, Marks] = {}

    def __len__(self) -> int:
        return len(self._all)

    def _kept(self) -> list[Marks]:
        return [marks for marks in self._all.values() if marks.enabled and marks.usable]

    def touched(self, offset: int, length: int) -> None:
        for marks in self._kept():
            marks.sure.update(marks.granules(offset, length))

    def perhaps_touched(self, offset: int, length: int) -> None:
        for marks in self._kept():
            marks.perhaps.update(marks.granules(offset, length))

    def lost(self) -> None:
        """Whoever kept them true is gone."""
        for marks in self._kept():
            marks.usable = False

    def resized(self, before: int, after: int, cluster: int) -> None:
        """What is new is not dirty, but the rest of the last cluster may have been cleared."""
        for marks in self._all.values():
            marks.cut(after)
        if after > before:
            end = min(after, -(-before // cluster) * cluster)
            self.perhaps_touched(before, end - before)

    # ---- the verbs ----

    def change(self, source: random.Random, chain: Sequence[Layer], folder: Path, length: int) -> None:
        """One at random, by us or by qemu-img; nobody has the image open."""
        ours, name = source.random() < 0.6, source.choice(sorted(self._all) or [""])
        if not name or (len(self._all) < MOST and source.random() < 0.4):
            self._add(source, chain[-1], folder, ours=ours)
            return
        usable = [other for other in sorted(self._all) if self._all[other].usable]
        verb = source.choice(["clear", "enable", "disable", "merge", "remove"]) if name in usable else "remove"
        if verb == "merge":
            other = source.choice(usable)
            self._all[name].merge(self._all[other], length)
            self._merge(chain[-1], folder, name, other, ours=ours)
            return
        self._do(chain[-1], folder, verb, name, ours=ours)
        _MEANINGS[verb](self._all, name)

    def _add(self, source: random.Random, top: Layer, folder: Path, *, ours: bool) -> None:
        name, granularity = f"b{source.randrange(1 << 30)}", 1 << source.choice([9, 9, 12, 16, 18])
        enabled = source.random() < 0.8
        self._all[name] = Marks(granularity, enabled)
        if ours:
            place = _place(top, folder)
            offline.change_bitmap(place, "add", name, granularity=granularity, enabled=enabled)
            return
        disabled = [] if enabled else ["--disable"]
        _qemu("--add", *disabled, "-g", str(granularity), "--image-opts", options_of([top], folder), name)

    @staticmethod
    def _do(top: Layer, folder: Path, verb: str, name: str, *, ours: bool) -> None:
        if ours:
            offline.change_bitmap(_place(top, folder), verb, name)
        else:
            _qemu(f"--{verb}", "--image-opts", options_of([top], folder), name)

    @staticmethod
    def _merge(top: Layer, folder: Path, name: str, other: str, *, ours: bool) -> None:
        if ours:
            offline.merge_bitmaps(_place(top, folder), name, [other])
        else:
            _qemu("--merge", other, "--image-opts", options_of([top], folder), name)

    # ---- looking ----

    def wrong(self, chain: Sequence[Layer], folder: Path) -> str:
        """A sentence about what qemu finds otherwise, or none; nobody has the image open."""
        if not self._all:
            return ""
        told = {row["name"]: row for row in _info(folder / chain[-1].name)}
        if told.keys() != self._all.keys():
            return f"there are the bitmaps {sorted(told)} instead of {sorted(self._all)}"
        for name, marks in self._all.items():
            flags = set(told[name]["flags"])
            if flags - {"auto"} != ({"in-use"} if not marks.usable else set()) or ("auto" in flags) != marks.enabled:
                return f"bitmap {name} has the flags {sorted(flags)}, and should be {marks.enabled=}, {marks.usable=}"
            if marks.usable and (wrong := self._wrong_granules(name, marks, chain, folder)):
                return wrong
        return ""

    @staticmethod
    def _wrong_granules(name: str, marks: Marks, chain: Sequence[Layer], folder: Path) -> str:
        found: set[int] = set()
        for row in _dirty(name, options_of(chain, folder), folder):
            found.update(marks.granules(row["start"], row["length"]))
        missing, extra = marks.sure - found, found - marks.sure - marks.perhaps
        if missing or extra:
            few = sorted(missing)[:8], sorted(extra)[:8]
            return f"of bitmap {name} of {marks.granularity}: not dirty {few[0]}, dirty without a reason {few[1]}"
        return ""


def _place(top: Layer, folder: Path) -> offline.Place:
    return offline.Place(str(folder / top.name), "qcow2", secrets=[KEY])


def _removed(marks: dict[str, Marks], name: str) -> None:
    del marks[name]


def _cleared(marks: dict[str, Marks], name: str) -> None:
    marks[name].sure.clear()
    marks[name].perhaps.clear()


def _enabled(marks: dict[str, Marks], name: str) -> None:
    marks[name].enabled = True


def _disabled(marks: dict[str, Marks], name: str) -> None:
    marks[name].enabled = False


_MEANINGS: dict[str, Callable[[dict[str, Marks], str], None]] = {
    "remove": _removed,
    "clear": _cleared,
    "enable": _enabled,
    "disable": _disabled,
}


def _qemu(*words: str) -> None:
    done = run("qemu-img", "bitmap", *SECRET, *words)
    assert done.returncode == 0, f"{words}: {done.stderr}"


def _info(path: Path) -> list[dict[str, Any]]:
    told = run("qemu-img", "info", "--output=json", path)
    assert told.returncode == 0, told.stderr
    rows: list[dict[str, Any]] = json.loads(told.stdout)["format-specific"]["data"].get("bitmaps", [])
    return rows


def _dirty(name: str, options: str, folder: Path) -> list[dict[str, int]]:
    """Rows (`start`, `length` in bytes) that are dirty, as an NBD client of qemu sees them."""
    socket = folder / "nbd.sock"
    argv = ["qemu-nbd", "-r", *SECRET, "-k", str(socket), "-B", name, "--image-opts", options]
    there = f"driver=nbd,server.type=unix,server.path={socket},x-dirty-bitmap=qemu:dirty-bitmap:{name}"
    end = time.monotonic() + PATIENCE
    with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True) as server:
        try:
            told = run("qemu-img", "map", "--output=json", "--image-opts", there)
            while told.returncode and server.poll() is None and time.monotonic() < end:  # nobody listens yet
                time.sleep(0.005)
                told = run("qemu-img", "map", "--output=json", "--image-opts", there)
            _, said = server.communicate(timeout=PATIENCE)  # it ends with its only client, and lets go of the image
        finally:
            server.kill()
    assert told.returncode == 0, told.stderr + said
    return [row for row in json.loads(told.stdout) if not row["data"]]
