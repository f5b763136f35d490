"""Discards that keep their clusters, as qemu's discard-no-unref: what the file looks like, judged by qemu-img."""

import asyncio
import json
import os
import random
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from formats.errors import UnsupportedFeature
from formats.image import Discard
from formats.registry import create_image, open_chain
from tests.scsi.initiator import Initiator, make_unit
from vstore.disk import Disk
from vstore.scsi.commands import SanitizeBlockErase
from vstore.scsi.identity import Identity
from vstore.scsi.logical_unit import LogicalUnit
from vstore.scsi.task import Status
from vstore.scsi.vpd import VPD_PAGES

KIB, MIB = 1 << 10, 1 << 20
LENGTH = 6 * MIB
KINDS: dict[str, dict[str, object]] = {
    "plain": {},
    "short-clusters": {"cluster_size": 4096},
    "extended": {"extended_l2": True},
    "overlay": {"backing_file": "base", "backing_fmt": "raw"},
    "extended-overlay": {"backing_file": "base", "backing_fmt": "raw", "extended_l2": True},
}
KEPT = [Discard.PUNCH, Discard.KEEP]


def qemu_img(*arguments: object) -> Any:
    done = subprocess.run(["qemu-img", *map(str, arguments)], check=True, capture_output=True, timeout=60)
    return json.loads(done.stdout) if "--output=json" in arguments else done.stdout


def checked(path: Path) -> Any:
    return qemu_img("check", "-f", "qcow2", "--output=json", path)


@pytest.fixture
def made(tmp_path: Path) -> Callable[..., Path]:
    def make(kind: str = "plain", **options: object) -> Path:
        (tmp_path / "base").write_bytes(random.Random(1).randbytes(LENGTH))
        create_image("qcow2", tmp_path / "disk", LENGTH, options={**KINDS[kind], **options})
        return tmp_path / "disk"

    return make


def opened(path: Path, how: Discard) -> Disk:
    images = open_chain("qcow2", path)
    images[0].place_discarded(how)
    return Disk(*images)


@pytest.mark.parametrize("how", KEPT)
@pytest.mark.parametrize("kind", KINDS)
def test_a_discarded_cluster_reads_as_zeros_and_keeps_its_place(
    made: Callable[..., Path], kind: str, how: Discard
) -> None:
    path = made(kind)
    disk = opened(path, how)
    disk.write_blocking(0, random.Random(2).randbytes(LENGTH))
    disk.flush_blocking()
    before = places_of(disk)
    disk.write_zeroes_blocking(2 * MIB, 3 * MIB, deallocate=True)
    disk.flush_blocking()
    assert disk.read_blocking(2 * MIB, 3 * MIB) == bytes(3 * MIB)
    disk.close()
    found = checked(path)
    assert found["check-errors"] == 0
    assert (found["allocated-clusters"], found.get("leaks", 0)) == (found["total-clusters"], 0)
    zeroed = [row for row in qemu_img("map", "--output=json", path) if row["zero"]]
    assert [(row["start"], row["length"], row["present"]) for row in zeroed] == [(2 * MIB, 3 * MIB, True)]
    again = opened(path, how)
    assert places_of(again) == before
    again.close()


def places_of(disk: Disk) -> Sequence[int]:
    """Where each block lies, or would if it were not zeroed."""
    return [word & (1 << 48) - 1 for word in disk.image.load_entries(0, disk.image.geometry.blocks)]


@pytest.mark.parametrize("how", KEPT)
@pytest.mark.parametrize("kind", KINDS)
def test_a_write_goes_where_the_cluster_was(made: Callable[..., Path], kind: str, how: Discard) -> None:
    path = made(kind)
    disk = opened(path, how)
    disk.write_blocking(0, random.Random(2).randbytes(LENGTH))
    disk.flush_blocking()
    before = places_of(disk)
    model = bytearray(disk.read_blocking(0, LENGTH))
    disk.write_zeroes_blocking(0, LENGTH, deallocate=True)
    model[:] = bytes(LENGTH)
    for flush in (False, True, True):
        if flush:
            disk.flush_blocking()
        for at in (MIB + 512, 3 * MIB, 4 * MIB + 777):
            data = random.Random(at).randbytes(9000)
            disk.write_blocking(at, data)
            model[at : at + len(data)] = data
    assert disk.read_blocking(0, LENGTH) == model
    disk.flush_blocking()
    assert places_of(disk) == before
    disk.close()
    assert checked(path)["check-errors"] == 0
    raw = path.with_suffix(".raw")
    qemu_img("convert", "-f", "qcow2", "-O", "raw", path, raw)
    assert raw.read_bytes() == model


