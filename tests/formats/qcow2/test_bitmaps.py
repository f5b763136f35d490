"""Persistent bitmaps: what qemu has marked is what we read, and what we have marked is what qemu merges."""

import json
import random
from pathlib import Path

import pytest

from formats.errors import InvalidArgument, UnsupportedFeature
from formats.host_file import HostFile
from formats.qcow2.image import Qcow2
from formats.qcow2.structures import BitmapFlags
from tests.formats.qcow2.oracle import assert_clean, open_qcow2, qemu_create
from tests.formats.qcow2.recorder import Recording
from tests.formats.qcow2.volume import AllocatingVolume
from tests.formats.reference import qemu_io, run

LENGTH = (9 << 20) + 512


def make(path: Path, granularity: int, cluster_size: int = 512) -> None:
    qemu_create(path, LENGTH, cluster_size=cluster_size)
    added = run("qemu-img", "bitmap", "--add", "-g", str(granularity), path, "changes")
    assert added.returncode == 0, added.stderr


def dirty(path: Path) -> set[int]:
    """Dirty granules as we read them."""
    with open_qcow2(path, read_only=True) as image:
        bitmap = image.bitmaps.find("changes")
        assert not bitmap.entry.flags & BitmapFlags.IN_USE
        bits = bitmap.read()
        return {n for n in range(bitmap.bits) if bits[n // 8] >> n % 8 & 1}


def told(path: Path) -> list[dict[str, object]]:
    info = json.loads(run("qemu-img", "info", "--output=json", path).stdout)
    bitmaps: list[dict[str, object]] = info["format-specific"]["data"]["bitmaps"]
    return bitmaps


@pytest.mark.parametrize("granularity", [512, 65536])
def test_what_qemu_has_written_is_dirty(tmp_path: Path, granularity: int) -> None:
    make(tmp_path / "disk", granularity)
    qemu_io("qcow2", tmp_path / "disk", "write 70000 100000", f"write {LENGTH - 512} 512")
    span = range(70000 // granularity, (170000 - 1) // granularity + 1)
    assert dirty(tmp_path / "disk") == {*span, (LENGTH - 512) // granularity}


@pytest.mark.parametrize("granularity", [512, 65536])
def test_what_we_write_is_dirty_for_qemu_which_merges_it(tmp_path: Path, granularity: int) -> None:
    path = tmp_path / "disk"
    make(path, granularity)
    qemu_io("qcow2", path, "write 1M 100k")
    draw = random.Random(granularity)
    expected = set(range((1 << 20) // granularity, ((1 << 20) + 102399) // granularity + 1))
    volume = AllocatingVolume(Qcow2(HostFile.from_path(path), track_writes=True))
    for _ in range(50):
        offset = draw.randrange(LENGTH)
        length = min(draw.choice([1, 512, 40000]), LENGTH - offset)
        volume.write(offset, b"x" * length)
        expected |= set(range(offset // granularity, (offset + length - 1) // granularity + 1))
    volume.close()
    assert_clean(path)
    assert told(path) == [{"name": "changes", "granularity": granularity, "flags": ["auto"]}]
    assert dirty(path) == expected
    assert run("qemu-img", "bitmap", "--add", "-g", str(granularity), "--disable", path, "copy").returncode == 0
    assert run("qemu-img", "bitmap", "--merge", "changes", path, "copy").returncode == 0
    with open_qcow2(path, read_only=True) as image:
        bits = image.bitmaps.find("copy").read()
    assert {n for n in range(len(bits) * 8) if bits[n // 8] >> n % 8 & 1} == expected


def test_a_bitmap_that_is_not_tracked_is_given_up_and_nothing_leaks(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    make(path, 65536)
    assert run("qemu-img", "bitmap", "--add", "--disable", path, "frozen").returncode == 0
    volume = AllocatingVolume(open_qcow2(path))
    volume.write(0, b"x")
    volume.close()
    flags = {str(bitmap["name"]): bitmap["flags"] for bitmap in told(path)}
    assert flags == {"changes": ["in-use", "auto"], "frozen": []}
    assert_clean(path)


def test_after_a_crash_the_bitmap_is_marked(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    make(path, 65536)
    image = Qcow2(HostFile.from_path(path, lock=False), track_writes=True)
    image.touched(0, 1)
    assert told(path)[0]["flags"] == ["in-use", "auto"]
    image.close()
    assert told(path)[0]["flags"] == ["auto"]


def test_bitmaps_that_another_program_made_worthless_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    make(path, 65536)
    with path.open("r+b") as file:  # as one does that clears all autoclear bits
        file.seek(88)
        file.write(bytes(8))
    with open_qcow2(path) as image:
        assert not image.bitmaps.entries
        with pytest.raises(InvalidArgument, match="no bitmap 'changes'"):
            image.bitmaps.find("changes")
    assert "bitmaps" not in json.loads(run("qemu-img", "info", "--output=json", path).stdout)["format-specific"]["data"]


# ---- the verbs ----


def tracked(path: Path) -> Qcow2:
    return Qcow2(HostFile.from_path(path), track_writes=True)


def granules(image: Qcow2, name: str) -> set[int]:
    bitmap = image.bitmaps.find(name)
    bits = bitmap.read()
    return {n for n in range(bitmap.bits) if bits[n // 8] >> n % 8 & 1}


def names(path: Path) -> list[str]:
    data = json.loads(run("qemu-img", "info", "--output=json", path).stdout)["format-specific"]["data"]
    return [bitmap["name"] for bitmap in data.get("bitmaps", [])]


def test_what_we_add_remove_and_switch_is_what_qemu_sees(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    qemu_create(path, LENGTH)
    with tracked(path) as image:
        image.bitmaps.add("one")
        image.bitmaps.add("two", granularity=4096, enabled=False)
        image.bitmaps.add("three", granularity=512)
        image.touched(1 << 20, 1)
        image.bitmaps.disable("one")
        image.touched(2 << 20, 1)
        image.bitmaps.enable("two")
        image.touched(3 << 20, 1)
    assert_clean(path)
    assert told(path) == [
        {"name": "one", "granularity": 65536, "flags": []},
        {"name": "two", "granularity": 4096, "flags": ["auto"]},
        {"name": "three", "granularity": 512, "flags": ["auto"]},
    ]
    with tracked(path) as image:
        assert granules(image, "one") == {16}
        assert granules(image, "two") == {3 << 20 >> 12}
        assert granules(image, "three") == {1 << 20 >> 9, 2 << 20 >> 9, 3 << 20 >> 9}
        image.bitmaps.clear("three")
        image.bitmaps.remove("one")
    assert names(path) == ["two", "three"]
    assert_clean(path)
    with tracked(path) as image:
        assert granules(image, "three") == set()
        image.bitmaps.remove("two")
        image.bitmaps.remove("three")
        assert len(image.bitmaps) == 0
    assert names(path) == []
    assert_clean(path)


@pytest.mark.parametrize("cluster_size", [512, 65536])
def test_qemu_and_we_merge_alike_whatever_the_granularities(tmp_path: Path, cluster_size: int) -> None:
    path = tmp_path / "disk"
    qemu_create(path, LENGTH, cluster_size=cluster_size)
    with tracked(path) as image:
        for name, granularity in (("fine", 512), ("middle", 4096), ("ours", 2048), ("theirs", 2048)):
            image.bitmaps.add(name, granularity=granularity)
        image.bitmaps.disable("ours")
        image.bitmaps.disable("theirs")
        draw = random.Random(cluster_size)
        for _ in range(200):
            image.touched(draw.randrange(LENGTH - 9000), draw.choice([1, 600, 9000]))
            if draw.random() < 0.1:
                image.bitmaps.disable("fine")
        image.touched(LENGTH - 1, 1)
        image.bitmaps.disable("middle")
        image.bitmaps.merge("ours", [image.bitmaps.usable("fine"), image.bitmaps.usable("middle")])
    for source in ("fine", "middle"):
        merged = run("qemu-img", "bitmap", "--merge", source, path, "theirs")
        assert merged.returncode == 0, merged.stderr
    assert_clean(path)
    with tracked(path) as image:
        assert granules(image, "ours") == granules(image, "theirs") != set()


def test_a_bitmap_goes_along_when_the_disk_is_resized(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    qemu_create(path, LENGTH, cluster_size=512)
    with tracked(path) as image:
        image.bitmaps.add("kept", granularity=512)
        image.bitmaps.add("asleep", granularity=4096)
        image.touched(0, 1)
        image.touched(LENGTH - 1, 1)
        image.bitmaps.disable("asleep")
        image.resize(4 * LENGTH)
        image.touched(3 * LENGTH, 1)
        assert granules(image, "kept") == {0, (LENGTH - 1) >> 9, 3 * LENGTH >> 9}
        image.resize(2 * LENGTH)
    assert_clean(path)
    with tracked(path) as image:
        assert granules(image, "kept") == {0, (LENGTH - 1) >> 9}
        assert granules(image, "asleep") == {0, (LENGTH - 1) >> 12}
        image.resize(1 << 20)
        image.resize(2 << 20)
        assert granules(image, "kept") == granules(image, "asleep") == {0}
    assert_clean(path)
    assert run("qemu-img", "resize", path, "3M").returncode == 0
    assert dirty_of(path, "kept") == {0}
    assert_clean(path)


def dirty_of(path: Path, name: str) -> set[int]:
    with open_qcow2(path, read_only=True) as image:
        return granules(image, name)


def test_a_bitmap_that_nobody_kept_can_only_be_removed(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    make(path, 65536)
    open_qcow2(path).close()
    with tracked(path) as image:
        for change in (image.bitmaps.enable, image.bitmaps.disable, image.bitmaps.clear, image.bitmaps.usable):
            with pytest.raises(UnsupportedFeature, match="all it can be is removed"):
                change("changes")
        image.resize(2 * LENGTH)
        image.bitmaps.remove("changes")
    assert names(path) == []
    assert_clean(path)


def test_what_cannot_be_added_is_refused_and_leaves_no_trace(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    make(path, 65536)
    with open_qcow2(path) as image, pytest.raises(UnsupportedFeature, match="nobody to tell what changes"):
        image.bitmaps.add("unheard")
    with tracked(path) as image:
        for name, granularity, wrong in (
            ("changes", None, "already"),
            ("", None, "1 to 1023 bytes"),
            ("x" * 1024, None, "1 to 1023 bytes"),
            ("odd", 1000, "power of two"),
            ("short", 256, "from 512"),
        ):
            with pytest.raises(InvalidArgument, match=wrong):
                image.bitmaps.add(name, granularity=granularity)
        with pytest.raises(InvalidArgument, match="no bitmap 'none'"):
            image.bitmaps.remove("none")
    assert names(path) == ["changes"]
    assert_clean(path)
    old = tmp_path / "old"
    qemu_create(old, LENGTH, compat="0.10")
    with tracked(old) as image, pytest.raises(UnsupportedFeature, match="version 2"):
        image.bitmaps.add("modern")
    assert_clean(old)


def test_a_crash_in_any_verb_leaves_no_bitmap_that_lies(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    qemu_create(path, LENGTH, cluster_size=4096)
    with tracked(path) as image:
        image.bitmaps.add("true", enabled=False)
        image.bitmaps.add("more", enabled=True)
        image.touched(0, LENGTH)
        image.bitmaps.disable("more")
    recording = Recording()
    with Qcow2(recording.watch(path), track_writes=True) as image:
        image.bitmaps.merge("true", [image.bitmaps.usable("more")])
        image.bitmaps.add("new")
        image.bitmaps.clear("more")
        image.resize(2 * LENGTH)
        image.bitmaps.remove("true")
    for step, files in recording.states(random.Random(1), 60):
        path.write_bytes(files[path.name])
        checked = run("qemu-img", "check", "-f", "qcow2", path)
        assert checked.returncode in (0, 3), (step, checked.stdout + checked.stderr)
        with open_qcow2(path, read_only=True) as image:
            for entry in image.bitmaps.entries:
                if not entry.flags & BitmapFlags.IN_USE:
                    found = len(granules(image, entry.name))
                    assert found in (0, -(-LENGTH // 4096)), (step, entry.name)


def test_a_crash_while_bitmaps_come_or_go_leaves_an_overlay_its_parent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, crashed = tmp_path / "disk", tmp_path / "crashed"
    (tmp_path / "parent").write_bytes(bytes(65536))
    made = run("qemu-img", "create", "-f", "qcow2", "-b", "parent", "-F", "raw", path)
    assert made.returncode == 0, made.stderr
    states: list[bytes] = []
    write = HostFile.pwrite

    def recorded(self: HostFile, offset: int, data: bytes) -> None:
        write(self, offset, data)
        states.append(path.read_bytes())

    monkeypatch.setattr(HostFile, "pwrite", recorded)
    with Qcow2(HostFile.from_path(path), track_writes=True) as image:
        image.bitmaps.add("one")
        image.bitmaps.add("two")
        image.bitmaps.remove("one")
        image.bitmaps.remove("two")
    assert len(states) > 8
    for state in {hash(state): state for state in states}.values():
        crashed.write_bytes(state)
        info = run("qemu-img", "info", "--output=json", crashed)
        assert info.returncode == 0, info.stderr
        assert json.loads(info.stdout)["backing-filename"] == "parent"
        checked = run("qemu-img", "check", "-q", crashed)
        assert checked.returncode in (0, 3), checked.stderr
    assert_clean(path)
