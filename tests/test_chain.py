"""Chains of images of unlike lengths, cluster sizes and ways to be opened read as qemu-img reads them."""

import os
import resource
from pathlib import Path

import pytest

from formats.backing import MOST_IMAGES
from formats.errors import ImageError
from formats.registry import create_image, open_chain
from tests.formats.qcow2.oracle import qemu_create
from tests.formats.reference import qemu_io, run
from vstore.chain import Chain
from vstore.disk import Disk

KIB = 1024


def disk_bytes(path: Path) -> bytes:
    """As the data plane reads them."""
    disk = Disk(*open_chain("qcow2", path, read_only=True))
    try:
        return disk.read_blocking(0, disk.length)
    finally:
        disk.close()


def qemu_bytes(path: Path) -> bytes:
    raw = path.with_suffix(".converted")
    assert run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", path, raw).returncode == 0
    return raw.read_bytes()


def overlay(path: Path, length: int, cluster: int, on: Path, format: str = "qcow2") -> Path:
    qemu_create(path, length, cluster_size=cluster, backing_file=on, backing_fmt=format)
    return path


def test_nothing_shows_through_behind_the_end_of_an_image_between(tmp_path: Path) -> None:
    base = tmp_path / "base.raw"
    base.write_bytes(b"b" * (640 * KIB))
    short = overlay(tmp_path / "short.qcow2", 200 * KIB, 65536, base, "raw")
    top = overlay(tmp_path / "top.qcow2", 640 * KIB, 65536, short)
    assert disk_bytes(top) == b"b" * (200 * KIB) + bytes(440 * KIB) == qemu_bytes(top)


@pytest.mark.parametrize("cluster", [4096, 65536, 1 << 18])
def test_what_a_parent_has_behind_its_end_inside_its_last_cluster_is_not_to_be_seen(
    tmp_path: Path, cluster: int
) -> None:
    base = tmp_path / "base.qcow2"
    qemu_create(base, 256 * KIB, cluster_size=65536)
    qemu_io("qcow2", base, "write -P 5 0 256k")
    assert run("qemu-img", "resize", "-q", "--shrink", "-f", "qcow2", base, "100k").returncode == 0
    top = overlay(tmp_path / "top.qcow2", 256 * KIB, cluster, base)
    assert disk_bytes(top) == b"\5" * (100 * KIB) + bytes(156 * KIB) == qemu_bytes(top)


def test_blocks_longer_than_those_of_the_parent_read_no_cluster_that_is_another_ones(tmp_path: Path) -> None:
    base = tmp_path / "base.qcow2"
    qemu_create(base, 68 * KIB, cluster_size=4096)
    qemu_io("qcow2", base, "write -P 5 64k 4k", "write -P 6 0 64k")
    top = overlay(tmp_path / "top.qcow2", 256 * KIB, 65536, base)
    assert disk_bytes(top) == qemu_bytes(top)


def test_a_block_is_composed_of_files_that_are_open_with_o_direct(tmp_path: Path) -> None:
    base = tmp_path / "base.qcow2"
    qemu_create(base, 256 * KIB, cluster_size=4096)
    qemu_io("qcow2", base, "write -P 5 4k 4k", "write -P 6 32k 4k")
    top = overlay(tmp_path / "top.qcow2", 256 * KIB, 65536, base)
    images = open_chain("qcow2", top, read_only=True, direct=True)
    found = Chain(images).compose(100, 60000)
    for image in images:
        image.close()
    assert found == qemu_bytes(top)[100:60100]


