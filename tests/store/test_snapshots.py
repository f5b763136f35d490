"""Snapshots inside an image: taken, listed, applied and deleted, held against qemu-img; and who may not."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.store.test_jobs import ended
from tests.store.world import MIB, World
from vstore.store import Store
from vstore.store.errors import InUse, InvalidArgument, Locked, NotFound, PoolUnavailable, Stale, Unsupported
from vstore.store.records import Job


@pytest.fixture
def disk(store: Store) -> Store:
    """Image a: qcow2, 1 MiB."""
    store.create_image("default", "a", virtual_size_bytes=MIB, format="qcow2")
    return store


def qemu_snapshots(world: World) -> list[str]:
    argv = ["qemu-img", "info", "-U", "-f", "qcow2", "--output=json", str(world.pool() / "a.qcow2")]
    told: dict[str, Any] = json.loads(subprocess.run(argv, capture_output=True, check=True).stdout)
    return [snapshot["name"] for snapshot in told.get("snapshots", [])]


def qemu_io(path: Path, command: str) -> str:
    argv = ["qemu-io", "-f", "qcow2", "-c", command, str(path)]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout


def test_a_snapshot_is_one_that_qemu_knows_and_the_disk_goes_back_to_it(disk: Store, world: World) -> None:
    path = world.pool() / "a.qcow2"
    qemu_io(path, "write -P 1 0 64k")
    first, new = disk.create_snapshot("default", "a", "first")
    assert new
    assert (first.name, first.virtual_size_bytes, first.pause_us) == ("first", MIB, None)
    qemu_io(path, "write -P 2 0 64k")
    assert qemu_snapshots(world) == ["first"]
    before = disk.show_image("default", "a").revision
    job = disk.apply_snapshot("default", "a", "first", revision=before)
    assert ended(disk, job.id) == "succeeded"
    assert "pattern" not in qemu_io(path, "read -P 1 0 64k").lower()
    assert disk.show_image("default", "a").revision == before + 1
    subprocess.run(["qemu-img", "check", "-q", "-f", "qcow2", str(path)], check=True)


def test_applying_a_snapshot_gives_the_disk_its_old_length(disk: Store) -> None:
    disk.create_snapshot("default", "a", "short")
    disk.update_image("default", "a", virtual_size_bytes=4 * MIB)
    job = disk.apply_snapshot("default", "a", "short")
    assert ended(disk, job.id) == "succeeded"
    assert disk.show_job(job.id).result == {"virtual_size_bytes": MIB}
    assert disk.show_image("default", "a").virtual_size_bytes == MIB


def test_the_same_snapshot_twice_is_one_and_they_are_listed_in_order(disk: Store, world: World) -> None:
    first, _ = disk.create_snapshot("default", "a", "one")
    assert disk.create_snapshot("default", "a", "one") == (first, False)
    disk.create_snapshot("default", "a", "two")
    page = disk.list_snapshots("default", "a", limit=1)
    assert [each.name for each in page.items] == ["one"]
    assert [each.name for each in disk.list_snapshots("default", "a", limit=1, cursor=page.cursor).items] == ["two"]
    assert disk.show_snapshot("default", "a", "one") == first
    assert qemu_snapshots(world) == ["one", "two"]


def test_a_snapshot_is_deleted_by_its_name_even_if_that_is_the_number_of_another(disk: Store, world: World) -> None:
    disk.create_snapshot("default", "a", "2")
    disk.create_snapshot("default", "a", "keep")
    assert disk.show_snapshot("default", "a", "keep").id == "2"
    assert disk.delete_snapshot("default", "a", "2")
    assert qemu_snapshots(world) == ["keep"]
    assert disk.delete_snapshot("default", "a", "2") is False


def test_a_snapshot_that_was_taken_again_meanwhile_is_not_deleted(disk: Store, world: World) -> None:
    first, _ = disk.create_snapshot("default", "a", "s")
    disk.delete_snapshot("default", "a", "s")
    disk.create_snapshot("default", "a", "s")
    with pytest.raises(Stale):
        disk.delete_snapshot("default", "a", "s", revision=first.revision)
    assert qemu_snapshots(world) == ["s"]


def test_what_has_no_snapshots_says_so(store: Store) -> None:
    store.create_image("default", "r", virtual_size_bytes=MIB)
    with pytest.raises(Unsupported, match=r"r\.raw: raw images hold no snapshots; those of qcow2 do"):
        store.create_snapshot("default", "r", "s")


def test_a_snapshot_that_is_not_there_is_not_found(disk: Store) -> None:
    with pytest.raises(NotFound, match="image a has no snapshot 'x'"):
        disk.show_snapshot("default", "a", "x")
    with pytest.raises(NotFound):
        disk.apply_snapshot("default", "a", "x")


@pytest.mark.parametrize("name", ["", "A", "../x", "a b", "x" * 64])
def test_a_name_that_cannot_be_is_refused(disk: Store, name: str) -> None:
    with pytest.raises(InvalidArgument):
        disk.create_snapshot("default", "a", name)


def test_a_parent_gets_no_snapshots_and_goes_back_to_none(disk: Store) -> None:
    disk.create_snapshot("default", "a", "s")
    disk.clone_image("default", "a", clone="top")
    for verb in (
        lambda: disk.create_snapshot("default", "a", "t"),
        lambda: disk.delete_snapshot("default", "a", "s"),
        lambda: disk.apply_snapshot("default", "a", "s"),
    ):
        with pytest.raises(InUse, match="because it is the parent of top"):
            verb()
    assert [each.name for each in disk.list_snapshots("default", "a").items] == ["s"]


def test_under_a_guest_no_snapshot_is_applied_and_under_a_reader_none_is_taken(disk: Store) -> None:
    disk.create_snapshot("default", "a", "s")
    disk.create_target("t")
    disk.map_lun("t", "0", image="a", read_only=True)
    with pytest.raises(InUse, match="mapped as LUN t/0"):
        disk.apply_snapshot("default", "a", "s")
    with pytest.raises(InUse, match="mapped read-only as LUN t/0"):
        disk.create_snapshot("default", "a", "t")


def test_an_image_that_qemu_holds_is_left_alone(disk: Store, world: World) -> None:
    process = subprocess.Popen(
        ["qemu-io", "-f", "qcow2", str(world.pool() / "a.qcow2")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
    )
    assert process.stdin
    assert process.stdout
    process.stdin.write(b"write 0 512\n")
    assert b"wrote 512/512 bytes" in process.stdout.readline()
    with pytest.raises(Locked):
        disk.create_snapshot("default", "a", "s")
    process.communicate()
    assert disk.create_snapshot("default", "a", "s")[1]


def test_under_a_guest_the_target_process_takes_and_deletes_them(disk: Store, world: World) -> None:
    disk.create_target("t")
    disk.map_lun("t", "1:5", image="a")
    taken, new = disk.create_snapshot("default", "a", "live")
    assert (new, taken.name, taken.pause_us) == (True, "live", 750)
    assert disk.create_snapshot("default", "a", "live")[1] is False
    assert [each.name for each in disk.list_snapshots("default", "a").items] == ["live"]
    with pytest.raises(InUse, match="mapped as LUN t/1:5"):
        disk.apply_snapshot("default", "a", "live")
    assert disk.delete_snapshot("default", "a", "live")
    assert qemu_snapshots(world) == []


def test_a_process_that_cannot_take_a_snapshot_is_told(disk: Store, world: World) -> None:
    disk.create_target("t")
    disk.map_lun("t", "0", image="a")
    world.fail("t", snapshot_lun="host_error")
    with pytest.raises(PoolUnavailable, match="target t: snapshot_lun fails as it was told to"):
        disk.create_snapshot("default", "a", "live")
    assert disk.list_snapshots("default", "a").items == []


def test_a_snapshot_whose_time_cannot_be_is_listed_all_the_same(disk: Store, world: World) -> None:
    disk.create_snapshot("default", "a", "one")
    with (world.pool() / "a.qcow2").open("r+b") as file:
        file.seek(64)  # qcow2 header: snapshots_offset
        file.seek(int.from_bytes(file.read(8)) + 20)  # date_nsec
        file.write(b"\xff" * 4)
    assert disk.show_snapshot("default", "a", "one").created_at.endswith(".999999Z")


def test_a_snapshot_whose_name_is_no_text_is_told_as_text(disk: Store, world: World) -> None:
    subprocess.run(["qemu-img", "snapshot", "-c", b"bad\xff", world.pool() / "a.qcow2"], check=True)
    assert [each.name for each in disk.list_snapshots("default", "a").items] == ["bad?"]
    assert json.dumps(disk.info_image("default", "a"), ensure_ascii=False).encode()


@pytest.mark.parametrize("mapped", [False, True], ids=["offline", "under a target"])
def test_a_snapshot_is_taken_and_deleted_by_a_job_where_nobody_wants_to_wait(
    disk: Store, world: World, mapped: bool
) -> None:
    if mapped:
        disk.create_target("t")
        disk.map_lun("t", "0", image="a")
    job = disk.create_snapshot("default", "a", "later", detached=True)
    assert isinstance(job, Job)
    assert (job.verb, job.arguments) == ("create_snapshot", {"snapshot": "later"})
    assert ended(disk, job.id) == "succeeded"
    assert (disk.show_job(job.id).result or {})["name"] == "later"
    assert qemu_snapshots(world) == ["later"]
    there = disk.create_snapshot("default", "a", "later", detached=True)
    assert isinstance(there, tuple)
    assert not there[1]
    job = disk.delete_snapshot("default", "a", "later", detached=True)
    assert isinstance(job, Job)
    assert ended(disk, job.id) == "succeeded"
    assert qemu_snapshots(world) == []
    assert disk.delete_snapshot("default", "a", "later", detached=True) is False
