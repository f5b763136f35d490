"""What qemu wrote, read through our map, for every geometry that qcow2 has."""

import json
from pathlib import Path

import pytest

from formats.host_file import HostFile
from formats.image import BlockState
from formats.qcow2.image import Qcow2
from tests.formats.qcow2.oracle import assert_same_map, open_qcow2, qemu_create
from tests.formats.qcow2.volume import AllocatingVolume
from tests.formats.reference import qemu_io, run

LENGTH = 5 << 20

GEOMETRIES = [
    {"cluster_size": 512},
    {"cluster_size": 1024, "compat": "0.10"},
    {"cluster_size": 4096, "refcount_bits": 1},
    {"cluster_size": 65536, "compat": "0.10"},
    {"cluster_size": 65536, "refcount_bits": 64},
    {"cluster_size": 16384, "extended_l2": "on"},
    {"cluster_size": 131072, "extended_l2": "on"},
    {"cluster_size": 2 << 20, "refcount_bits": 8},
    {"cluster_size": 65536, "preallocation": "metadata"},
    {"cluster_size": 65536, "data_file": "disk.data"},
    {"cluster_size": 65536, "data_file": "disk.data", "data_file_raw": "on"},
]


def name(options: dict[str, object]) -> str:
    return "-".join(map(str, options.values()))


def content(path: Path, directory: Path) -> bytes:
    """What qemu-img reads."""
    converted = run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", path, directory / "converted")
    assert converted.returncode == 0, converted.stderr
    return (directory / "converted").read_bytes()


def make(directory: Path, options: dict[str, object], length: int = LENGTH) -> Path:
    path = directory / "disk.qcow2"
    told = dict(options)
    if "data_file" in told:
        told["data_file"] = directory / "disk.data"
    qemu_create(path, length, **told)
    return path


@pytest.mark.parametrize("options", GEOMETRIES, ids=name)
def test_what_qemu_wrote_is_read_and_mapped_alike(tmp_path: Path, options: dict[str, object]) -> None:
    path = make(tmp_path, options)
    zero = [] if options.get("compat") == "0.10" else ["write -z 1M 300k", "write -z 3000k 1k"]
    qemu_io(
        "qcow2",
        path,
        "write -P 1 700 70000",
        "write -P 2 2M 512",
        *zero,
        "write -P 3 1100k 5k",
        "write -P 4 5242000 880",
    )
    volume = AllocatingVolume(open_qcow2(path, read_only=True))
    assert volume.read(0, LENGTH) == content(path, tmp_path)
    volume.image.close()
    assert_same_map(path)


@pytest.mark.parametrize("kind", ["zlib", "zstd"])
@pytest.mark.parametrize("cluster_size", [512, 65536, 2 << 20])
def test_compressed_clusters_are_read(tmp_path: Path, kind: str, cluster_size: int) -> None:
    raw, path = tmp_path / "raw", tmp_path / "disk.qcow2"
    raw.write_bytes(b"".join(bytes([n % 7]) * 4000 + n.to_bytes(96, "big") for n in range(1280)))
    options = f"compression_type={kind},cluster_size={cluster_size}"
    made = run("qemu-img", "convert", "-c", "-O", "qcow2", "-o", options, raw, path)
    assert made.returncode == 0, made.stderr
    volume = AllocatingVolume(open_qcow2(path, read_only=True))
    assert BlockState.COMPRESSED in {run.entry >> 60 for run in volume.image.load(0, volume.image.geometry.blocks)}
    assert volume.read(0, volume.length) == raw.read_bytes()
    volume.image.close()


def test_a_long_map_is_told_in_few_runs(tmp_path: Path) -> None:
    path = make(tmp_path, {"preallocation": "metadata"}, 10 << 30)
    with open_qcow2(path, read_only=True) as image:
        runs = image.load(0, image.geometry.blocks)
        assert sum(run.count for run in runs) == image.geometry.blocks
        assert len(runs) < 100


@pytest.mark.parametrize("options", GEOMETRIES, ids=name)
def test_info_tells_what_qemu_img_tells(tmp_path: Path, options: dict[str, object]) -> None:
    path = make(tmp_path, options)
    told = json.loads(run("qemu-img", "info", "-f", "qcow2", "--output=json", path).stdout)
    with open_qcow2(path, read_only=True) as image:
        own = image.info()
    assert own == told


def test_the_backing_file_is_told_and_not_opened(tmp_path: Path) -> None:
    (tmp_path / "base").write_bytes(bytes(LENGTH))
    path = make(tmp_path, {"backing_file": tmp_path / "base", "backing_fmt": "raw"})
    (tmp_path / "base").unlink()
    with Qcow2(HostFile.from_path(path)) as image:
        assert image.backing is not None
        assert (image.backing.name, image.backing.format) == (str(tmp_path / "base"), "raw")
