"""Long work on images: what comes of it, held against qemu-img, and what may not happen to the images meanwhile."""

import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

from tests.store.test_chains import qemu_info
from tests.store.test_jobs import ended
from tests.store.test_snapshots import qemu_io
from tests.store.world import MIB, World
from vstore.store import Store, schema
from vstore.store.errors import (
    AlreadyExists,
    Conflict,
    InUse,
    InvalidArgument,
    NotFound,
    Stale,
    StoreError,
    Unsupported,
)
from vstore.store.records import Job


@pytest.fixture
def chain(store: Store, world: World) -> Store:
    """base (raw, all 0x01) <- top (qcow2, its second 64 KiB 0x02), both 1 MiB."""
    store.create_image("default", "base", virtual_size_bytes=MIB)
    (world.pool() / "base.raw").write_bytes(b"\1" * MIB)
    store.clone_image("default", "base", clone="top")
    qemu_io(world.pool() / "top.qcow2", "write -P 2 64k 64k")
    return store


TOP = b"\1" * 65536 + b"\2" * 65536 + b"\1" * (MIB - 131072)


def content(world: World, file: str) -> bytes:
    path = world.pool() / file
    out = world.root / "content.raw"
    subprocess.run(["qemu-img", "convert", "-f", file.rpartition(".")[2], "-O", "raw", path, out], check=True)
    return out.read_bytes()


def done(store: Store, job: Job) -> dict[str, Any]:
    """The result of a job that has to succeed."""
    assert ended(store, job.id) == "succeeded", store.show_job(job.id).error
    result = store.show_job(job.id).result
    assert result is not None
    return result


def check(world: World, file: str) -> None:
    subprocess.run(["qemu-img", "check", "-q", "-f", "qcow2", world.pool() / file], check=True)


def test_info_and_map_are_those_of_qemu_img(chain: Store, world: World) -> None:
    told = chain.info_image("default", "top")
    expected = qemu_info(world.pool() / "top.qcow2", "qcow2")
    for key in ("format", "virtual-size", "cluster-size", "backing-filename", "backing-filename-format"):
        assert told[key] == expected[key]
    assert told["filename"] == "top.qcow2"
    rows = chain.map_image("default", "top").items
    assert [(row["start"], row["length"], row["depth"], row["data"]) for row in rows] == [
        (0, 65536, 1, True),
        (65536, 65536, 0, True),
        (131072, MIB - 131072, 1, True),
    ]


def test_a_map_comes_in_pages(chain: Store) -> None:
    starts, cursor = [], None
    while True:
        page = chain.map_image("default", "top", limit=1, cursor=cursor)
        starts += [row["start"] for row in page.items]
        cursor = page.cursor
        if cursor is None:
            break
    assert starts == [0, 65536, 131072]
    with pytest.raises(InvalidArgument):
        chain.map_image("default", "top", cursor="eHl6")


def test_no_look_shows_a_path_of_the_host(chain: Store, world: World) -> None:
    assert str(world.root) not in str(chain.info_image("default", "top"))
    (world.pool() / "top.qcow2").write_bytes(b"garbage" * 100)
    with pytest.raises(StoreError) as refusal:
        chain.info_image("default", "top")
    assert "top.qcow2 is not a qcow2 image" in refusal.value.detail
    assert str(world.root) not in refusal.value.detail


@pytest.mark.parametrize("asked", [{"format": "raw"}, {"format": "qcow2"}, {"format": "qcow2", "compress": True}])
def test_converting_makes_an_image_of_its_own_with_the_same_content(
    chain: Store, world: World, asked: dict[str, Any]
) -> None:
    job = chain.convert_image("default", "top", into="new", labels={"a": "b"}, **asked)
    assert done(chain, job) == {"image": "new", "virtual_size_bytes": MIB}
    image = chain.show_image("default", "new")
    assert (image.parent, image.virtual_size_bytes, image.labels) == (None, MIB, {"a": "b"})
    assert content(world, f"new.{asked['format']}") == TOP
    assert (chain.show_job(job.id).done_bytes, chain.show_job(job.id).total_bytes) != (0, 0)
    if asked["format"] == "qcow2":
        check(world, "new.qcow2")
        assert image.options["cluster_size_bytes"] == 65536


