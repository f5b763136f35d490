"""Checking: the numbers of qemu-img check, and repairs after which it finds nothing."""

import dataclasses
import random
from pathlib import Path

import pytest

from formats.host_file import HostFile
from formats.qcow2 import snapshot_table
from formats.qcow2.check import Report, check
from formats.qcow2.header import Header
from formats.qcow2.structures import OFFSET, Extension
from tests.formats.qcow2 import oracle
from tests.formats.qcow2.oracle import assert_clean, qemu_create
from tests.formats.reference import qemu_io, run

NUMBERS = ("corruptions", "leaks", "allocated-clusters", "fragmented-clusters", "compressed-clusters")
NUMBERS += ("total-clusters", "image-end-offset")


def checked(path: Path, repair: str = "none") -> Report:
    with HostFile.from_path(path, read_only=repair == "none") as file:
        return check(file, repair=repair)


def make(directory: Path, **options: object) -> Path:
    path = directory / "disk.qcow2"
    qemu_create(path, 4 << 20, **options)
    qemu_io("qcow2", path, "write -P 1 3M 200k", "write -P 2 0 400k", "write -P 3 1M 100k", "write -z 2M 64k")
    return path


def damage(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def header(path: Path) -> Header:
    with HostFile.from_path(path, read_only=True) as file:
        return Header.read(file)


def assert_same_numbers(path: Path) -> None:
    ours, theirs = checked(path).as_json(str(path)), oracle.check(path)
    assert {key: ours.get(key, 0) for key in NUMBERS} == {key: theirs.get(key, 0) for key in NUMBERS}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"cluster_size": 512, "refcount_bits": 1},
        {"cluster_size": 4096, "refcount_bits": 64},
        {"cluster_size": 16384, "extended_l2": "on"},
        {"cluster_size": 2 << 20},
    ],
)
def test_a_good_image_has_the_numbers_that_qemu_img_tells(tmp_path: Path, options: dict[str, object]) -> None:
    path = make(tmp_path, **options)
    assert_same_numbers(path)
    if options.get("refcount_bits") != 1:
        assert run("qemu-img", "snapshot", "-c", "one", path).returncode == 0
        qemu_io("qcow2", path, "write -P 9 0 100k")
        assert_same_numbers(path)
    if "refcount_bits" not in options:
        assert run("qemu-img", "bitmap", "--add", path, "b").returncode == 0
        qemu_io("qcow2", path, "write -P 9 2M 100k")
        assert_same_numbers(path)


def test_a_compressed_image_has_the_numbers_that_qemu_img_tells(tmp_path: Path) -> None:
    (tmp_path / "raw").write_bytes(b"".join(bytes([n % 7]) * 4096 for n in range(500)))
    made = run("qemu-img", "convert", "-c", "-O", "qcow2", tmp_path / "raw", tmp_path / "disk.qcow2")
    assert made.returncode == 0, made.stderr
    assert_same_numbers(tmp_path / "disk.qcow2")


@pytest.mark.parametrize("bits", [1, 4, 16, 64])
def test_leaks_and_corrupt_counts_are_found_and_repaired(tmp_path: Path, bits: int) -> None:
    path = make(tmp_path, refcount_bits=bits, cluster_size=4096)
    block = 2 * 4096
    draw = random.Random(bits)
    damage(path, block + bits, bytes(draw.choice([0, 0, 255]) for _ in range(64)))
    before = (tmp_path / "disk.qcow2").read_bytes()
    assert_same_numbers(path)
    report = checked(path, "all")
    assert report.corruptions_fixed + report.leaks_fixed > 0
    assert (report.corruptions, report.leaks) == (0, 0)
    assert_clean(path)
    assert before != path.read_bytes()


def test_repairing_leaks_leaves_corruptions(tmp_path: Path) -> None:
    path = make(tmp_path)
    damage(path, 2 * 65536 + 2 * 6, b"\0\2")  # named once
    damage(path, 2 * 65536 + 2 * 5, b"\0\0")  # one that is named
    report = checked(path, "leaks")
    assert (report.leaks_fixed, report.leaks) == (1, 0)
    assert report.corruptions > 0


@pytest.mark.parametrize(
    "where", ["refcount table", "refcount block on L1", "no blocks", "L2 word", "L1 word", "flags"]
)
def test_whatever_is_broken_is_put_right(tmp_path: Path, where: str) -> None:
    path = make(tmp_path)
    start = header(path).start
    l1 = int.from_bytes(path.read_bytes()[start.l1_table_offset : start.l1_table_offset + 8], "big")
    l2 = l1 & 0x00FF_FFFF_FFFF_FE00
    damages = {
        "refcount table": (start.refcount_table_offset, (12345 << 9).to_bytes(8, "big")),
        "refcount block on L1": (start.refcount_table_offset, start.l1_table_offset.to_bytes(8, "big")),
        "no blocks": (start.refcount_table_offset, bytes(8)),
        "L2 word": (l2, (1 << 63 | 99 << 40).to_bytes(8, "big")),
        "L1 word": (start.l1_table_offset, (1 << 63 | 512).to_bytes(8, "big")),
        "flags": (l2, (int.from_bytes(path.read_bytes()[l2 : l2 + 8], "big") ^ 1 << 63).to_bytes(8, "big")),
    }
    damage(path, *damages[where])
    assert checked(path).corruptions > 0
    report = checked(path, "all")
    assert (report.corruptions, report.leaks) == (0, 0), report.findings
    assert_clean(path)
    qemu_io("qcow2", path, "write -P 5 0 4M")
    assert_clean(path)


