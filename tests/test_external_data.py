"""Disks whose bytes lie in an external data file, at the guest's own offset."""

import random
from pathlib import Path

import pytest

from formats.image import BlockState
from tests.formats.qcow2.oracle import assert_clean, open_qcow2, qemu_create
from tests.formats.reference import run
from vstore.disk import Disk

MIB = 1 << 20


def make(directory: Path, length: int = 8 * MIB, **options: object) -> Path:
    path = directory / "disk.qcow2"
    qemu_create(path, length, data_file=directory / "data", **options)
    return path


def same(path: Path, model: bytes) -> None:
    assert_clean(path)
    expected = path.parent / "model"
    expected.write_bytes(model)
    compared = run("qemu-img", "compare", "-f", "qcow2", "-F", "raw", path, expected)
    assert compared.returncode == 0, compared.stdout


@pytest.mark.parametrize("options", [{}, {"data_file_raw": "on"}, {"extended_l2": "on"}, {"cluster_size": 4096}])
@pytest.mark.parametrize("seed", range(3))
def test_a_disk_in_a_data_file_keeps_its_bytes(tmp_path: Path, options: dict[str, object], seed: int) -> None:
    path = make(tmp_path, **options)
    draw = random.Random(seed)
    model = bytearray(8 * MIB)
    disk = Disk(open_qcow2(path))
    for _ in range(80):
        at = draw.randrange(0, len(model), 512)
        count = min(draw.choice([512, 4096, 65536, 300000]), len(model) - at)
        match draw.choice(["write", "write", "zero", "discard", "flush", "read", "reopen"]):
            case "write":
                data = draw.randbytes(count)
                disk.write_blocking(at, data)
                model[at : at + count] = data
            case "zero" | "discard" as kind:
                disk.write_zeroes_blocking(at, count, deallocate=kind == "discard")
                model[at : at + count] = bytes(count)
            case "flush":
                disk.flush_blocking()
            case "reopen":
                disk.close()
                same(path, model)
                disk = Disk(open_qcow2(path))
            case _:
                assert disk.read_blocking(at, count) == model[at : at + count]
    disk.close()
    same(path, model)
    if "data_file_raw" in options:
        assert (tmp_path / "data").read_bytes() == model


def test_bytes_that_a_data_file_had_before_never_show(tmp_path: Path) -> None:
    path = make(tmp_path)
    with (tmp_path / "data").open("r+b") as data:
        data.write(b"old" * MIB)
    disk = Disk(open_qcow2(path))
    disk.write_blocking(65536 + 5, b"new")
    assert disk.read_blocking(65536, 10) == bytes(5) + b"new" + bytes(2)
    disk.close()
    disk = Disk(open_qcow2(path))
    assert disk.read_blocking(0, 3 * 65536) == bytes(65536 + 5) + b"new" + bytes(2 * 65536 - 8)
    disk.close()


@pytest.mark.parametrize("options", [{}, {"data_file_raw": "on"}])
def test_a_disk_in_a_data_file_is_resized_both_ways(tmp_path: Path, options: dict[str, object]) -> None:
    path = make(tmp_path, **options)
    disk = Disk(open_qcow2(path))
    disk.write_blocking(0, b"x" * 8 * MIB)
    disk.resize(3 * MIB + 512)
    disk.resize(6 * MIB)
    disk.write_blocking(5 * MIB, b"y" * 100)
    disk.close()
    model = b"x" * (3 * MIB + 512) + bytes(2 * MIB - 512) + b"y" * 100 + bytes(MIB - 100)
    same(path, model)
    if options:
        assert (tmp_path / "data").read_bytes() == model


def test_an_overlay_with_a_data_file_copies_up_into_it(tmp_path: Path) -> None:
    base = tmp_path / "base.qcow2"
    qemu_create(base, 8 * MIB)
    assert run("qemu-io", "-f", "qcow2", "-c", "write -P 7 0 8M", base).returncode == 0
    path = make(tmp_path, backing_file=base, backing_fmt="qcow2")
    disk = Disk(open_qcow2(path), open_qcow2(base, read_only=True))
    disk.write_blocking(100, b"n" * 10)
    disk.write_zeroes_blocking(2 * MIB, MIB, deallocate=True)
    disk.close()
    with open_qcow2(path, read_only=True) as image:
        assert image.load(0, 1)[0].entry >> 60 == BlockState.DATA
        assert image.load(1, 1)[0].entry >> 60 == BlockState.HOLE
    same(path, b"\7" * 100 + b"n" * 10 + b"\7" * (2 * MIB - 110) + bytes(MIB) + b"\7" * 5 * MIB)
