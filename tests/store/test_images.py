"""Verbs on images: the row and the file change together, and every refusal says what would be right."""

import os
import subprocess
import threading
from pathlib import Path

import pytest

from tests.store.test_jobs import ended
from tests.store.world import MIB, World
from vstore.store import Store
from vstore.store.errors import (
    AlreadyExists,
    Conflict,
    InUse,
    InvalidArgument,
    Locked,
    NotFound,
    PoolFull,
    Stale,
)
from vstore.store.jobs import _MOST_RUNNING
from vstore.store.records import Job


def test_a_new_image_is_a_sparse_file_that_reads_as_zeros(store: Store, world: World) -> None:
    image, new = store.create_image("default", "a", virtual_size_bytes=MIB)
    assert new
    assert (image.name, image.format, image.state, image.revision) == ("a", "raw", "ready", 1)
    assert (image.virtual_size_bytes, image.actual_size_bytes, image.luns) == (MIB, 0, [])
    assert world.files() == ["a.raw"]
    assert (world.pool() / "a.raw").read_bytes() == bytes(MIB)


def test_qemu_img_reads_a_new_image_as_it_was_made(store: Store, world: World) -> None:
    store.create_image("default", "a", virtual_size_bytes=3 * MIB, preallocation="full")
    told = subprocess.run(
        ["qemu-img", "info", "-f", "raw", world.pool() / "a.raw"], capture_output=True, text=True, check=True
    ).stdout
    assert "virtual size: 3 MiB (3145728 bytes)" in told
    assert store.show_image("default", "a").actual_size_bytes >= 3 * MIB


def test_creating_the_same_image_twice_is_one_image(store: Store) -> None:
    first, _ = store.create_image("default", "a", virtual_size_bytes=MIB, labels={"x": "y"})
    second, new = store.create_image("default", "a", virtual_size_bytes=MIB)
    assert not new
    assert second == first


@pytest.mark.parametrize("difference", [{"virtual_size_bytes": 2 * MIB}, {"format": "null"}, {"labels": {"x": "z"}}])
def test_creating_another_image_of_that_name_is_refused_and_names_the_difference(
    store: Store, difference: dict[str, object]
) -> None:
    store.create_image("default", "a", virtual_size_bytes=MIB)
    asked = {"virtual_size_bytes": MIB} | difference
    with pytest.raises(AlreadyExists, match=f"exists with {next(iter(difference))}"):
        store.create_image("default", "a", **asked)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("field", "asked"),
    [
        ("image", {"name": "../a", "virtual_size_bytes": MIB}),
        ("virtual_size_bytes", {"name": "a", "virtual_size_bytes": 1000}),
        ("format", {"name": "a", "virtual_size_bytes": MIB, "format": "floppy"}),
        ("preallocation", {"name": "a", "virtual_size_bytes": MIB, "preallocation": "some"}),
        ("labels", {"name": "a", "virtual_size_bytes": MIB, "labels": {"A": ""}}),
    ],
)
def test_a_value_that_cannot_be_right_is_refused_by_field_and_leaves_no_file(
    store: Store, world: World, field: str, asked: dict[str, object]
) -> None:
    with pytest.raises(InvalidArgument) as refusal:
        store.create_image("default", **asked)  # type: ignore[arg-type]
    assert refusal.value.field == field
    assert world.files() == []


def test_a_foreign_file_of_that_name_is_never_touched(store: Store, world: World) -> None:
    (world.pool() / "a.raw").write_bytes(b"precious")
    with pytest.raises(AlreadyExists, match="belongs to no image"):
        store.create_image("default", "a", virtual_size_bytes=MIB)
    assert (world.pool() / "a.raw").read_bytes() == b"precious"
    assert world.files() == ["a.raw"]


def test_an_image_larger_than_the_file_system_is_refused_without_a_trace(store: Store, world: World) -> None:
    with pytest.raises((PoolFull, InvalidArgument)):
        store.create_image("default", "a", virtual_size_bytes=1 << 55, preallocation="falloc")
    assert world.files() == []
    with pytest.raises(NotFound):
        store.show_image("default", "a")


def test_an_unknown_pool_is_refused_with_the_known_ones(store: Store) -> None:
    with pytest.raises(NotFound, match="the pools are default"):
        store.create_image("fast", "a", virtual_size_bytes=MIB)


