"""Disks over qcow2 with extended L2: only the sub-blocks that were written, or zeroed, come into the image."""

from pathlib import Path

import pytest

from formats.host_file import HostFile
from formats.image import BlockState
from formats.raw import Raw
from tests.formats.qcow2.oracle import assert_clean, check, open_qcow2, qemu_create
from tests.formats.reference import run
from vstore.disk import Disk

MIB = 1 << 20
BLOCK = 128 << 10
UNIT = 4096


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "top.qcow2"


def make(path: Path, length: int = MIB, **options: object) -> None:
    qemu_create(path, length, extended_l2="on", cluster_size=BLOCK, **options)


def make_over_raw(path: Path, content: bytes) -> None:
    (path.parent / "base").write_bytes(content)
    make(path, len(content), backing_file=path.parent / "base", backing_fmt="raw")


def open_disk(path: Path, *, read_only: bool = False) -> Disk:
    image = open_qcow2(path, read_only=read_only)
    if image.backing is None:
        return Disk(image)
    base = Path(image.backing.name)
    if image.backing.format == "raw":
        return Disk(image, Raw(HostFile.from_path(base, read_only=True)))
    return Disk(image, open_qcow2(base, read_only=True))


def masks(path: Path, block: int) -> tuple[int, int]:
    """Allocated and zero sub-blocks, as the file has them."""
    with open_qcow2(path, read_only=True) as image:
        state = image.load(block, 1)[0].entry >> 60
        if state == BlockState.PARTIAL:
            (told,) = image.masks(block, 1)
            return told.allocated, told.zero
    every = (1 << 32) - 1
    return {BlockState.DATA: (every, 0), BlockState.ZERO: (0, every), BlockState.HOLE: (0, 0)}[BlockState(state)]


def content(path: Path) -> bytes:
    """The disk's bytes, as qemu-img reads them."""
    assert_clean(path)
    raw = path.parent / "content.raw"
    done = run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", path, raw)
    assert done.returncode == 0, done.stderr
    return raw.read_bytes()


def test_a_write_takes_up_only_the_sub_blocks_it_touches(path: Path) -> None:
    make_over_raw(path, b"p" * MIB)
    disk = open_disk(path)
    disk.write_blocking(BLOCK + 3 * UNIT, b"w" * 2 * UNIT)
    disk.write_blocking(BLOCK + 9 * UNIT + 100, b"v" * 10)
    disk.close()
    assert masks(path, 1) == (1 << 3 | 1 << 4 | 1 << 9, 0)
    expected = bytearray(b"p" * MIB)
    expected[BLOCK + 3 * UNIT : BLOCK + 5 * UNIT] = b"w" * 2 * UNIT
    expected[BLOCK + 9 * UNIT + 100 : BLOCK + 9 * UNIT + 110] = b"v" * 10
    assert content(path) == expected


def test_a_partial_block_that_is_loaded_takes_further_sub_blocks_in_its_own_place(path: Path) -> None:
    make_over_raw(path, b"p" * MIB)
    disk = open_disk(path)
    disk.write_blocking(0, b"w" * UNIT)
    disk.close()
    size = path.stat().st_size
    disk = open_disk(path)
    assert disk.read_blocking(0, 2 * UNIT) == b"w" * UNIT + b"p" * UNIT
    disk.write_blocking(5 * UNIT, b"x" * UNIT)
    assert disk.read_blocking(0, BLOCK) == b"w" * UNIT + b"p" * 4 * UNIT + b"x" * UNIT + b"p" * 26 * UNIT
    disk.close()
    assert masks(path, 0) == (0b100001, 0)
    assert path.stat().st_size == size
    assert content(path)[5 * UNIT : 6 * UNIT] == b"x" * UNIT


def test_zeroed_sub_blocks_become_zero_bits_over_a_parent(path: Path) -> None:
    make_over_raw(path, b"p" * MIB)
    disk = open_disk(path)
    disk.write_blocking(0, b"w" * 4 * UNIT)
    disk.flush_blocking()
    disk.write_zeroes_blocking(2 * UNIT, 4 * UNIT, deallocate=True)
    disk.write_zeroes_blocking(BLOCK + UNIT, UNIT + 10, deallocate=False)
    assert disk.read_blocking(0, 8 * UNIT) == b"w" * 2 * UNIT + bytes(4 * UNIT) + b"p" * 2 * UNIT
    disk.close()
    assert masks(path, 0) == (0b11, 0b111100)
    assert masks(path, 1) == (0b100, 0b10)
    assert content(path)[BLOCK : BLOCK + 3 * UNIT] == b"p" * UNIT + bytes(UNIT + 10) + b"p" * (UNIT - 10)


def test_sub_blocks_zeroed_without_a_parent_are_let_go(path: Path) -> None:
    make(path)
    disk = open_disk(path)
    disk.write_blocking(0, b"w" * 4 * UNIT)
    disk.flush_blocking()
    disk.write_zeroes_blocking(0, 2 * UNIT, deallocate=True)
    disk.close()
    assert masks(path, 0) == (0b1100, 0)
    assert content(path)[: 4 * UNIT] == bytes(2 * UNIT) + b"w" * 2 * UNIT