def test_a_snapshot_is_converted_also_while_a_guest_may_write(chain: Store, world: World) -> None:
    chain.create_snapshot("default", "top", "s")
    qemu_io(world.pool() / "top.qcow2", "write -P 3 0 1M")
    chain.create_target("t")
    chain.map_lun("t", "0", image="top")
    with pytest.raises(InUse, match=r"mapped writable as LUN t/0 .*convert a snapshot of it"):
        chain.convert_image("default", "top", into="new")
    done(chain, chain.convert_image("default", "top", into="new", format="raw", snapshot="s"))
    assert content(world, "new.raw") == TOP
    with pytest.raises(NotFound):
        chain.convert_image("default", "top", into="other", snapshot="x")


def test_a_conversion_that_fails_leaves_neither_file_nor_image(chain: Store, world: World) -> None:
    (world.pool() / "base.raw").unlink()
    job = chain.convert_image("default", "top", into="new")
    assert ended(chain, job.id) == "failed"
    assert "base.raw" in (chain.show_job(job.id).error or {})["detail"]
    assert world.files() == ["top.qcow2"]
    with pytest.raises(NotFound):
        chain.show_image("default", "new")


def test_a_foreign_file_is_never_replaced_by_a_conversion(chain: Store, world: World) -> None:
    (world.pool() / "new.raw").write_bytes(b"precious")
    job = chain.convert_image("default", "top", into="new", format="raw")
    assert ended(chain, job.id) == "failed"
    assert (chain.show_job(job.id).error or {})["code"] == "already_exists"
    assert (world.pool() / "new.raw").read_bytes() == b"precious"
    assert [name for name in world.files() if name.startswith(".")] == []


def test_what_cannot_be_converted_into_is_refused_at_once(chain: Store) -> None:
    with pytest.raises(AlreadyExists, match="there is an image base"):
        chain.convert_image("default", "top", into="base")
    with pytest.raises(InvalidArgument, match="memory images keep no bytes"):
        chain.convert_image("default", "top", into="new", format="memory")
    with pytest.raises(InvalidArgument, match="is not a name"):
        chain.convert_image("default", "top", into="../new")
    with pytest.raises(InvalidArgument, match="what is compressed cannot be preallocated"):
        chain.convert_image("default", "top", into="new", compress=True, preallocation="metadata")
    with pytest.raises(InvalidArgument, match="raw images hold nothing compressed"):
        chain.convert_image("default", "top", into="new", compress=True, format="raw")
    with pytest.raises(InvalidArgument, match="no such option"):
        chain.convert_image("default", "top", into="new", options={"cluster_size": 65536})


def test_comparing_tells_the_first_byte_that_differs(chain: Store, world: World) -> None:
    assert done(chain, chain.compare_image("default", "top", other="base")) == {
        "identical": False,
        "kind": "content",
        "offset_bytes": 65536,
    }
    chain.create_image("default", "same", virtual_size_bytes=MIB)
    (world.pool() / "same.raw").write_bytes(TOP)
    assert done(chain, chain.compare_image("default", "top", other="same"))["identical"]


def test_committing_writes_into_the_parent_and_empties_the_overlay(chain: Store, world: World) -> None:
    assert done(chain, chain.commit_image("default", "top")) == {"parent": "base"}
    assert (world.pool() / "base.raw").read_bytes() == TOP
    assert content(world, "top.qcow2") == TOP
    assert all(row["depth"] == 1 for row in chain.map_image("default", "top").items)
    check(world, "top.qcow2")
    assert chain.show_image("default", "base").revision == 2


def test_committing_a_longer_overlay_makes_the_parent_longer(chain: Store, world: World) -> None:
    chain.update_image("default", "top", virtual_size_bytes=2 * MIB)
    done(chain, chain.commit_image("default", "top"))
    assert chain.show_image("default", "base").virtual_size_bytes == 2 * MIB
    assert (world.pool() / "base.raw").read_bytes() == TOP + bytes(MIB)


def test_a_parent_of_others_is_not_committed_into(chain: Store) -> None:
    chain.clone_image("default", "base", clone="other")
    with pytest.raises(InUse, match="base cannot be written to by a commit, because it is the parent of other;"):
        chain.commit_image("default", "top")
    with pytest.raises(Conflict, match="no parent to commit into"):
        chain.commit_image("default", "base")


def test_a_rebased_image_has_another_parent_and_the_same_content(chain: Store, world: World) -> None:
    chain.create_image("default", "next", virtual_size_bytes=MIB)
    (world.pool() / "next.raw").write_bytes(b"\1" * 65536 + b"\4" * (MIB - 65536))
    assert done(chain, chain.rebase_image("default", "top", parent="next")) == {"parent": "next"}
    assert chain.show_image("default", "top").parent == "next"
    assert qemu_info(world.pool() / "top.qcow2", "qcow2")["backing-filename"] == "next.raw"
    assert content(world, "top.qcow2") == TOP
    assert chain.delete_image("default", "base")
    with pytest.raises(InUse, match="parent of top"):
        chain.delete_image("default", "next")


