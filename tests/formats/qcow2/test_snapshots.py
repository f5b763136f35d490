"""Internal snapshots, taken, applied, deleted and read by us and by qemu-img in turn."""

import json
import random
from pathlib import Path

import pytest

from formats.errors import InvalidArgument, UnsupportedFeature
from formats.host_file import HostFile
from formats.qcow2.check import check
from formats.qcow2.image import Qcow2
from formats.qcow2.structures import Incompatible
from tests.formats.qcow2.oracle import assert_clean, assert_same_map, open_qcow2, qemu_create
from tests.formats.qcow2.oracle import check as told
from tests.formats.qcow2.recorder import Recording
from tests.formats.qcow2.volume import AllocatingVolume
from tests.formats.reference import qemu_io, run

LENGTH = 3 << 20

GEOMETRIES = [
    {},
    {"compat": "0.10", "cluster_size": 4096},
    {"cluster_size": 512, "refcount_bits": 64},
    {"cluster_size": 4096, "refcount_bits": 4},
    {"cluster_size": 16384, "extended_l2": "on"},
    {"cluster_size": 2 << 20},
]


def qemu_snapshot(path: Path, option: str, name: str) -> None:
    result = run("qemu-img", "snapshot", option, name, path)
    assert result.returncode == 0, result.stderr


def content(path: Path, directory: Path, snapshot: str | None = None) -> bytes:
    options = [] if snapshot is None else ["-l", f"snapshot.name={snapshot}"]
    result = run("qemu-img", "convert", *options, "-f", "qcow2", "-O", "raw", path, directory / "raw")
    assert result.returncode == 0, result.stderr
    return (directory / "raw").read_bytes()


class Story:
    """An image with snapshots and what each of them holds."""

    def __init__(self, directory: Path, options: dict[str, object], seed: int) -> None:
        self.draw = random.Random(seed)
        self.directory, self.path = directory, directory / "disk.qcow2"
        qemu_create(self.path, LENGTH, **options)
        self.now = bytearray(LENGTH)
        self.kept: dict[str, bytes] = {}

    def write(self, volume: AllocatingVolume, times: int = 8) -> None:
        for _ in range(times):
            offset = self.draw.randrange(LENGTH)
            data = self.draw.randbytes(min(self.draw.choice([100, 5000, 70000]), LENGTH - offset))
            volume.write(offset, data)
            self.now[offset : offset + len(data)] = data
        volume.flush()

    def let_qemu_write(self) -> None:
        offset = self.draw.randrange(LENGTH - 70000)
        qemu_io("qcow2", self.path, f"write -P 77 {offset} 70000")
        self.now[offset : offset + 70000] = bytes([77]) * 70000

    def deed(self, number: int, by_qemu: bool) -> None:
        """Takes, applies or deletes one."""
        kind = self.draw.choice(["take", "take", "apply", "delete"]) if self.kept else "take"
        name = f"s{number}" if kind == "take" else self.draw.choice(sorted(self.kept))
        if by_qemu:
            qemu_snapshot(self.path, {"take": "-c", "apply": "-a", "delete": "-d"}[kind], name)
        else:
            with open_qcow2(self.path) as image:
                getattr(image.snapshots, kind)(name)
        if kind == "take":
            self.kept[name] = bytes(self.now)
        elif kind == "apply":
            self.now[:] = self.kept[name]
        else:
            del self.kept[name]

    def assert_right(self) -> None:
        assert_clean(self.path)
        assert content(self.path, self.directory) == self.now
        with open_qcow2(self.path, read_only=True) as image:
            assert [snapshot.name for snapshot in image.snapshots] == list(self.kept)
            for name, kept in self.kept.items():
                view = image.open_snapshot(name)
                volume = AllocatingVolume(view, files=image)  # type: ignore[arg-type]
                assert volume.read(0, LENGTH) == kept


