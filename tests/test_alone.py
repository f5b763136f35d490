"""Disk.alone: a range that one thread changes in one step, beside all others who read and write."""

import asyncio
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from formats.registry import create_image, open_chain, open_image
from vstore.disk import Disk
from vstore.scsi.medium import Held

MIB = 1 << 20


@pytest.fixture
def path(tmp_path: Path) -> Path:
    create_image("raw", tmp_path / "disk", 4 * MIB)
    return tmp_path / "disk"


@pytest.fixture
def disk(path: Path) -> Iterator[Disk]:
    disk = Disk(open_image("raw", path))
    yield disk
    disk.close()


async def test_work_alone_with_a_range_reads_and_writes_and_its_result_or_error_comes_back(disk: Disk) -> None:
    def work(held: Held) -> bytes:
        old = held.read(510, 4)
        held.write(511, b"xy")
        held.flush()
        return old + held.read(510, 4)

    assert await disk.alone(510, 4, work) == bytes(5) + b"xy\0"

    def fails(held: Held) -> None:
        held.write(511, b"z")
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await disk.alone(511, 1, fails)
    await asyncio.wait_for(disk.write(511, b"!"), 30)  # the range is free again
    assert await disk.read(510, 4) == b"\0!y\0"


async def test_another_write_to_a_held_range_waits_and_one_beside_it_does_not(disk: Disk) -> None:
    held, go_on = threading.Event(), threading.Event()

    def work(medium: Held) -> None:
        held.set()
        assert go_on.wait(30)
        medium.write(4096, b"mine")

    alone = asyncio.create_task(disk.alone(4096, 512, work))
    await asyncio.to_thread(held.wait, 30)
    inside = asyncio.create_task(disk.write_zeroes(4600, 4096, deallocate=True))
    await disk.write(0, b"beside")
    assert not inside.done()
    go_on.set()
    await alone
    await inside
    assert await disk.read(4096, 4) == b"mine"


async def test_a_read_of_a_range_held_exclusively_waits_and_one_beside_it_does_not(disk: Disk) -> None:
    held, go_on = threading.Event(), threading.Event()

    def work(medium: Held) -> None:
        held.set()
        assert go_on.wait(30)
        assert medium.read(4096, 4) == bytes(4)
        medium.write(4096, b"mine")

    for exclusive in (False, True):
        held.clear()
        go_on.clear()
        await disk.write(4096, bytes(4))
        alone = asyncio.create_task(disk.alone(4096, 512, work, exclusive=exclusive))
        await asyncio.to_thread(held.wait, 30)
        inside = asyncio.create_task(disk.read(4094, 6))
        assert await disk.read(0, 4096) == bytes(4096)
        if exclusive:
            assert not inside.done()
            go_on.set()
            assert await inside == b"\0\0mine"
        else:
            assert await inside == bytes(6)
            go_on.set()
        await alone


@pytest.mark.parametrize("kind", ["raw", "qcow2", "compressed parent"])
async def test_what_changes_in_an_exclusive_step_is_never_seen_by_half(tmp_path: Path, kind: str) -> None:
    """Also where a read goes block by block, because the map was not loaded there or a block is composed."""
    disk = _disk_for_steps(tmp_path, kind)
    end = asyncio.Event()

    def step(number: int) -> Callable[[Held], None]:
        def work(medium: Held) -> None:
            for at in range(0, 256 << 10, 4096):
                medium.write(3072 + at, bytes([number]) * 4096)
            if number % 8 == 0:
                medium.flush()

        return work

    async def read() -> int:
        seen = 0
        while not end.is_set():
            found = await disk.read(3072, 256 << 10)
            assert found == found[:1] * len(found)
            seen += 1
            if seen % 4 == 0:
                disk.volume.trim()
        return seen

    readers = [asyncio.create_task(read()) for _ in range(2)]
    for number in range(1, 120):
        await disk.alone(3072, 256 << 10, step(number), exclusive=True)
    end.set()
    assert min(await asyncio.gather(*readers)) > 0
    await asyncio.to_thread(disk.close)


def _disk_for_steps(directory: Path, kind: str) -> Disk:
    if kind != "compressed parent":
        create_image(kind, directory / "disk", 4 * MIB)
        return Disk(open_image(kind, directory / "disk"))
    (directory / "zeros").write_bytes(b"\x55" * 4 * MIB)
    packed, disk = directory / "packed", directory / "disk"
    options = ["-O", "qcow2", "-c", "-o", "cluster_size=65536"]
    subprocess.run(["qemu-img", "convert", *options, directory / "zeros", packed], check=True, capture_output=True)
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", packed, "-F", "qcow2", disk], check=True)
    return Disk(*open_chain("qcow2", disk))


async def test_steps_on_a_held_range_and_snapshots_flushes_and_commits_never_wait_for_each_other(
    tmp_path: Path,
) -> None:
    """More steps than the disk has threads, all on one block, while the whole disk is quiesced again and again."""
    create_image("qcow2", tmp_path / "disk", 4 * MIB, options={"cluster_size": 65536})
    disk = Disk(open_image("qcow2", tmp_path / "disk"))

    def count(medium: Held) -> None:
        number = int.from_bytes(medium.read(0, 512))
        medium.write(0, (number + 1).to_bytes(512))
        if number % 8 == 0:
            medium.flush()

    async def snapshots() -> None:
        for number in range(6):
            await asyncio.to_thread(disk.snapshot, f"s{number}")
            await asyncio.to_thread(disk.delete_snapshot, f"s{number}")

    steps = [disk.alone(0, 512, count) for _ in range(120)]
    others = [disk.write(65536 * (n % 60), bytes([n]) * 4096) for n in range(1, 60)]
    flushes = [disk.flush() for _ in range(10)]
    whole = [disk.alone(0, disk.length, lambda _: None, exclusive=n % 2 == 0) for n in range(5)]
    reads = [disk.read(256 * n, 65536) for n in range(60)]
    await asyncio.wait_for(asyncio.gather(*steps, *others, *flushes, *whole, *reads, snapshots()), 60)
    assert int.from_bytes(await disk.read(0, 512)) == 120
    disk.close()


async def test_nobody_is_alone_outside_of_a_disk_or_with_one_that_is_read_only(disk: Disk, path: Path) -> None:
    with pytest.raises(OSError, match="Errno 22"):
        await disk.alone(4 * MIB, 1, bool)
    disk.close()
    protected = Disk(open_image("raw", path, read_only=True))
    with pytest.raises(OSError, match="Errno 30"):
        await protected.alone(0, 1, bool)
    protected.close()
