"""Snapshots taken and deleted in slices while the disk is written to: they hold the moment, and nothing else breaks."""

import errno
import os
import random
from pathlib import Path

import pytest

from formats.errors import ImageInUse, UnsupportedFeature
from formats.host_file import HostFile
from formats.qcow2.deletion import Deletion
from formats.qcow2.freeze import Freeze
from formats.qcow2.image import Qcow2
from tests.formats.qcow2.oracle import assert_clean, check, open_qcow2, qemu_create
from tests.formats.qcow2.recorder import Recording
from tests.formats.qcow2.test_snapshots import GEOMETRIES, content
from tests.formats.qcow2.volume import AllocatingVolume
from tests.formats.reference import qemu_io, run

LENGTH = 3 << 20


class LiveStory:
    """A disk that is written to all the time, and what it and each of its snapshots must hold."""

    def __init__(self, path: Path, volume: AllocatingVolume, seed: str) -> None:
        self.path, self.volume = path, volume
        self.draw = random.Random(seed)
        self.now = bytearray(volume.read(0, LENGTH))
        self.kept: dict[str, bytes] = {}

    def write(self, times: int) -> None:
        for _ in range(times):
            offset = self.draw.randrange(LENGTH)
            length = min(self.draw.choice([100, 5000, 70000]), LENGTH - offset)
            if self.draw.random() < 0.3:
                data = bytes(length)
                self.volume.zero(offset, length, self.draw.random() < 0.5)
            else:
                data = self.draw.randbytes(length)
                self.volume.write(offset, data)
            self.now[offset : offset + length] = data
            if self.draw.random() < 0.3:
                self.volume.flush()

    def freeze(self, name: str) -> Freeze:
        self.volume.flush()
        return self.volume.image.freeze(name)

    def write_between(self, change: Freeze | Deletion) -> None:
        """Its steps, with some writes between them."""
        steps = 0
        while change.step():
            steps += 1
            if self.draw.random() < 20 / (20 + steps):
                self.write(1)
        self.volume.flush()

    def take(self, name: str) -> None:
        freeze = self.freeze(name)
        self.kept[name] = bytes(self.now)
        self.write_between(freeze)
        assert freeze.finish().name == name

    def delete(self, name: str) -> None:
        deletion = self.volume.image.snapshots.begin_delete(name)
        self.write_between(deletion)
        deletion.finish()
        del self.kept[name]
        while deletion.reclaim():
            if self.draw.random() < 0.1:
                self.write(1)

    def assert_right(self, directory: Path) -> None:
        self.volume.close()
        assert_clean(self.path)
        assert content(self.path, directory) == self.now
        for name, kept in self.kept.items():
            assert content(self.path, directory, name) == kept


def step_through(freeze: Freeze) -> None:
    while freeze.step():
        pass


