"""What writes touch is told to the image's bitmaps, by every way to write to a disk, and qemu reads it there."""

import itertools
import random
from pathlib import Path

import pytest

from formats.qcow2.structures import BitmapFlags
from formats.registry import open_chain
from tests.formats.qcow2.oracle import assert_clean, open_qcow2, qemu_create
from tests.formats.reference import run
from vstore.dataplane import Volume
from vstore.disk import Disk

LENGTH = 20 << 20


@pytest.fixture
def path(tmp_path: Path) -> Path:
    qemu_create(tmp_path / "disk", LENGTH)
    for granularity in (512, 65536):
        options = ["--add", "-g", str(granularity), tmp_path / "disk", f"by {granularity}"]
        assert run("qemu-img", "bitmap", *options).returncode == 0
    return tmp_path / "disk"


def dirty(path: Path, granularity: int) -> set[int]:
    with open_qcow2(path, read_only=True) as image:
        bitmap = image.bitmaps.find(f"by {granularity}")
        assert not bitmap.entry.flags & BitmapFlags.IN_USE
        bits = bitmap.read()
        return {n for n in range(bitmap.bits) if bits[n // 8] >> n % 8 & 1}


def granules(granularity: int, offset: int, length: int) -> set[int]:
    return set(range(offset // granularity, (offset + length - 1) // granularity + 1))


def test_all_that_is_written_zeroed_or_discarded_is_dirty_and_nothing_else(path: Path) -> None:
    draw, touched = random.Random(1), list[tuple[int, int]]()
    disk = Disk(*open_chain("qcow2", path))
    for number in range(60):
        offset = draw.randrange(LENGTH)
        length = min(draw.choice([1, 512, 5000, 200_000]), LENGTH - offset)
        if number % 3:
            disk.write_blocking(offset, b"x" * length)
        else:
            disk.write_zeroes_blocking(offset, length, deallocate=number % 2 == 0)
        disk.read_blocking(draw.randrange(LENGTH - 4096), 4096)
        touched.append((offset, length))
    disk.close()
    assert_clean(path)
    for granularity in (512, 65536):
        expected = set().union(*(granules(granularity, *span) for span in touched))
        assert dirty(path, granularity) == expected


def test_a_write_in_place_counts_as_much_as_the_first(path: Path) -> None:
    disk = Disk(*open_chain("qcow2", path))
    disk.write_blocking(0, b"x" * 65536)
    disk.close()
    assert run("qemu-img", "bitmap", "--clear", path, "by 512").returncode == 0
    disk = Disk(*open_chain("qcow2", path))
    disk.write_blocking(1000, b"y")
    disk.close()
    assert dirty(path, 512) == {1}


def test_what_is_written_around_a_resize_and_a_snapshot_is_dirty(path: Path) -> None:
    disk = Disk(*open_chain("qcow2", path))
    disk.write_blocking(0, b"x")
    disk.resize(2 * LENGTH)
    disk.write_blocking(2 * LENGTH - 1, b"x")
    disk.snapshot("one")
    disk.write_blocking(LENGTH, b"x")
    disk.close()
    assert_clean(path)
    assert dirty(path, 512) == {0, LENGTH >> 9, (2 * LENGTH - 1) >> 9}


def test_the_last_granule_may_reach_behind_the_end_of_the_disk(tmp_path: Path) -> None:
    length = LENGTH + 1536
    qemu_create(tmp_path / "disk", length)
    assert run("qemu-img", "bitmap", "--add", "-g", "65536", tmp_path / "disk", "by 65536").returncode == 0
    disk = Disk(*open_chain("qcow2", tmp_path / "disk"))
    disk.write_blocking(length - 1, b"x")
    disk.volume.quiesce()
    assert list(itertools.islice(disk.volume.tracked(), 2)) == [(LENGTH, 1536)]
    disk.volume.resume()
    disk.close()
    assert_clean(tmp_path / "disk")
    assert dirty(tmp_path / "disk", 65536) == {LENGTH >> 16}


def test_an_image_without_bitmaps_costs_nothing(tmp_path: Path) -> None:
    qemu_create(tmp_path / "disk", LENGTH)
    disk = Disk(*open_chain("qcow2", tmp_path / "disk"))
    disk.write_blocking(0, b"x")
    assert list(disk.volume.tracked()) == []
    disk.close()


def test_the_volume_joins_what_touches_and_begins_anew_only_while_it_is_still() -> None:
    volume = Volume(1 << 40, 65536)
    with pytest.raises(OSError, match="busy"):
        volume.track(65536)
    volume.quiesce()
    for granularity in (256, 1 << 32):
        with pytest.raises(OSError, match="Invalid"):
            volume.track(granularity)
    volume.track(65536)
    assert list(volume.tracked()) == []
    volume.resume()
    volume.close()
