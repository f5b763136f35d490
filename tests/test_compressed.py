"""Compressed blocks as the data plane reads them: unpacked in C where their stream is right, told of where not."""

import errno
import subprocess
from pathlib import Path

import pytest

from formats.image import BlockState
from formats.registry import open_chain
from vstore.block_map import BlockMap
from vstore.disk import Disk

MIB = 1 << 20


def text(length: int, seed: int = 0) -> bytes:
    """Bytes that compress, no two KiB alike."""
    return b"".join(b"%015d\n" % ((n + seed) * 2654435761 % 10**15) for n in range(length // 16))


def qemu_img(*words: object) -> None:
    subprocess.run(["qemu-img", *map(str, words)], check=True, capture_output=True, timeout=60)


def compressed(folder: Path, data: bytes, options: str) -> Path:
    source, image = folder / "source.raw", folder / "compressed.qcow2"
    source.write_bytes(data)
    qemu_img("convert", "-c", "-f", "raw", "-O", "qcow2", "-o", options, source, image)
    return image


@pytest.fixture
def never_composed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python is not asked for a block's bytes."""

    def refuse(_map: BlockMap, block: int) -> bytes:
        raise AssertionError(f"block {block} was composed")

    monkeypatch.setattr(BlockMap, "compose", refuse)


@pytest.mark.parametrize(
    "options",
    [
        "cluster_size=512",
        "cluster_size=64k",
        "cluster_size=2M",
        "cluster_size=64k,compression_type=zstd",
        "cluster_size=64k,extended_l2=on",
        "cluster_size=64k,compat=0.10",
    ],
)
@pytest.mark.usefixtures("never_composed")
def test_the_data_plane_reads_compressed_blocks_itself(tmp_path: Path, options: str) -> None:
    data = text(3 * MIB + 1024 * 5)
    disk = Disk(*open_chain("qcow2", compressed(tmp_path, data, options), read_only=True))
    try:
        assert disk.volume.length == len(data)
        for offset, length in ((0, len(data)), (len(data) - 700, 700), (65536 - 3, 7), (123456, 100_000), (5, 1)):
            assert disk.read_blocking(offset, length) == data[offset : offset + length]
    finally:
        disk.close()


@pytest.mark.usefixtures("never_composed")
def test_a_parents_compressed_blocks_show_through_two_overlays(tmp_path: Path) -> None:
    data = text(MIB)
    base = compressed(tmp_path, data, "cluster_size=64k")
    qemu_img("create", "-f", "qcow2", "-F", "qcow2", "-b", base.name, tmp_path / "middle.qcow2")
    qemu_img("create", "-f", "qcow2", "-F", "qcow2", "-b", "middle.qcow2", tmp_path / "top.qcow2", 2 * MIB)
    disk = Disk(*open_chain("qcow2", tmp_path / "top.qcow2", read_only=True))
    try:
        assert disk.read_blocking(0, 2 * MIB) == data + bytes(MIB)
    finally:
        disk.close()


def test_a_compressed_block_is_overwritten_and_its_neighbours_stay(tmp_path: Path) -> None:
    data = bytearray(text(MIB))
    image = compressed(tmp_path, bytes(data), "cluster_size=64k")
    disk = Disk(*open_chain("qcow2", image))
    try:
        for offset, new in ((70_000, b"a" * 10), (3 * 65536, text(65536, 7)), (5 * 65536 - 1, b"bc")):
            assert disk.read_blocking(offset, len(new)) == data[offset : offset + len(new)]
            disk.write_blocking(offset, new)
            data[offset : offset + len(new)] = new
            assert disk.read_blocking(0, len(data)) == data
    finally:
        disk.close()
    qemu_img("check", image)
    (tmp_path / "model.raw").write_bytes(data)
    qemu_img("compare", "-f", "qcow2", "-F", "raw", image, tmp_path / "model.raw")


def stream_of(image: Path, block: int) -> int:
    """Where a block's compressed bytes begin."""
    (opened,) = open_chain("qcow2", image, read_only=True)
    with opened:
        word = opened.load(block, 1)[0].entry
    assert word >> 60 == BlockState.COMPRESSED
    return word & (1 << 48) - 1


def test_a_damaged_stream_is_an_error_and_the_other_blocks_are_read(tmp_path: Path) -> None:
    data = text(MIB)
    image = compressed(tmp_path, data, "cluster_size=64k")
    with image.open("r+b") as file:
        file.seek(stream_of(image, 3))
        file.write(b"\xff" * 64)
    disk = Disk(*open_chain("qcow2", image, read_only=True))
    try:
        with pytest.raises(OSError, match="compressed cluster 3") as refusal:
            disk.read_blocking(3 * 65536, 512)
        assert refusal.value.errno == errno.EIO
        assert disk.read_blocking(0, 3 * 65536) == data[: 3 * 65536]
    finally:
        disk.close()


def test_a_stream_that_the_file_ends_in_is_an_error(tmp_path: Path) -> None:
    image = compressed(tmp_path, text(MIB), "cluster_size=64k")
    last = stream_of(image, 15)
    with image.open("r+b") as file:
        file.truncate(last + 100)
    disk = Disk(*open_chain("qcow2", image, read_only=True))
    try:
        with pytest.raises(OSError, match="compressed cluster 15"):
            disk.read_blocking(15 * 65536, 512)
    finally:
        disk.close()