def test_a_flattened_image_stands_alone(chain: Store, world: World) -> None:
    done(chain, chain.rebase_image("default", "top", parent=None))
    image = chain.show_image("default", "top")
    assert (image.parent, image.backing, image.chain_depth) == (None, None, 0)
    assert chain.delete_image("default", "base")
    assert content(world, "top.qcow2") == TOP


def test_an_unsafe_rebase_changes_the_parent_and_looks_at_nothing(chain: Store, world: World) -> None:
    chain.create_image("default", "next", virtual_size_bytes=MIB)
    done(chain, chain.rebase_image("default", "top", parent="next", unsafe=True))
    assert content(world, "top.qcow2") == bytes(65536) + b"\2" * 65536 + bytes(MIB - 131072)


def test_an_image_that_keeps_snapshots_keeps_its_parent_too(chain: Store) -> None:
    chain.create_snapshot("default", "top", "s")
    for verb in (
        lambda: chain.rebase_image("default", "top", parent=None),
        lambda: chain.commit_image("default", "top"),
    ):
        job = verb()
        assert ended(chain, job.id) == "failed"
        error = chain.show_job(job.id).error or {}
        assert error["code"] == "unsupported"
        assert "keeps snapshots (s), whose content would change" in error["detail"]


def test_no_image_becomes_its_own_ancestor(chain: Store) -> None:
    chain.clone_image("default", "top", clone="above")
    with pytest.raises(InUse):
        chain.rebase_image("default", "top", parent="above")
    chain.create_image("default", "alone", virtual_size_bytes=MIB, format="qcow2")
    with pytest.raises(InvalidArgument, match="cannot be its own parent"):
        chain.rebase_image("default", "alone", parent="alone")


def test_checking_counts_what_is_wrong_and_repairs_it(chain: Store, world: World) -> None:
    path = world.pool() / "top.qcow2"
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write 512k 64k", path], capture_output=True, check=True)
    with path.open("r+b") as file:  # an L2 entry that nobody has any more: its cluster leaks
        file.seek(40)
        l1 = int.from_bytes(file.read(8), "big")
        file.seek(l1)
        l2 = int.from_bytes(file.read(8), "big") & ((1 << 56) - 1)
        file.seek(l2 + 4 * 16)  # extended L2, clusters of 128 KiB: what overlays are made with
        file.write(bytes(16))
    found = done(chain, chain.check_image("default", "top"))
    assert (found["leaks"], found.get("corruptions", 0)) == (1, 0)
    assert found["findings"]
    assert done(chain, chain.check_image("default", "top", repair="leaks"))["leaks-fixed"] == 1
    check(world, "top.qcow2")
    assert "leaks" not in done(chain, chain.check_image("default", "top"))


def test_what_has_no_structure_is_not_checked(chain: Store) -> None:
    with pytest.raises(Unsupported, match="raw images have no structure"):
        chain.check_image("default", "base")
    with pytest.raises(InvalidArgument, match="choose none, leaks, all"):
        chain.check_image("default", "top", repair="some")


def test_a_bench_tells_how_fast_it_was(chain: Store) -> None:
    result = done(chain, chain.bench_image("default", "top", requests=100, depth=4, request_bytes=4096))
    assert result["count"] == 100
    assert chain.list_jobs().items[0].total_bytes in (0, 100 * 4096)
    assert result["iops"] > 0
    with pytest.raises(InvalidArgument, match="choose 1 to 256"):
        chain.bench_image("default", "top", depth=1000)
    with pytest.raises(InvalidArgument, match="more than the whole disk"):
        chain.bench_image("default", "top", request_bytes=2 * MIB)


def test_what_a_guest_may_write_to_is_neither_changed_nor_read_by_a_job(chain: Store) -> None:
    chain.create_target("t")
    chain.map_lun("t", "0", image="top")
    for verb in (
        lambda: chain.check_image("default", "top"),
        lambda: chain.check_image("default", "top", repair="all"),
        lambda: chain.rebase_image("default", "top", parent=None),
        lambda: chain.commit_image("default", "top"),
        lambda: chain.convert_image("default", "top", into="new"),
        lambda: chain.compare_image("default", "base", other="top"),
        lambda: chain.bench_image("default", "top"),
    ):
        with pytest.raises(InUse, match=r"mapped (writable )?as LUN t/0"):
            verb()
    assert chain.list_jobs().items == []
    assert chain.info_image("default", "top")["virtual-size"] == MIB
    assert len(chain.map_image("default", "top").items) == 3