@pytest.fixture(autouse=True)
def short_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small images have work for more than one slice."""
    monkeypatch.setattr("formats.qcow2.freeze._SLICE", 1)
    monkeypatch.setattr("formats.qcow2.deletion._SLICE", 1)
    monkeypatch.setattr("formats.qcow2.second_counts._GATHERED", 200)
    monkeypatch.setattr("formats.qcow2.second_counts._PAGES", 1)


@pytest.mark.parametrize("options", [*GEOMETRIES, {"cluster_size": 512, "refcount_bits": 8}], ids=str)
def test_a_snapshot_holds_the_moment_whatever_is_written_meanwhile(tmp_path: Path, options: dict[str, object]) -> None:
    path = tmp_path / "disk.qcow2"
    qemu_create(path, LENGTH, **options)
    story = LiveStory(path, AllocatingVolume(open_qcow2(path)), str(options))
    for name in ("one", "two", "three"):
        story.write(12)
        story.take(name)
    story.write(5)
    story.delete("two")
    story.take("four")
    story.delete("one")
    story.write(5)
    story.assert_right(tmp_path)


def test_compressed_clusters_stay_in_the_snapshot(tmp_path: Path) -> None:
    (tmp_path / "base").write_bytes(b"".join(bytes([n % 11]) * 1000 for n in range(3145)).ljust(LENGTH, b"\1"))
    path = tmp_path / "disk.qcow2"
    made = run("qemu-img", "convert", "-c", "-O", "qcow2", "-o", "cluster_size=4096", tmp_path / "base", path)
    assert made.returncode == 0
    story = LiveStory(path, AllocatingVolume(open_qcow2(path)), "compressed")
    story.take("one")
    story.write(20)
    story.take("two")
    story.delete("one")
    story.assert_right(tmp_path)


def test_bitmaps_stay_true_through_a_snapshot(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    qemu_create(path, LENGTH, cluster_size=4096)
    assert run("qemu-img", "bitmap", "--add", "-g", "4096", path, "changes").returncode == 0
    qemu_io("qcow2", path, "write 0 100k")
    story = LiveStory(path, AllocatingVolume(Qcow2(HostFile.from_path(path), track_writes=True)), "bitmaps")
    before = bytes(story.now)
    story.take("one")
    story.write(3)
    story.assert_right(tmp_path)
    with open_qcow2(path, read_only=True) as image:
        bits = image.bitmaps.find("changes").read()
    for granule in range(LENGTH // 4096):
        span = slice(granule * 4096, (granule + 1) * 4096)
        assert before[span] == story.now[span] or bits[granule // 8] >> granule % 8 & 1


@pytest.mark.parametrize("steps", [0, 1, 5, 1000])
def test_a_snapshot_given_up_leaves_nothing_behind(tmp_path: Path, steps: int) -> None:
    path = tmp_path / "disk.qcow2"
    qemu_create(path, LENGTH, cluster_size=4096)
    story = LiveStory(path, AllocatingVolume(open_qcow2(path)), str(steps))
    story.write(20)
    story.take("kept")
    freeze = story.freeze("lost")
    for _ in range(steps):
        story.write(1)
        if not freeze.step():
            break
    freeze.abandon()
    story.write(10)
    assert [snapshot.name for snapshot in story.volume.image.snapshots] == ["kept"]
    story.assert_right(tmp_path)


@pytest.mark.parametrize("verb", ["freeze", "delete"])
def test_closing_in_the_middle_leaves_nothing_behind(tmp_path: Path, verb: str) -> None:
    path = tmp_path / "disk.qcow2"
    qemu_create(path, LENGTH, cluster_size=4096)
    story = LiveStory(path, AllocatingVolume(open_qcow2(path)), verb)
    story.write(20)
    story.take("one")
    story.write(20)
    change: Freeze | Deletion = story.volume.image.snapshots.begin_delete("one")
    if verb == "freeze":
        change.abandon()
        change = story.freeze("two")
    for _ in range(6):
        change.step()
        story.write(2)
    story.assert_right(tmp_path)
    assert b"one" in run("qemu-img", "snapshot", "-l", path).stdout.encode()


def test_what_would_disturb_a_snapshot_on_its_way_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    qemu_create(path, LENGTH)
    with open_qcow2(path) as image:
        image.snapshots.take("old")
        freeze = image.freeze("new")
        for disturbance in (
            lambda: image.freeze("another"),
            lambda: image.snapshots.delete("old"),
            lambda: image.snapshots.apply("old"),
            lambda: image.resize(LENGTH * 2),
        ):
            with pytest.raises(ImageInUse, match="is being taken"):
                disturbance()
        freeze.abandon()
        image.resize(LENGTH * 2)
    assert_clean(path)


def test_counts_that_cannot_rise_end_it_and_everything_is_given_back(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    qemu_create(path, LENGTH, refcount_bits=2, cluster_size=4096)
    story = LiveStory(path, AllocatingVolume(open_qcow2(path)), "narrow")
    story.write(10)
    story.take("one")
    story.take("two")
    freeze = story.freeze("three")
    with pytest.raises(UnsupportedFeature, match="in 2 bits"):
        step_through(freeze)
    freeze.abandon()
    story.write(10)
    story.assert_right(tmp_path)


def test_without_room_it_ends_and_everything_is_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "disk.qcow2"
    qemu_create(path, LENGTH, cluster_size=4096)
    story = LiveStory(path, AllocatingVolume(open_qcow2(path)), "full")
    story.write(30)
    writer = story.volume.image.require_writer("test it")
    lengthen, end = writer.allocator._lengthen, writer.allocator.end + 1

    def bounded(clusters: int) -> None:
        if clusters > end:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        lengthen(clusters)

    freeze = story.freeze("one")
    with monkeypatch.context() as patch:
        patch.setattr(writer.allocator, "_lengthen", bounded)
        with pytest.raises(OSError, match="No space left"):
            step_through(freeze)
    freeze.abandon()
    story.write(5)
    story.take("two")
    story.assert_right(tmp_path)


class CrashStory(LiveStory):
    """Writes whole blocks only, so that a crash leaves the old or the new, and flushes after each."""

    def __init__(self, path: Path, seed: str) -> None:
        self.recording = Recording()
        super().__init__(path, AllocatingVolume(Qcow2(self.recording.watch(path))), seed)
        self.flushed = [(0, bytes(self.now))]
        self.durable: dict[str, int] = {}

    def write(self, times: int) -> None:
        for _ in range(times):
            offset = self.draw.randrange(LENGTH // 4096) * 4096
            self.now[offset : offset + 4096] = data = self.draw.randbytes(4096)
            self.volume.write(offset, data)
            self.volume.flush()
            self.flushed.append((len(self.recording.steps), bytes(self.now)))

    def take(self, name: str) -> None:
        super().take(name)
        self.durable[name] = len(self.recording.steps)

    def allowed(self, step: int) -> list[bytes]:
        """What a crash behind so many steps may leave: what was flushed last, or what is on its way."""
        last = max(n for n, (at, _) in enumerate(self.flushed) if at <= step)
        return [state for _, state in self.flushed[last : last + 2]]


@pytest.mark.parametrize("compat", ["0.10", "1.1"])
def test_a_crash_at_any_moment_leaves_no_corruption_and_all_that_was_flushed(tmp_path: Path, compat: str) -> None:
    path = tmp_path / "disk.qcow2"
    qemu_create(path, LENGTH, cluster_size=4096, compat=compat)
    before = LiveStory(path, AllocatingVolume(open_qcow2(path)), compat)
    before.write(20)
    before.take("zero")
    before.write(10)
    before.volume.close()
    story = CrashStory(path, compat)
    story.take("one")
    story.write(1)
    story.take("two")
    kept = {**story.kept}
    story.kept["zero"] = b""
    story.delete("zero")
    story.volume.close()
    for step, files in story.recording.states(random.Random(compat), 60):
        path.write_bytes(files[path.name])
        assert not check(path).get("corruptions"), step
        assert content(path, tmp_path) in story.allowed(step), step
        for name, moment in kept.items():
            if story.durable[name] <= step:
                assert content(path, tmp_path, name) == moment