def test_images_are_listed_by_name_page_by_page(store: Store) -> None:
    names = [f"i{number}" for number in range(7)]
    for name in reversed(names):
        store.create_image("default", name, virtual_size_bytes=512)
    seen, cursor = [], None
    while True:
        page = store.list_images("default", limit=3, cursor=cursor)
        seen.append([image.name for image in page.items])
        cursor = page.cursor
        if cursor is None:
            break
    assert seen == [names[:3], names[3:6], names[6:]]


@pytest.mark.parametrize(("limit", "cursor"), [(0, None), (501, None), (10, "%%%"), (10, "_w")])
def test_a_page_that_cannot_be_is_refused(store: Store, limit: int, cursor: str | None) -> None:
    with pytest.raises(InvalidArgument):
        store.list_images("default", limit=limit, cursor=cursor)


def test_an_image_grows_and_keeps_its_bytes(store: Store, world: World) -> None:
    store.create_image("default", "a", virtual_size_bytes=MIB)
    (world.pool() / "a.raw").write_bytes(b"x" * MIB)
    image = store.update_image("default", "a", virtual_size_bytes=2 * MIB)
    assert (image.virtual_size_bytes, image.revision) == (2 * MIB, 2)
    assert (world.pool() / "a.raw").read_bytes() == b"x" * MIB + bytes(MIB)


def test_shrinking_needs_to_be_meant(store: Store, world: World) -> None:
    store.create_image("default", "a", virtual_size_bytes=2 * MIB)
    with pytest.raises(Conflict, match="shrink"):
        store.update_image("default", "a", virtual_size_bytes=MIB)
    assert (world.pool() / "a.raw").stat().st_size == 2 * MIB
    assert store.update_image("default", "a", virtual_size_bytes=MIB, shrink=True).virtual_size_bytes == MIB
    assert (world.pool() / "a.raw").stat().st_size == MIB


def test_labels_merge_and_null_takes_one_away(store: Store) -> None:
    store.create_image("default", "a", virtual_size_bytes=512, labels={"keep": "1", "drop": "2", "set": "3"})
    image = store.update_image("default", "a", labels={"drop": None, "set": "4", "new": "5"})
    assert image.labels == {"keep": "1", "set": "4", "new": "5"}


def test_an_update_that_changes_nothing_keeps_the_revision(store: Store) -> None:
    store.create_image("default", "a", virtual_size_bytes=512)
    assert store.update_image("default", "a", virtual_size_bytes=512, labels={}).revision == 1


def test_a_stale_revision_changes_and_deletes_nothing(store: Store, world: World) -> None:
    store.create_image("default", "a", virtual_size_bytes=512)
    store.update_image("default", "a", virtual_size_bytes=1024, revision=1)
    with pytest.raises(Stale, match="at revision 2, not 1"):
        store.update_image("default", "a", virtual_size_bytes=2048, revision=1)
    with pytest.raises(Stale):
        store.delete_image("default", "a", revision=1)
    assert (world.pool() / "a.raw").stat().st_size == 1024


def test_a_deleted_image_is_gone_with_its_file_and_its_name_is_free(store: Store, world: World) -> None:
    first, _ = store.create_image("default", "a", virtual_size_bytes=512)
    assert store.delete_image("default", "a")
    assert world.files() == []
    second, new = store.create_image("default", "a", virtual_size_bytes=512)
    assert new
    assert second.id != first.id


def test_deleting_what_is_gone_is_told_and_no_error(store: Store) -> None:
    assert store.delete_image("default", "a") is False


def test_a_mapped_image_is_not_deleted_and_the_lun_is_named(store: Store, world: World) -> None:
    store.create_image("default", "a", virtual_size_bytes=MIB)
    store.create_target("t")
    store.map_lun("t", "1:5", image="a")
    with pytest.raises(InUse, match="LUN t/1:5; unmap it first"):
        store.delete_image("default", "a")
    assert world.files() == ["a.raw"]
    assert store.show_image("default", "a").luns == ["t/1:5"]


def test_an_image_that_qemu_holds_is_neither_deleted_nor_resized(store: Store, world: World) -> None:
    store.create_image("default", "a", virtual_size_bytes=MIB)
    with _held_by_qemu(world.pool() / "a.raw"):
        with pytest.raises(Locked, match="in use"):
            store.delete_image("default", "a")
        with pytest.raises(Locked, match="in use"):
            store.update_image("default", "a", virtual_size_bytes=2 * MIB)
    assert store.delete_image("default", "a")


