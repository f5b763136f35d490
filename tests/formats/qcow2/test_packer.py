"""Compressed clusters that we write: qemu reads them, counts them as we do, and finds nothing wrong."""

import random
from pathlib import Path

import pytest

from formats.errors import InvalidArgument
from formats.host_file import HostFile
from formats.qcow2.compression import compress
from formats.qcow2.create import Options, create
from tests.formats.qcow2.oracle import assert_clean, open_qcow2
from tests.formats.qcow2.volume import AllocatingVolume
from tests.formats.reference import Reference, assert_equal_for_qemu


@pytest.mark.parametrize("kind", ["zlib", "zstd"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"cluster_size": 512},
        {"cluster_size": 2 << 20},
        {"refcount_bits": 1},
        {"refcount_bits": 2},
        {"extended_l2": True},
    ],
    ids=str,
)
def test_qemu_reads_what_we_compressed_and_we_overwrite_it(
    tmp_path: Path, kind: str, options: dict[str, object]
) -> None:
    length, draw = 3 << 20, random.Random(kind)
    path, model = tmp_path / "disk.qcow2", Reference(tmp_path / "model", 3 << 20)
    with HostFile.create(path) as file:
        create(file, length, options=Options(compression_type=kind, **options))  # type: ignore[arg-type]
    with open_qcow2(path) as image:
        size = image.geometry.block_size
        for block in draw.sample(range(image.geometry.blocks), image.geometry.blocks * 3 // 4):
            unit = bytes([draw.randrange(256)]) * 40 + draw.randbytes(draw.choice([0, 20]))
            data = (unit * (size // len(unit) + 1))[:size]
            packed = compress(image.header.compression, data)
            if len(packed) < size:
                image.put_compressed(block, packed)
                model.write(block * size, data[: length - block * size])
        image.commit([])
    assert_clean(path)
    assert_equal_for_qemu("qcow2", path, model)
    volume = AllocatingVolume(open_qcow2(path))
    for _ in range(10):
        offset = draw.randrange(length - 9000)
        volume.write(offset, b"new" * 3000)
        model.write(offset, b"new" * 3000)
    volume.close()
    assert_clean(path)
    assert_equal_for_qemu("qcow2", path, model)


def test_neighbours_share_host_clusters(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    with HostFile.create(path) as file:
        create(file, 64 << 20)
    with open_qcow2(path) as image:
        before = path.stat().st_size
        for block in range(1000):
            image.put_compressed(block, compress(0, bytes([block % 256]) * 65536))
        image.commit([])
    assert path.stat().st_size - before < 5 * 65536
    assert_clean(path)


def test_data_as_long_as_a_cluster_is_not_compressed(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    with HostFile.create(path) as file:
        create(file, 1 << 20)
    with open_qcow2(path) as image, pytest.raises(InvalidArgument, match="write it plain"):
        image.put_compressed(0, bytes(65536))
