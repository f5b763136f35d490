"""A guest that uses a disk of one variant: four threads at once, and edits of the image's structure between.

The threads meet in the same blocks, but never in one sector at a time. What is asked for and what is answered goes into
the log as marks.
"""

import contextlib
import itertools
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from formats.host_file import HostFile
from formats.image import Discard, Reference
from formats.qcow2.bitmaps import Bitmaps
from formats.qcow2.check import check
from formats.qcow2.image import Qcow2
from formats.qcow2.snapshots import Snapshots
from formats.registry import open_chain, open_image
from tests.crash.history import ZEROS, filled, pattern, told
from tests.crash.recording import SECTOR, Marker
from tests.crash.variants import KEY, TOP, Variant
from vstore.disk import Disk
from vstore.transfer.commit import commit
from vstore.transfer.rebase import rebase

THREADS = 4
PHASES = 5
REQUESTS = 8  # of each thread in a phase
THINKING = 0.003  # seconds at most, before each request

Row = tuple[int, int]  # first sector and number of sectors


class Rows:
    """Rows of sectors that are in use; no two of them meet."""

    def __init__(self) -> None:
        self._busy: list[Row] = []
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def claim(self, draw: random.Random, sectors: int, block: int) -> Iterator[Row]:
        """One at random: a few sectors, whole blocks, or anything. `block` is in sectors."""
        with self._lock:
            row = _row(draw, sectors, block)
            while any(row[0] < first + count and first < sum(row) for first, count in self._busy):
                row = _row(draw, sectors, block)
            self._busy.append(row)
        try:
            yield row
        finally:
            with self._lock:
                self._busy.remove(row)