def test_a_stale_revision_starts_nothing(chain: Store) -> None:
    chain.update_image("default", "top", labels={"x": "y"})
    for verb in (
        lambda: chain.rebase_image("default", "top", parent=None, revision=1),
        lambda: chain.commit_image("default", "top", revision=1),
        lambda: chain.check_image("default", "top", repair="all", revision=1),
    ):
        with pytest.raises(Stale):
            verb()
    assert chain.list_jobs().items == []


def test_an_unmapped_overlay_grows_and_shows_zeros_behind_its_old_end(chain: Store, world: World) -> None:
    assert chain.update_image("default", "top", virtual_size_bytes=2 * MIB).virtual_size_bytes == 2 * MIB
    assert content(world, "top.qcow2") == TOP + bytes(MIB)
    chain.update_image("default", "top", virtual_size_bytes=131072, shrink=True)
    assert content(world, "top.qcow2") == TOP[:131072]
    check(world, "top.qcow2")


def test_a_header_that_another_program_changed_is_told_and_nothing_is_read(chain: Store, world: World) -> None:
    (world.pool() / "foreign.raw").write_bytes(b"\7" * MIB)
    argv = ["qemu-img", "rebase", "-u", "-f", "qcow2", "-b", "foreign.raw", "-F", "raw", world.pool() / "top.qcow2"]
    subprocess.run(argv, check=True)
    job = chain.convert_image("default", "top", into="new")
    assert ended(chain, job.id) == "failed"
    assert (
        "says that its parent is foreign.raw, the catalog says base.raw"
        in (chain.show_job(job.id).error or {})["detail"]
    )


def test_an_overlay_is_mapped_with_its_whole_chain(chain: Store, world: World) -> None:
    chain.clone_image("default", "top", clone="above")
    chain.create_target("t")
    chain.map_lun("t", "0", image="above")
    from vstore.target.client import TargetClient

    with TargetClient(str(world.runtime / "targets" / "t" / "ctl.sock")) as client:
        (lun,) = client.status().luns
    source = lun.settings.image
    assert (source.format, source.name) == ("qcow2", "default/above")
    assert [(each.format, each.name) for each in source.parents] == [("qcow2", "default/top"), ("raw", "default/base")]
    assert [each.file for each in source.parents] == ["top.qcow2", "base.raw"]


def test_a_missing_parent_keeps_the_overlay_from_being_mapped(chain: Store, world: World) -> None:
    Path(world.pool() / "base.raw").unlink()
    chain.create_target("t")
    with pytest.raises(Conflict, match=r"base\.raw"):
        chain.map_lun("t", "0", image="top")


def test_of_two_jobs_that_change_the_same_image_one_wins(chain: Store) -> None:
    chain.clone_image("default", "base", clone="other")
    refused: list[StoreError] = []
    jobs: list[Job] = []

    def rebase() -> None:
        try:
            jobs.append(chain.rebase_image("default", "top", parent=None))
        except StoreError as error:
            refused.append(error)

    threads = [threading.Thread(target=rebase) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(jobs) >= 1
    assert {type(error) for error in refused} <= {InUse}
    assert {ended(chain, job.id) for job in jobs} == {"succeeded"}
    assert chain.show_image("default", "top").parent is None


@pytest.mark.parametrize(("parent", "becomes"), [("next", "next"), ("base", "base"), (None, "base")])
def test_a_rebase_whose_end_the_catalog_did_not_hear_of_is_found_at_the_next_start(
    chain: Store, world: World, parent: str | None, becomes: str
) -> None:
    """The image names next.raw; only if the interrupted job was told that parent, it is believed."""
    chain.create_image("default", "next", virtual_size_bytes=MIB)
    done(chain, chain.rebase_image("default", "top", parent="next"))
    with chain.catalog.write() as connection:  # as it was before the job told its end
        base = connection.scalar(select(schema.images.c.id).where(schema.images.c.name == "base"))
        connection.execute(update(schema.images).where(schema.images.c.name == "top").values(parent_id=base))
        arguments = {"parent": parent, "unsafe": False}
        connection.execute(update(schema.jobs).values(state="running", arguments=arguments, ended_at=None))
    world.close_store(chain, stop_targets=True)
    again = world.open()
    assert again.show_image("default", "top").parent == becomes
    assert again.list_jobs().items[0].state == "failed"