def test_a_block_whose_last_sub_block_is_zeroed_gives_its_place_back(path: Path) -> None:
    make_over_raw(path, b"p" * MIB)
    disk = open_disk(path)
    disk.write_blocking(0, b"w" * 2 * UNIT)
    disk.flush_blocking()
    disk.write_zeroes_blocking(0, UNIT, deallocate=True)
    disk.flush_blocking()
    disk.write_zeroes_blocking(UNIT, UNIT, deallocate=True)
    disk.flush_blocking()
    disk.write_blocking(6 * UNIT, b"n" * UNIT)
    assert disk.read_blocking(0, 7 * UNIT) == bytes(2 * UNIT) + b"p" * 4 * UNIT + b"n" * UNIT
    disk.close()
    assert masks(path, 0) == (1 << 6, 0b11)
    assert content(path)[: 7 * UNIT] == bytes(2 * UNIT) + b"p" * 4 * UNIT + b"n" * UNIT


def test_a_snapshot_keeps_its_sub_blocks_when_the_disk_changes_others(path: Path) -> None:
    make_over_raw(path, b"p" * MIB)
    disk = open_disk(path)
    disk.write_blocking(0, b"w" * 3 * UNIT)
    disk.write_blocking(BLOCK, b"f" * BLOCK)
    disk.close()
    assert run("qemu-img", "snapshot", "-c", "before", path).returncode == 0
    disk = open_disk(path)
    disk.write_blocking(UNIT, b"n" * UNIT)
    disk.write_zeroes_blocking(2 * UNIT, UNIT, deallocate=True)
    disk.write_blocking(BLOCK + UNIT, b"g" * UNIT)
    assert disk.read_blocking(0, 4 * UNIT) == b"w" * UNIT + b"n" * UNIT + bytes(UNIT) + b"p" * UNIT
    disk.close()
    assert masks(path, 0) == (0b11, 0b100)
    assert content(path)[: 4 * UNIT] == b"w" * UNIT + b"n" * UNIT + bytes(UNIT) + b"p" * UNIT
    assert content(path)[BLOCK : 2 * BLOCK] == b"f" * UNIT + b"g" * UNIT + b"f" * 30 * UNIT
    assert run("qemu-img", "snapshot", "-a", "before", path).returncode == 0
    assert content(path)[: 4 * UNIT] == b"w" * 3 * UNIT + b"p" * UNIT
    assert content(path)[BLOCK : 2 * BLOCK] == b"f" * BLOCK


def test_sub_blocks_of_a_compressed_parent_are_written_without_taking_up_the_rest(path: Path) -> None:
    (path.parent / "content").write_bytes(b"c" * MIB)
    parent = path.parent / "parent.qcow2"
    assert run("qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", path.parent / "content", parent).returncode == 0
    make(path, backing_file=parent, backing_fmt="qcow2")
    disk = open_disk(path)
    disk.write_blocking(2 * UNIT, b"w" * UNIT)
    disk.write_blocking(4 * UNIT + 5, b"v")
    assert (
        disk.read_blocking(0, 5 * UNIT) == b"c" * 2 * UNIT + b"w" * UNIT + b"c" * UNIT + b"c" * 5 + b"v" + b"c" * 4090
    )
    disk.close()
    assert masks(path, 0) == (0b10100, 0)
    assert content(path)[: 4 * UNIT] == b"c" * 2 * UNIT + b"w" * UNIT + b"c" * UNIT


def test_a_place_that_was_zeroed_before_any_commit_is_free_again(path: Path) -> None:
    make(path, 64 * MIB)
    disk = open_disk(path)
    for _ in range(20):
        disk.write_blocking(0, b"w" * 16 * MIB)
        disk.write_zeroes_blocking(0, 16 * MIB, deallocate=True)
        disk.flush_blocking()
    disk.close()
    assert masks(path, 0) == (0, 0)
    assert check(path)["image-end-offset"] < 2 * MIB  # type: ignore[operator]
    assert path.stat().st_size < 96 * MIB


def test_a_read_only_disk_shows_its_sub_blocks(path: Path) -> None:
    make_over_raw(path, b"p" * MIB)
    disk = open_disk(path)
    disk.write_blocking(UNIT, b"w" * UNIT)
    disk.close()
    disk = open_disk(path, read_only=True)
    assert disk.read_blocking(0, 3 * UNIT) == b"p" * UNIT + b"w" * UNIT + b"p" * UNIT
    disk.close()


def test_a_disk_that_ends_in_a_block_without_a_place_grows_and_keeps_its_header(path: Path) -> None:
    (path.parent / "base").write_bytes(b"p" * (MIB + 512))
    qemu_create(
        path,
        MIB + 512,
        extended_l2="on",
        cluster_size=16384,
        backing_file=path.parent / "base",
        backing_fmt="raw",
    )
    head = path.read_bytes()[512:16384]
    assert any(head)
    disk = open_disk(path)
    disk.resize(MIB + 8192)
    disk.close()
    assert path.read_bytes()[512:16384] == head
    assert content(path) == (b"p" * (MIB + 512)).ljust(MIB + 8192, b"\0")


def test_what_was_compressed_does_not_show_again_when_a_sub_block_is_discarded(path: Path) -> None:
    (path.parent / "raw").write_bytes(b"c" * MIB)
    options = f"extended_l2=on,cluster_size={BLOCK}"
    done = run("qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", "-o", options, path.parent / "raw", path)
    assert done.returncode == 0, done.stderr
    disk = open_disk(path)
    disk.write_blocking(UNIT, b"w" * UNIT)
    disk.write_zeroes_blocking(2 * UNIT, UNIT, deallocate=True)
    expected = b"c" * UNIT + b"w" * UNIT + bytes(UNIT) + b"c" * (MIB - 3 * UNIT)
    assert disk.read_blocking(0, MIB) == expected
    disk.flush_blocking()
    assert disk.read_blocking(0, MIB) == expected
    disk.close()
    assert content(path) == expected
