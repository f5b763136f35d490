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


def test_resizing_under_a_bitmap_is_refused(tmp_path: Path) -> None:
    make(tmp_path / "disk", 65536)
    with open_qcow2(tmp_path / "disk") as image, pytest.raises(UnsupportedFeature, match="has bitmaps"):
        image.resize(1 << 30)
