"""Which parts of a disk have room on the host: as qemu-img map says, and finer where only the host knows."""

import json
import os
import random
import subprocess
from pathlib import Path

import pytest

from formats.memory import Memory
from formats.registry import create_image, open_chain, open_image
from vstore.disk import Disk

MIB = 1 << 20


def rows_of_qemu_img(path: Path, format: str) -> list[tuple[int, bool]]:
    done = subprocess.run(
        ["qemu-img", "map", "--output=json", "-f", format, path], capture_output=True, text=True, check=True
    )
    rows: list[tuple[int, bool]] = []
    for row in json.loads(done.stdout):
        length, before = row["length"], rows.pop() if rows and rows[-1][1] is row["data"] else (0, row["data"])
        rows.append((before[0] + length, before[1]))
    return rows


def rows_of(disk: Disk, offset: int = 0) -> list[tuple[int, bool]]:
    """All of them, neighbours that are alike as one."""
    rows: list[tuple[int, bool]] = []
    while offset < disk.length:
        for length, has_room in disk.status_blocking(offset, disk.length - offset):
            before = rows.pop()[0] if rows and rows[-1][1] is has_room else 0
            rows.append((before + length, has_room))
            offset += length
    return rows


def spread(rows: list[tuple[int, bool]]) -> set[int]:
    """The numbers of the pages with room."""
    pages: set[int] = set()
    at = 0
    for length, has_room in rows:
        pages |= set(range(at // 4096, -(-(at + length) // 4096))) if has_room else set()
        at += length
    return pages


@pytest.mark.parametrize("format", ["raw", "qcow2"])
@pytest.mark.parametrize("parent", [False, True])
def test_what_has_room_on_the_host_is_what_qemu_img_says(tmp_path: Path, format: str, parent: bool) -> None:
    path, rng = tmp_path / "disk", random.Random(format)
    create_image(format, path, 16 * MIB)
    if parent:
        base, path = path, tmp_path / "overlay"
        disk = Disk(open_image(format, base))
        disk.write_blocking(5 * MIB + 1000, b"base" * 100000)
        disk.close()
        options = {"backing_file": base.name, "backing_fmt": format}
        create_image("qcow2", path, 16 * MIB, options=options)
        format = "qcow2"
    disk = Disk(*open_chain(format, path))
    for _ in range(30):
        at, length = rng.randrange(15 * MIB), rng.randrange(1, 300000)
        if rng.randrange(3):
            disk.write_blocking(at, rng.randbytes(length))
        else:
            disk.write_zeroes_blocking(at, length, deallocate=True)
    live = rows_of(disk)
    disk.close()
    told = rows_of_qemu_img(path, format)
    if format == "raw":
        assert live == told
    disk = Disk(*open_chain(format, path))
    assert rows_of(disk) == live
    # what is empty in a file inside an allocated cluster, only the host's file system knows
    # and a block that is patched together of a parent's smaller ones counts as a whole
    assert len(spread(live) - spread(told)) * 4096 <= (131072 if parent else 0)
    assert len(spread(told) - spread(live)) * 4096 < disk.length // 8
    for at in set(range(disk.length // 4096)) - spread(live):
        assert not any(disk.read_blocking(at * 4096, 4096))
    assert sum(length for length, _ in rows_of(disk, 777 * 512)) == disk.length - 777 * 512
    disk.close()


def test_the_status_of_a_disk_is_not_told_beyond_its_end(tmp_path: Path) -> None:
    create_image("raw", tmp_path / "disk", 4 * MIB)
    disk = Disk(open_image("raw", tmp_path / "disk"))
    with pytest.raises(OSError, match="Errno 22"):
        disk.status_blocking(4 * MIB - 512, 1024)
    disk.close()


@pytest.mark.parametrize("format", ["raw", "qcow2"])
def test_the_space_of_an_image_is_what_its_file_takes_and_what_is_free_beside_it(tmp_path: Path, format: str) -> None:
    path = tmp_path / "disk"
    create_image(format, path, 16 * MIB)
    disk = Disk(open_image(format, path))
    disk.write_blocking(0, b"x" * MIB)
    disk.flush_blocking()
    space, host = disk.space_blocking(), os.statvfs(tmp_path)
    assert space
    assert MIB <= space.used == path.stat().st_blocks * 512
    assert abs(space.available - host.f_bavail * host.f_frsize) < 1 << 30
    disk.close()


def test_nobody_knows_the_space_of_an_image_in_memory() -> None:
    disk = Disk(Memory(MIB))
    assert disk.space_blocking() is None
    disk.close()