@pytest.mark.parametrize("options", GEOMETRIES, ids=str)
def test_we_and_qemu_keep_each_others_snapshots(tmp_path: Path, options: dict[str, object]) -> None:
    story = Story(tmp_path, options, len(str(options)))
    for number in range(8):
        volume = AllocatingVolume(open_qcow2(story.path))
        story.write(volume)
        volume.close()
        story.deed(number, by_qemu=number % 3 == 2)
        if number % 2:
            story.let_qemu_write()
        assert_clean(story.path)
    story.assert_right()
    assert_same_map(story.path)
    for name in story.kept:
        assert content(story.path, tmp_path, name) == story.kept[name]


def test_an_image_of_compressed_clusters_keeps_them_in_snapshots(tmp_path: Path) -> None:
    (tmp_path / "base").write_bytes(b"".join(bytes([n % 11]) * 1000 for n in range(1000)).ljust(1 << 20, b"\1"))
    path = tmp_path / "disk.qcow2"
    assert run("qemu-img", "convert", "-c", "-O", "qcow2", tmp_path / "base", path).returncode == 0
    volume = AllocatingVolume(open_qcow2(path))
    volume.image.snapshots.take("one")
    volume.write(70000, b"x" * 100000)
    volume.close()
    assert_clean(path)
    with open_qcow2(path) as image:
        image.snapshots.apply("one")
    assert_clean(path)
    assert content(path, tmp_path) == (tmp_path / "base").read_bytes()
    with open_qcow2(path) as image:
        image.snapshots.delete("one")
    assert_clean(path)
    assert content(path, tmp_path) == (tmp_path / "base").read_bytes()


def test_a_snapshot_brings_its_length_back(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    qemu_create(path, 1 << 20, cluster_size=512)
    with open_qcow2(path) as image:
        image.snapshots.take("short")
        image.resize(90 << 20)
        image.snapshots.take("long")
        image.snapshots.apply("short")
        assert image.geometry.length == 1 << 20
        image.snapshots.apply("long")
        assert image.geometry.length == 90 << 20
    assert_clean(path)


def test_info_tells_snapshots_as_qemu_img_does(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    qemu_create(path, 1 << 20)
    with open_qcow2(path) as image:
        image.snapshots.take("name", now=1_700_000_000_123_456_789)
    qemu_snapshot(path, "-c", "other")
    told = json.loads(run("qemu-img", "info", "--output=json", path).stdout)
    with open_qcow2(path, read_only=True) as image:
        assert image.info() == told
    assert told["snapshots"][0]["date-sec"] == 1_700_000_000


def test_what_cannot_be_kept_is_refused_before_anything_changes(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    qemu_create(path, 1 << 20, refcount_bits=1)
    qemu_io("qcow2", path, "write 0 64k")
    with open_qcow2(path) as image:
        with pytest.raises(UnsupportedFeature, match="in 1 bits"):
            image.snapshots.take("one")
        with pytest.raises(InvalidArgument, match="no snapshot 'two'"):
            image.snapshots.delete("two")
        assert not image.header.incompatible & Incompatible.DIRTY
    assert_clean(path)


@pytest.mark.parametrize("verb", ["take", "apply", "delete"])
@pytest.mark.parametrize("compat", ["0.10", "1.1"])
def test_a_crash_in_any_verb_leaves_the_disk_of_before_or_after_and_leaks_at_worst(
    tmp_path: Path, verb: str, compat: str
) -> None:
    story = Story(tmp_path, {"cluster_size": 4096, "compat": compat}, 3)
    volume = AllocatingVolume(open_qcow2(story.path))
    story.write(volume)
    volume.image.snapshots.take("old")
    before = bytes(story.now)
    volume.image.close()
    volume = AllocatingVolume(open_qcow2(story.path))
    story.write(volume)
    volume.close()
    after = bytes(story.now)
    recording = Recording()
    with Qcow2(recording.watch(story.path)) as image:
        getattr(image.snapshots, verb)("new" if verb == "take" else "old")
    for _, files in recording.states(random.Random(verb), 30):
        story.path.write_bytes(files[story.path.name])
        assert not told(story.path).get("corruptions")
        assert content(story.path, tmp_path) in ((before, after) if verb == "apply" else (after,))
        with HostFile.from_path(story.path, read_only=True) as file:
            assert not check(file).corruptions