def test_only_punching_gives_the_host_its_space_back(made: Callable[..., Path]) -> None:
    used = {}
    for how in Discard:
        path = made()
        disk = opened(path, how)
        disk.write_blocking(0, random.Random(3).randbytes(LENGTH))
        disk.flush_blocking()
        disk.write_zeroes_blocking(0, LENGTH, deallocate=True)
        disk.close()
        used[how] = os.stat(path).st_blocks * 512
        path.unlink()
    assert max(used[Discard.UNREF], used[Discard.PUNCH]) < MIB
    assert used[Discard.KEEP] > LENGTH


def test_what_was_discarded_behind_the_end_of_a_disk_that_shrank_is_no_matter(made: Callable[..., Path]) -> None:
    path = made()
    disk = opened(path, Discard.PUNCH)
    disk.write_blocking(0, random.Random(5).randbytes(LENGTH))
    disk.flush_blocking()
    disk.write_zeroes_blocking(4 * MIB, 2 * MIB, deallocate=True)
    kept = disk._map.commits.kept
    disk.flush_blocking()
    kept._rows.append((LENGTH // (64 * KIB) - 1, 1))  # as noted before the keeper took what the flush had noted
    disk.resize(2 * MIB)
    disk.close()
    assert checked(path).get("leaks", 0) == 0


def test_a_write_right_after_the_discard_is_not_punched_away(made: Callable[..., Path]) -> None:
    path = made("short-clusters")
    disk = opened(path, Discard.PUNCH)
    disk.write_blocking(0, random.Random(4).randbytes(LENGTH))
    disk.flush_blocking()
    disk.write_zeroes_blocking(0, LENGTH, deallocate=True)
    disk.flush_blocking()
    disk.write_blocking(MIB, b"x" * MIB)
    disk._map.commits.kept.punch()
    disk.write_zeroes_blocking(0, MIB, deallocate=True)
    disk.write_blocking(0, b"y" * 100)
    disk.close()
    raw = path.with_suffix(".raw")
    qemu_img("convert", "-f", "qcow2", "-O", "raw", path, raw)
    assert raw.read_bytes() == (b"y" * 100).ljust(MIB, b"\0") + b"x" * MIB + bytes(LENGTH - 2 * MIB)


def test_what_a_snapshot_uses_too_is_given_up(made: Callable[..., Path]) -> None:
    path = made()
    disk = opened(path, Discard.KEEP)
    data = random.Random(5).randbytes(LENGTH)
    disk.write_blocking(0, data)
    disk.snapshot("before")
    disk.write_zeroes_blocking(0, LENGTH, deallocate=True)
    disk.write_blocking(MIB, b"new" * 1000)
    disk.close()
    found = checked(path)
    assert (found["check-errors"], found.get("leaks", 0)) == (0, 0)
    qemu_img("snapshot", "-a", "before", path)
    raw = path.with_suffix(".raw")
    qemu_img("convert", "-f", "qcow2", "-O", "raw", path, raw)
    assert raw.read_bytes() == data


def test_random_writes_and_discards_leave_what_a_model_has(made: Callable[..., Path]) -> None:
    for seed, (kind, how) in enumerate((kind, how) for kind in KINDS for how in KEPT):
        path, draw = made(kind), random.Random(seed)
        model = bytearray((path.parent / "base").read_bytes() if "overlay" in kind else bytes(LENGTH))
        for _ in range(2):
            disk = opened(path, how)
            for _ in range(40):
                at = draw.randrange(0, LENGTH, 512)
                length = min(draw.choice([512, 4096, 70_000, 300_000, 2 * MIB]), LENGTH - at)
                match draw.randrange(6):
                    case 0 | 1:
                        disk.write_zeroes_blocking(at, length, deallocate=True)
                        model[at : at + length] = bytes(length)
                    case 2:
                        disk.flush_blocking()
                        disk._map.commits.kept.punch()
                    case _:
                        data = draw.randbytes(length)
                        disk.write_blocking(at, data)
                        model[at : at + length] = data
            assert disk.read_blocking(0, LENGTH) == model, (seed, kind, how)
            disk.close()
            found = checked(path)
            assert (found["check-errors"], found.get("leaks", 0)) == (0, 0), (seed, kind, how)
        path.unlink()


@pytest.mark.parametrize("how", KEPT)
def test_an_image_that_cannot_keep_clusters_says_so(tmp_path: Path, made: Callable[..., Path], how: Discard) -> None:
    with pytest.raises(UnsupportedFeature, match="version 2"):
        opened(made(compat="0.10"), how)
    create_image("raw", tmp_path / "raw", MIB)
    with pytest.raises(UnsupportedFeature, match="discard=unref"):
        open_chain("raw", tmp_path / "raw")[0].place_discarded(how)


# ---- ANCHOR --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_anchored_clusters_read_as_zeros_and_have_room_on_the_host_whatever_they_were(
    made: Callable[..., Path], kind: str
) -> None:
    """Written, written in part, discarded, or never there; also in the file's next life, when a write takes none."""
    path = made(kind)
    disk = opened(path, Discard.KEEP)
    assert disk.anchors
    disk.write_blocking(0, b"\1" * MIB)
    disk.write_blocking(MIB, b"\2" * 512)
    disk.write_blocking(2 * MIB, b"\3" * MIB)
    disk.flush_blocking()
    disk.write_zeroes_blocking(2 * MIB, MIB, deallocate=True)
    disk.anchor_blocking(0, 4 * MIB)
    assert disk.read_blocking(0, 4 * MIB) == bytes(4 * MIB)
    assert anchored(disk) == 4 * MIB
    disk.close()
    assert checked(path)["check-errors"] == 0
    disk = opened(path, Discard.KEEP)
    assert anchored(disk) == 4 * MIB
    used = os.stat(path).st_blocks
    disk.write_blocking(0, b"\4" * 4 * MIB)
    disk.flush_blocking()
    assert os.stat(path).st_blocks - used < 2048  # tables, room ahead; not the data
    assert disk.read_blocking(4 * MIB - 1, 1) == b"\4"
    disk.close()


def anchored(disk: Disk) -> int:
    """Bytes from the start on."""
    total = 0
    while True:
        for length, status in disk.status_blocking(total, disk.length - total):
            if status != 2:
                return total
            total += length


def test_the_ends_of_a_range_that_are_parts_of_clusters_are_zeroed(made: Callable[..., Path]) -> None:
    disk = opened(made(), Discard.KEEP)
    disk.write_blocking(0, b"\1" * MIB)
    disk.anchor_blocking(512, 3 * 65536)
    assert disk.read_blocking(0, MIB) == b"\1" * 512 + bytes(3 * 65536) + b"\1" * (MIB - 512 - 3 * 65536)
    assert [status for _, status in disk.status_blocking(0, 4 * 65536)] == [1, 2, 1]
    disk.anchor_blocking(2 * MIB + 512, 1024)  # inside one that was never there
    disk.anchor_blocking(3 * MIB - 512, 65536 + 1024)
    assert disk.read_blocking(2 * MIB, MIB + 131072) == bytes(MIB + 131072)
    assert disk.status_blocking(3 * MIB, 65536)[0] == (65536, 2)
    disk.close()


@pytest.mark.parametrize("how", [Discard.UNREF, Discard.PUNCH])
def test_nothing_is_anchored_where_the_host_gets_its_space_back(made: Callable[..., Path], how: Discard) -> None:
    disk = opened(made(), how)
    assert not disk.anchors
    disk.write_blocking(0, b"\1" * MIB)
    disk.flush_blocking()
    disk.write_zeroes_blocking(0, MIB, deallocate=True)
    assert 2 not in [status for _, status in disk.status_blocking(0, MIB)]
    disk.close()


def test_what_finds_no_room_is_an_error(made: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    disk = opened(made(), Discard.KEEP)
    monkeypatch.setattr("vstore.anchoring._give_room", lambda *_: False)
    with pytest.raises(OSError, match="No space left"):
        disk.anchor_blocking(0, MIB)
    disk.close()


def test_a_raw_image_anchors_nothing_and_its_logical_unit_says_so(tmp_path: Path) -> None:
    """What its file system has reserved is only told after all was written back, so nothing is claimed of it."""
    create_image("raw", tmp_path / "disk", MIB, preallocation="falloc")
    disk = Disk(*open_chain("raw", tmp_path / "disk"))
    assert not disk.anchors
    assert 2 not in [status for _, status in disk.status_blocking(0, MIB)]
    unit = LogicalUnit(disk, Identity("raw"))
    assert VPD_PAGES[0xB2].body(unit, 1)[1] & 2 == 0  # ANC_SUP
    disk.close()


@pytest.mark.parametrize("how", Discard)
@pytest.mark.parametrize("kind", KINDS)
def test_block_erase_leaves_nothing_in_the_file_of_what_was_written(
    made: Callable[..., Path], kind: str, how: Discard
) -> None:
    """Written as a whole, in part, and discarded before; the image stays as sparse as it was."""
    path = made(kind)
    disk = opened(path, how)
    secret = b"what nobody may read any more..."
    for offset, length in [(0, 2 * MIB), (3 * MIB + 512, 1024), (4 * MIB, MIB)]:
        disk.write_blocking(offset, secret * (length // len(secret)))
    disk.flush_blocking()
    disk.write_zeroes_blocking(MIB + 4096, 512 * KIB, deallocate=True)
    disk.flush_blocking()
    disk.write_blocking(4 * MIB, secret * 2000)
    room = os.stat(path).st_blocks
    initiator = Initiator(make_unit(medium=disk))
    assert asyncio.run(initiator.target.execute(initiator.task(SanitizeBlockErase.build()))).status is Status.GOOD
    assert disk.read_blocking(0, disk.length) == bytes(disk.length)
    assert os.stat(path).st_blocks - room < 2048  # tables, room ahead
    disk.close()
    assert path.read_bytes().count(secret[:20]) == 0
    found = checked(path)
    assert (found["check-errors"], found.get("leaks", 0)) == (0, 0)