@pytest.mark.parametrize("of_snapshot", [False, True])
@pytest.mark.parametrize("word", [1 << 63, 1 << 62, 1])
def test_an_l1_entry_of_flags_without_a_table_is_found_and_repaired(
    tmp_path: Path, word: int, of_snapshot: bool
) -> None:
    path = make(tmp_path, cluster_size=512)
    assert run("qemu-img", "snapshot", "-c", "one", path).returncode == 0
    start = header(path).start
    table = start.l1_table_offset
    if of_snapshot:
        table = int.from_bytes(path.read_bytes()[start.snapshots_offset :][:8], "big")
    damage(path, table + 80 * 8, word.to_bytes(8, "big"))
    assert checked(path).corruptions == 1
    assert run("qemu-img", "check", "-f", "qcow2", path).returncode == 2
    assert checked(path, "all").corruptions == 0
    assert_clean(path)


@pytest.mark.parametrize("told", [0, 8])
def test_a_snapshot_entry_of_version_3_without_all_its_extra_data_is_found_and_completed(
    tmp_path: Path, told: int
) -> None:
    path = make(tmp_path)
    for name in ("one", "two"):
        assert run("qemu-img", "snapshot", "-c", name, path).returncode == 0
    table = header(path).start.snapshots_offset
    with HostFile.from_path(path, read_only=True) as file:
        first, second = snapshot_table.read(file, Header.read(file))
    start = dataclasses.replace(first.start, extra_data_size=told)
    damage(path, table, first._replace(start=start, extra=first.extra[:told]).pack() + second.pack())
    assert run("qemu-img", "check", "-f", "qcow2", path).returncode == 2
    assert checked(path).corruptions == 1
    assert checked(path, "all").corruptions == 0
    assert_clean(path)
    qemu_io("qcow2", path, "write -P 9 0 100k")
    for name in ("two", "one"):
        assert run("qemu-img", "snapshot", "-a", name, path).returncode == 0
        qemu_io("qcow2", path, "read -P 2 0 100k")


def test_a_repair_writes_nothing_into_what_only_seems_to_be_an_l2_table(tmp_path: Path) -> None:
    path = make(tmp_path)
    assert run("qemu-img", "snapshot", "-c", "one", path).returncode == 0
    assert run("qemu-img", "bitmap", "--add", path, "dirty").returncode == 0
    qemu_io("qcow2", path, "write -P 9 0 100k")
    before, kept = header(path), path.read_bytes()
    directory = int.from_bytes((before.extension(Extension.BITMAPS) or b"")[16:24], "big")
    for place in (before.start.l1_table_offset, before.start.snapshots_offset, directory):
        path.write_bytes(kept)
        damage(path, before.start.l1_table_offset, (1 << 63 | place).to_bytes(8, "big"))
        assert run("qemu-img", "check", "-f", "qcow2", path).returncode == 2
        assert checked(path).corruptions > 0
        checked(path, "all")
        assert_clean(path)
        assert run("qemu-img", "bitmap", "--remove", path, "dirty").returncode == 0
        assert run("qemu-img", "snapshot", "-a", "one", path).returncode == 0
        qemu_io("qcow2", path, "read -P 2 0 100k")


def test_a_repair_writes_nothing_into_a_snapshots_l1_table_that_seems_to_be_an_l2_table(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    qemu_create(path, 64 << 20, cluster_size=16384, extended_l2="on")
    qemu_io("qcow2", path, "write -P 2 0 100k", "write -P 3 16M 100k")
    assert run("qemu-img", "snapshot", "-c", "one", path).returncode == 0
    before = header(path)
    whole = path.read_bytes()
    table = int.from_bytes(whole[before.start.snapshots_offset :][:8], "big")
    second = int.from_bytes(whole[table + 8 :][:8], "big") & OFFSET
    damage(path, 1 << 31, whole[second : second + 16384])
    words = whole[table : table + 8] + (1 << 63 | 1 << 31).to_bytes(8, "big")  # as L2: it contradicts itself
    damage(path, table, words)
    damage(path, before.start.l1_table_offset, (1 << 63 | table).to_bytes(8, "big"))
    checked(path, "all")
    with path.open("rb") as file:
        file.seek(table)
        kept = file.read(16)
    assert [int.from_bytes(word, "big") & OFFSET for word in (kept[:8], kept[8:])] == [
        int.from_bytes(words[:8], "big") & OFFSET,
        1 << 31,
    ]