@pytest.mark.parametrize("middle", [{"cluster_size": 512}, {"cluster_size": 2 << 20}, {"extended_l2": "on"}])
@pytest.mark.parametrize("length", [100 * KIB + 512, 128 * KIB, 3 * KIB, 512])
@pytest.mark.parametrize("cluster", [65536, 1024])
def test_behind_the_end_of_a_shrunk_parent_are_zeros_whatever_lies_below(
    tmp_path: Path, middle: dict[str, object], length: int, cluster: int
) -> None:
    bottom, mid = tmp_path / "bottom", tmp_path / "mid"
    qemu_create(bottom, 300 * KIB)
    qemu_io("qcow2", bottom, "write -P 1 0 300k")
    qemu_create(mid, 300 * KIB, backing_file=bottom, backing_fmt="qcow2", **middle)
    qemu_io("qcow2", mid, "write -P 2 1k 512", "write -P 3 100k 24k", "write -P 4 200k 10k")
    assert run("qemu-img", "resize", "-q", "--shrink", "-f", "qcow2", mid, str(length)).returncode == 0
    top = overlay(tmp_path / "top", 300 * KIB, cluster, mid)
    qemu_io("qcow2", top, "write -P 5 110k 1k")
    expected = qemu_bytes(top)
    images = open_chain("qcow2", top, read_only=True)
    composed = Chain(images).compose(777, 250 * KIB)
    for image in images:
        image.close()
    assert composed == expected[777 : 777 + 250 * KIB]
    assert disk_bytes(top) == expected


def test_a_disk_over_a_thousand_parents_reads_what_each_of_them_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))  # two descriptors for each image
    monkeypatch.chdir(tmp_path)
    try:
        create_image("qcow2", "0000.qcow2", 16 * KIB, options={"cluster_size": 512})
        over = {"backing_file": "0000.qcow2", "backing_fmt": "qcow2"}
        create_image("qcow2", "0001.qcow2", 16 * KIB, options={"cluster_size": 512, **over})
        overlay = Path("0001.qcow2").read_bytes()
        for depth in range(MOST_IMAGES):
            name = f"{depth:04}.qcow2"
            if depth > 1:
                Path(name).write_bytes(overlay.replace(b"0000.qcow2", f"{depth - 1:04}.qcow2".encode()))
            if depth in (0, 1, 500, MOST_IMAGES - 2):
                disk = Disk(*open_chain("qcow2", name))
                disk.write_blocking(depth % 31 * 512, bytes([depth % 251]) * 600)
                disk.close()
        expected = bytearray(16 * KIB)
        for depth in (0, 1, 500, MOST_IMAGES - 2):
            expected[depth % 31 * 512 : depth % 31 * 512 + 600] = bytes([depth % 251]) * 600
        assert disk_bytes(Path(f"{MOST_IMAGES - 1:04}.qcow2")) == expected
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_too_few_descriptors_for_a_chain_are_told_with_what_to_do(tmp_path: Path) -> None:
    base = tmp_path / "base.qcow2"
    qemu_create(base, 64 * KIB, cluster_size=4096)
    top = overlay(tmp_path / "top.qcow2", 64 * KIB, 4096, base)
    images = open_chain("qcow2", top)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (images[0].layers[0].descriptor + 1, hard))
    try:
        with pytest.raises(OSError, match=r"Too many open files.*ulimit -n"):
            Disk(*images)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("format", ["raw", "qcow2"])
def test_a_parent_that_is_cut_off_under_an_open_disk_harms_nothing_but_what_it_had_there(
    tmp_path: Path, format: str
) -> None:
    base = tmp_path / "base"
    if format == "raw":
        base.write_bytes(b"b" * (640 * KIB))
    else:
        qemu_create(base, 640 * KIB)
        qemu_io("qcow2", base, "write -P 98 0 640k")
    top = overlay(tmp_path / "top.qcow2", 640 * KIB, 65536, base, format)
    disk = Disk(*open_chain("qcow2", top))
    assert disk.read_blocking(0, 65536) == b"b" * 65536
    os.truncate(base, base.stat().st_size - 240 * KIB)
    for at in range(0, 640 * KIB, 65536):
        try:
            found = disk.read_blocking(at, 65536)
            assert found.strip(b"\0") in (b"b" * 65536, b"") or at <= 400 * KIB < at + 65536
        except (OSError, ImageError):
            assert at >= 384 * KIB, "what is still there is read"
    disk.write_blocking(1000, b"x" * 10000)
    disk.write_blocking(639 * KIB, b"y" * KIB)
    disk.flush_blocking()
    assert disk.read_blocking(639 * KIB, KIB) == b"y" * KIB
    disk.close()
    assert run("qemu-img", "check", "-f", "qcow2", top).returncode == 0