def test_an_image_whose_file_is_gone_stays_listed_as_missing_and_can_be_deleted(store: Store, world: World) -> None:
    store.create_image("default", "a", virtual_size_bytes=MIB)
    (world.pool() / "a.raw").unlink()
    assert store.show_image("default", "a").state == "missing"
    with pytest.raises(Conflict, match=r"a\.raw"):
        store.update_image("default", "a", virtual_size_bytes=2 * MIB)
    assert store.delete_image("default", "a")


def test_a_symbolic_link_in_the_place_of_an_image_leads_nowhere(store: Store, world: World) -> None:
    store.create_image("default", "a", virtual_size_bytes=MIB)
    outside = world.root / "outside"
    outside.write_bytes(b"secret" * 512)
    (world.pool() / "a.raw").unlink()
    os.symlink(outside, world.pool() / "a.raw")
    with pytest.raises(Conflict):
        store.update_image("default", "a", virtual_size_bytes=2 * MIB)
    assert outside.read_bytes() == b"secret" * 512


def test_an_image_without_a_file_has_a_size_and_nothing_on_disk(store: Store, world: World) -> None:
    image, _ = store.create_image("default", "m", virtual_size_bytes=MIB, format="memory")
    assert (image.file, image.actual_size_bytes, image.state) == (None, 0, "ready")
    assert store.update_image("default", "m", virtual_size_bytes=2 * MIB).virtual_size_bytes == 2 * MIB
    assert world.files() == []
    assert store.delete_image("default", "m")


def test_no_message_shows_a_path_of_the_host(store: Store, world: World) -> None:
    (world.pool() / "a.raw").write_bytes(b"")
    with pytest.raises(AlreadyExists) as refusal:
        store.create_image("default", "a", virtual_size_bytes=MIB)
    assert str(world.root) not in refusal.value.detail
    assert ".creating-" not in refusal.value.detail


class _held_by_qemu:  # noqa: N801  (reads as the deed that it is)
    """qemu-io with the image open for writing."""

    def __init__(self, image: Path) -> None:
        command = ["qemu-io", "-f", "raw", str(image)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)

    def __enter__(self) -> None:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(b"write 0 512\n")
        assert b"wrote 512/512 bytes" in self._process.stdout.readline()

    def __exit__(self, *_: object) -> None:
        self._process.communicate()


@pytest.mark.parametrize("format", ["raw", "qcow2"])
def test_an_image_is_resized_by_a_job_where_nobody_wants_to_wait(store: Store, format: str) -> None:
    store.create_image("default", "a", virtual_size_bytes=MIB, format=format, labels={"kept": "x"})
    revision = store.show_image("default", "a").revision
    how = {"virtual_size_bytes": 3 * MIB, "labels": {"new": "y"}, "revision": revision}
    job = store.update_image("default", "a", **how, detached=True)
    assert isinstance(job, Job)
    assert ended(store, job.id) == "succeeded"
    now = store.show_image("default", "a")
    assert (now.virtual_size_bytes, now.labels) == (3 * MIB, {"kept": "x", "new": "y"})
    assert now.revision == revision + 1
    assert (store.show_job(job.id).result or {})["virtual_size_bytes"] == 3 * MIB
    with pytest.raises(Conflict, match="shrink"):
        store.update_image("default", "a", virtual_size_bytes=MIB, detached=True)


@pytest.mark.parametrize("verb", ["resize", "delete_snapshot"])
def test_a_job_changes_no_image_that_took_the_place_of_its_own(store: Store, world: World, verb: str) -> None:
    """Its turn comes late: meanwhile its image was unmapped, and another one mapped there."""
    for name in "ab":
        store.create_image("default", name, virtual_size_bytes=4 * MIB, format="qcow2")
        store.create_snapshot("default", name, "s")
    store.create_target("t")
    store.map_lun("t", "0", image="a")
    turn = threading.Event()
    for _ in range(_MOST_RUNNING):
        store.jobs._threads.submit(turn.wait)
    try:
        if verb == "resize":
            job = store.update_image("default", "a", virtual_size_bytes=8 * MIB, detached=True)
        else:
            job = store.delete_snapshot("default", "a", "s", detached=True)  # type: ignore[assignment]
        store.unmap_lun("t", "0")
        store.map_lun("t", "0", image="b")
    finally:
        turn.set()
    assert isinstance(job, Job)
    assert ended(store, job.id) == "failed"
    assert "unmapped meanwhile" in (store.show_job(job.id).error or {})["detail"]
    store.unmap_lun("t", "0")
    with (world.pool() / "b.qcow2").open("rb") as file:
        assert int.from_bytes(file.read(32)[24:]) == 4 * MIB
    assert len(store.list_snapshots("default", "b").items) == 1