def _row(draw: random.Random, sectors: int, block: int) -> Row:
    kind = draw.random()
    if kind < 0.4:
        count = draw.randint(1, 3)
    elif kind < 0.7:
        count = block * draw.randint(1, max(1, 64 // block))
    else:
        count = draw.randint(1, 80)
    count = min(count, sectors // 3)
    first = draw.randrange(sectors - count + 1)
    return (first // block * block if 0.4 <= kind < 0.7 else first), count


class Shown:
    """The generations that a reader may see in each sector, as far as they are known."""

    def __init__(self) -> None:
        self._generations: dict[int, set[int]] = {}

    def forget(self) -> None:
        self._generations.clear()

    @contextlib.contextmanager
    def changing(self, first: int, count: int, generation: int) -> Iterator[None]:
        """What fails may have been done in part, or not at all."""
        try:
            yield
        except BaseException:
            for sector in range(first, first + count):
                if sector in self._generations:
                    self._generations[sector].add(generation)
            raise
        self._generations.update((sector, {generation}) for sector in range(first, first + count))

    def wrong(self, first: int, data: bytes) -> str:
        """A sentence about a sector that shows anything else, or none."""
        for sector in range(first, first + len(data) // SECTOR):
            shown = data[(sector - first) * SECTOR : (sector - first + 1) * SECTOR]
            generations = self._generations.get(sector)
            if generations is not None and shown not in [pattern(sector, one) for one in generations]:
                return f"sector {sector} shows {told(shown)}, and was read where generations {generations} may be"
        return ""


class Guest:
    """One disk and who uses it."""

    def __init__(self, folder: Path, variant: Variant, seed: str) -> None:
        self._files, self._variant = folder / "files", variant
        self._mark = Marker(folder / "log")
        self._draw = random.Random(f"{variant.name}:{seed}")
        self._numbers = itertools.count(1)
        self._rows, self._shown = Rows(), Shown()
        self._bitmaps = [f"by-{granularity}" for granularity in variant.bitmaps]
        self._snapshots = [f"before-{n}" for n in range(variant.snapshots)]
        self._open()

    def _open(self) -> None:
        images = open_chain("qcow2", self._files / TOP, secrets=[KEY])
        images[0].place_discarded(Discard(self._variant.discard))
        self._disk = Disk(*images)
        self._shown.forget()

    def run(self) -> None:
        for phase in range(PHASES):
            self._use_a_while()
            if phase < PHASES - 1:
                getattr(self, f"_{self._draw.choice(self._variant.verbs)}")()
        self._close()

    def _use_a_while(self) -> None:
        with self._together([self._use] * THREADS):
            pass

    @contextlib.contextmanager
    def _together(self, users: list[Callable[[float], None]]) -> Iterator[None]:
        """Runs each in a thread, with a seed of its own, beside the caller's block."""
        users = [*users, self._keep_and_forget] if self._variant.live else users
        threads = [threading.Thread(target=user, args=(self._draw.random(),)) for user in users]
        for thread in threads:
            thread.start()
        yield
        for thread in threads:
            thread.join()

    @contextlib.contextmanager
    def _asked(self, verb: str, **words: object) -> Iterator[int]:
        """From the question to the answer; what fails is never answered, and ends the run."""
        number = next(self._numbers)
        self._mark(ask=number, verb=verb, **words)
        yield number
        self._mark(answer=number)

    # one thread

    def _use(self, seed: float) -> None:
        draw = random.Random(seed)
        flushes = draw.random() < 0.5  # else all threads soon wait for the same flush, and nobody meets it
        for _ in range(REQUESTS):
            time.sleep(draw.uniform(0, THINKING))
            kind = draw.random()
            if kind < 0.55:
                self._write(draw, fua=kind < 0.05 and flushes)
            elif kind < 0.75:
                self._zero(draw, deallocate=kind < 0.65)
            elif kind < 0.85 or not flushes:
                self._read(draw)
            else:
                self._flush()

    def _write(self, draw: random.Random, *, fua: bool) -> None:
        with self._claim(draw) as (first, count):
            generation = next(self._numbers)
            words = {"first": first, "count": count, "generation": generation, "fua": fua}
            with self._asked("write", **words), self._shown.changing(first, count, generation):
                self._disk.write_blocking(first * SECTOR, filled(first, count, generation))
                if fua:
                    self._disk.flush_blocking()

    def _zero(self, draw: random.Random, *, deallocate: bool) -> None:
        with self._claim(draw) as (first, count):
            words = {"first": first, "count": count, "generation": ZEROS}
            with self._asked("zero", **words), self._shown.changing(first, count, ZEROS):
                self._disk.write_zeroes_blocking(first * SECTOR, count * SECTOR, deallocate=deallocate)

    def _read(self, draw: random.Random) -> None:
        with self._claim(draw) as (first, count):
            wrong = self._shown.wrong(first, self._read_at(first * SECTOR, count * SECTOR))
        if wrong:
            raise AssertionError(wrong)

    def _read_at(self, offset: int, length: int) -> bytes:
        return self._disk.read_blocking(offset, length)

    def _keep_and_forget(self, seed: float) -> None:
        """Takes a snapshot, or deletes one, while the others write."""
        draw = random.Random(seed)
        for _ in range(2):
            names = [kept.name for kept in self._disk.snapshots()]
            if draw.random() < 0.4 and names:
                name = draw.choice(names)
                with self._asked("delete", name=name):
                    self._disk.delete_snapshot(name)
            else:
                name = f"live-{next(self._numbers)}"
                with self._asked("snapshot", name=name):
                    self._disk.snapshot(name)

    def _claim(self, draw: random.Random) -> contextlib.AbstractContextManager[Row]:
        return self._rows.claim(draw, self._disk.length // SECTOR, self._variant.cluster_size // SECTOR)

    def _flush(self) -> None:
        with self._asked("flush"):
            self._disk.flush_blocking()

    # between

    def _close(self) -> None:
        with self._asked("close"):
            self._disk.close()

    def _reopen(self) -> None:
        self._close()
        self._open()

    def _resize(self) -> None:
        sectors = self._draw.randint(self._variant.sectors // 2, self._variant.sectors * 3 // 2)
        self._shown.forget()
        with self._asked("resize", sectors=sectors):
            self._disk.resize(sectors * SECTOR)

    def _snapshot(self) -> None:
        name = f"taken-{next(self._numbers)}"
        self._offline("snapshot", name, lambda snapshots: snapshots.take(name))
        self._snapshots.append(name)

    def _apply(self) -> None:
        if self._snapshots:
            name = self._draw.choice(self._snapshots)
            self._offline("apply", name, lambda snapshots: snapshots.apply(name))

    def _delete(self) -> None:
        if self._snapshots:
            name = self._snapshots.pop(self._draw.randrange(len(self._snapshots)))
            self._offline("delete", name, lambda snapshots: snapshots.delete(name))

    def _commit(self) -> None:
        """What the overlay has goes into its parent, and the guest sees nothing of it."""
        self._close()
        overlay = open_image("qcow2", self._files / TOP)
        assert overlay.backing is not None
        parents = open_chain(overlay.backing.format or "", self._files / overlay.backing.name)
        with self._asked("move"):
            commit([overlay, *parents])
        self._open()

    def _rebase(self) -> None:
        """To the other parent, which holds something else, or back."""
        self._close()
        chain = open_chain("qcow2", self._files / TOP)
        old = chain[0].backing
        name, format = ("other", "raw") if old and old.name == "parent" else ("parent", self._variant.parent)
        with self._asked("move"):
            parents = open_chain(format, self._files / name, read_only=True)
            rebase(chain, parents, Reference(name, format))
        for image in parents:
            image.close()
        self._open()

    def _offline(self, verb: str, name: str, edit: Callable[[Snapshots], object]) -> None:
        self._close()
        with self._opened() as image, self._asked(verb, name=name):
            edit(image.snapshots)
        self._open()

    def _opened(self) -> Qcow2:
        """The image alone."""
        image = open_image("qcow2", self._files / TOP)
        assert isinstance(image, Qcow2)
        image.unlock([KEY])
        return image

    def _abandon(self) -> None:
        """The process that has the disk is gone: what it had reserved has leaked, what it counted late is wrong. Then
        the image is repaired. What could not be flushed is gone with the process, as where a close fails."""
        with self._asked("close"):
            self._disk.flush_blocking()
        abandoned(self._disk)
        with HostFile.from_path(self._files / TOP) as file, self._asked("move"):
            check(file, repair="all")
        self._open()

    def _add_bitmap(self) -> None:
        name = f"added-{next(self._numbers)}"
        self._on_bitmaps("bitmap", name, lambda bitmaps: bitmaps.add(name, granularity=self._draw.choice([512, 4096])))
        self._bitmaps.append(name)

    def _clear_bitmap(self) -> None:
        if self._bitmaps:
            name = self._draw.choice(self._bitmaps)
            self._on_bitmaps("bitmap", name, lambda bitmaps: bitmaps.clear(name))

    def _remove_bitmap(self) -> None:
        if self._bitmaps:
            name = self._bitmaps.pop(self._draw.randrange(len(self._bitmaps)))
            self._on_bitmaps("move", name, lambda bitmaps: bitmaps.remove(name))

    def _on_bitmaps(self, verb: str, name: str, edit: Callable[[Bitmaps], None]) -> None:
        self._close()
        with self._opened() as image, self._asked(verb, name=name):
            edit(image.bitmaps)
        self._open()


def abandoned(disk: Disk) -> None:
    """Lets go of a disk as the end of its process does."""
    if disk._keeper:
        disk._keeper.stop()
    disk._closed = True
    disk._threads.shutdown()
    disk.volume.close()
    if isinstance(disk.image, Qcow2):
        disk.image.writer = None
    disk._close_images()
