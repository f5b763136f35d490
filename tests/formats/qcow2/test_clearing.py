"""Clearing rows of blocks, against qemu-img: whatever they were, they read as zeros, and what they had is free."""

import random
from pathlib import Path

import pytest

from formats.errors import CorruptImage
from formats.image import BlockState, Change, entry
from formats.qcow2.structures import OFFSET
from tests.formats.qcow2.oracle import assert_clean, check, open_qcow2, qemu_create
from tests.formats.reference import run

MIB = 1 << 20
LENGTH = 8 * MIB


def content(path: Path) -> bytes:
    raw = path.with_suffix(".raw")
    assert run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", path, raw).returncode == 0
    return raw.read_bytes()


def written(path: Path, draw: random.Random, **options: object) -> None:
    """A disk with clusters in the guest's order, in random order, compressed, and none."""
    qemu_create(path, LENGTH, **options)
    commands = ["write -P 1 0 3M"]
    places = [draw.randrange(3 * MIB, 6 * MIB, 4096) for _ in range(120)]
    commands += [f"write -P {draw.randrange(1, 256)} {at} 4k" for at in places]
    if "data_file" not in options and draw.random() < 0.5:
        commands += [f"write -c -P 9 {at} 64k" for at in range(6 * MIB, 6 * MIB + MIB, 65536)]
    arguments = [argument for command in commands for argument in ("-c", command)]
    done = run("qemu-io", "-f", "qcow2", *arguments, path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("state", [BlockState.HOLE, BlockState.ZERO])
@pytest.mark.parametrize(
    "options",
    [
        {"cluster_size": 4096},
        {"cluster_size": 512, "refcount_bits": 1},
        {"cluster_size": 65536, "refcount_bits": 64},
        {"cluster_size": 16384, "extended_l2": "on", "refcount_bits": 8},
    ],
    ids=["4k", "512", "64k", "extended"],
)
def test_rows_of_any_blocks_read_as_zeros_and_let_go_of_what_they_had(
    tmp_path: Path, options: dict[str, object], state: BlockState
) -> None:
    path, draw = tmp_path / "disk.qcow2", random.Random(str(options))
    written(path, draw, **options)
    model = bytearray(content(path))
    with open_qcow2(path) as image:
        size = image.geometry.block_size
        for _ in range(6):
            first = draw.randrange(image.geometry.blocks - 2)
            count = draw.randrange(2, min(4000, image.geometry.blocks - first) + 1)
            image.commit([Change(first, entry(state), count=count)])
            model[first * size : (first + count) * size] = bytes(count * size)
    assert_clean(path)
    assert content(path) == model
    with open_qcow2(path) as image:
        image.commit([Change(0, entry(state), count=image.geometry.blocks)])
    assert_clean(path)
    assert content(path) == bytes(LENGTH)
    assert check(path).get("allocated-clusters", 0) == 0


def test_a_snapshot_keeps_what_a_row_lets_go_of(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    written(path, random.Random(1), cluster_size=4096)
    before = content(path)
    assert run("qemu-img", "snapshot", "-c", "before", path).returncode == 0
    with open_qcow2(path) as image:
        image.commit([Change(0, entry(BlockState.HOLE), count=image.geometry.blocks)])
    assert_clean(path)
    assert content(path) == bytes(LENGTH)
    assert run("qemu-img", "snapshot", "-a", "before", path).returncode == 0
    assert content(path) == before


def test_a_page_that_leads_into_metadata_is_refused_before_it_is_changed(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    written(path, random.Random(2), cluster_size=4096)
    with open_qcow2(path, read_only=True) as image:
        table = image.tables.l1_word(0) & OFFSET
    data = bytearray(path.read_bytes())
    data[table + 8 * 7 : table + 8 * 8] = (1 << 63 | table).to_bytes(8, "big")
    path.write_bytes(data)
    with open_qcow2(path) as image, pytest.raises(CorruptImage, match="from 0 on"):
        image.commit([Change(0, entry(BlockState.HOLE), count=512)])
    assert path.read_bytes()[table : table + 4096] == data[table : table + 4096]
