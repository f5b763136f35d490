"""Images that become another format under their name, and images whose bytes lie in data files; qemu-img reads both."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.store.test_crash import dies, prepare
from tests.store.test_jobs import ended
from tests.store.test_transfers import done
from tests.store.world import MIB, STATE, World
from vstore.store import Store
from vstore.store.errors import AlreadyExists, Conflict, InUse, InvalidArgument, Stale, StoreError

BYTES = b"\1" * 65536 + bytes(MIB - 131072) + b"\2" * 65536
RAW_DATA = {"data_file": "disk.data", "data_file_raw": True}
_PUBLISHING = frozenset({"os.link", "os.rename", "os.remove"})


def qemu(world: World, *argv: str) -> str:
    """In the pool, because QEMU looks for a data file from where it runs."""
    return subprocess.run(argv, check=True, capture_output=True, text=True, cwd=world.pool()).stdout


def content(world: World, file: str) -> bytes:
    """As qemu-img reads it, with the files that it names."""
    out = world.root / "content.raw"
    qemu(world, "qemu-img", "convert", "-f", file.rpartition(".")[2], "-O", "raw", file, str(out))
    return out.read_bytes()


def qemu_info(world: World, file: str) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(qemu(world, "qemu-img", "info", "--output=json", "-f", "qcow2", file))
    return told


@pytest.fixture
def disk(store: Store, world: World) -> Store:
    store.create_image("default", "disk", virtual_size_bytes=MIB, labels={"a": "b"})
    (world.pool() / "disk.raw").write_bytes(BYTES)
    return store


def in_place(store: Store, **how: Any) -> None:
    assert done(store, store.convert_image("default", "disk", in_place=True, **how)) == {
        "image": "disk",
        "virtual_size_bytes": MIB,
    }


def test_an_image_becomes_another_format_under_its_name(disk: Store, world: World) -> None:
    before = disk.show_image("default", "disk")
    in_place(disk)
    image = disk.show_image("default", "disk")
    assert (image.id, image.name, image.labels, image.created_at) == (
        *(before.id, "disk", {"a": "b"}, before.created_at),
    )
    assert (image.format, image.file, image.state, image.revision) == ("qcow2", "disk.qcow2", "ready", 2)
    assert world.files() == ["disk.qcow2"]
    assert content(world, "disk.qcow2") == BYTES
    in_place(disk, compress=True, options={"compression_type": "zstd"})
    image = disk.show_image("default", "disk")
    assert (world.files(), image.file) == (["disk~1.qcow2"], "disk~1.qcow2")
    assert qemu_info(world, "disk~1.qcow2")["format-specific"]["data"]["compression-type"] == "zstd"
    assert content(world, "disk~1.qcow2") == BYTES
    assert all(row.get("compressed") or row["zero"] for row in disk.map_image("default", "disk").items)
    in_place(disk, format="qcow2", options={"cluster_size_bytes": 4096})
    assert world.files() == ["disk.qcow2"]
    in_place(disk, format="raw")
    assert (world.pool() / "disk.raw").read_bytes() == BYTES
    assert (disk.show_image("default", "disk").options, world.files()) == ({}, ["disk.raw"])
    disk.create_target("t")
    assert disk.map_lun("t", "0", image="disk")[1]


def test_an_overlay_that_is_converted_in_place_stands_alone(disk: Store, world: World) -> None:
    disk.clone_image("default", "disk", clone="top")
    done(disk, disk.convert_image("default", "top", in_place=True, format="raw"))
    image = disk.show_image("default", "top")
    assert (image.parent, image.chain_depth, image.format) == (None, 0, "raw")
    assert disk.delete_image("default", "disk")
    assert content(world, "top.raw") == BYTES


def test_what_a_unit_keeps_beside_its_image_goes_along(disk: Store, world: World) -> None:
    (world.pool() / f"disk.raw{STATE}").write_bytes(b"reservations")
    in_place(disk)
    assert (world.pool() / f"disk.qcow2{STATE}").read_bytes() == b"reservations"
    assert world.states() == {"disk.qcow2"}
    disk.delete_image("default", "disk")
    assert os.listdir(world.pool()) == []


def test_an_image_is_encrypted_in_place_and_not_laid_open_unasked(
    disk: Store, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("formats.luks._ITERATIONS", 4000)
    disk.set_secret("k", value="open sesame")
    in_place(disk, format="luks", secret="k")
    assert BYTES[:512] not in (world.pool() / "disk.luks").read_bytes()
    for format in ("raw", "qcow2"):
        with pytest.raises(InvalidArgument, match=r"would not be encrypted any more; name its secret \(--encrypt k\)"):
            disk.convert_image("default", "disk", in_place=True, format=format)
    in_place(disk, secret="k")
    assert disk.show_image("default", "disk").secret == "k"
    done(disk, disk.convert_image("default", "disk", into="open", format="raw"))
    assert (world.pool() / "open.raw").read_bytes() == BYTES


def test_what_somebody_uses_or_what_would_be_lost_is_not_converted_in_place(disk: Store) -> None:
    disk.create_target("t")
    disk.map_lun("t", "0", image="disk", read_only=True)
    with pytest.raises(InUse, match="mapped as LUN t/0"):
        disk.convert_image("default", "disk", in_place=True)
    disk.unmap_lun("t", "0")
    disk.clone_image("default", "disk", clone="top")
    with pytest.raises(InUse, match="parent of top"):
        disk.convert_image("default", "disk", in_place=True)
    disk.create_snapshot("default", "top", "s")
    with pytest.raises(Conflict, match=r"keeps snapshots \(s\), which would be lost"):
        disk.convert_image("default", "top", in_place=True)
    disk.delete_snapshot("default", "top", "s")
    disk.add_bitmap("default", "top", "b")
    with pytest.raises(Conflict, match=r"keeps bitmaps \(b\), which would be lost"):
        disk.convert_image("default", "top", in_place=True)
    disk.create_image("default", "m", virtual_size_bytes=MIB, format="memory")
    with pytest.raises(Conflict, match="image m has no file"):
        disk.convert_image("default", "m", in_place=True)
    with pytest.raises(Stale):
        disk.convert_image("default", "top", in_place=True, revision=9)


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({}, "into"),
        ({"in_place": True, "into": "new"}, "into"),
        ({"in_place": True, "snapshot": "s"}, "snapshot"),
        ({"in_place": True, "labels": {"a": "b"}}, "labels"),
        ({"in_place": True, "format": "memory"}, "format"),
        ({"in_place": True, "compress": True, "options": {"data_file": "d.data"}}, "compress"),
    ],
)
def test_a_conversion_has_one_goal(disk: Store, asked: Any, field: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        disk.convert_image("default", "disk", **asked)
    assert refused.value.field == field


def test_a_conversion_in_place_that_fails_leaves_the_image_as_it_is(disk: Store, world: World) -> None:
    (world.pool() / "disk.qcow2").write_bytes(b"not ours")
    job = disk.convert_image("default", "disk", in_place=True)
    assert ended(disk, job.id) == "failed"
    assert "belongs to no image" in str(disk.show_job(job.id).error)
    assert world.files() == ["disk.qcow2", "disk.raw"]
    assert (world.pool() / "disk.qcow2").read_bytes() == b"not ours"
    assert (disk.show_image("default", "disk").format, content(world, "disk.raw")) == ("raw", BYTES)


def _convert_old(store: Store) -> None:
    options = {"data_file": "old.data", "data_file_raw": True}
    job = store.convert_image("default", "old", in_place=True, options=options)
    assert ended(store, job.id) == "succeeded"


def _is_old_or_new(world: World) -> str:
    """Which of both the image is; there is nothing of the other."""
    store = world.open()
    image = store.show_image("default", "old")
    world.close_store(store, stop_targets=True)
    files = {"raw": ["old.raw"], "qcow2": ["old.data", "old.qcow2"]}[image.format]
    expected = sorted([*files, "foreign.raw", f"{image.file}{STATE}"])
    assert sorted(set(os.listdir(world.pool()))) == expected
    assert image.state == "ready"
    assert content(world, files[-1]) == b"x" * MIB
    assert (world.pool() / f"{image.file}{STATE}").read_bytes() == b"kept"
    return image.format


def _anew(world: World) -> None:
    store = world.open()
    store.delete_image("default", "old")
    world.close_store(store, stop_targets=True)
    prepare(world)
    (world.pool() / f"old.raw{STATE}").write_bytes(b"kept")


def test_a_daemon_that_dies_at_any_step_of_it_leaves_the_old_image_or_the_new_one(world: World) -> None:
    _anew(world)
    steps, found = 0, []
    while dies(world, _convert_old, steps, _PUBLISHING):
        found.append(_is_old_or_new(world))
        if found[-1] == "qcow2":
            _anew(world)
        steps += 1
        assert steps < 40
    assert _is_old_or_new(world) == "qcow2"
    assert found == sorted(found, reverse=True), "old up to the commit, new from there on"
    assert found.count("raw") >= 8
    assert found.count("qcow2") >= 4


# ---- data files ----


@pytest.mark.parametrize("options", [RAW_DATA, {"data_file": "disk.data"}])
def test_an_image_keeps_its_bytes_in_a_data_file_that_comes_and_goes_with_it(
    store: Store, world: World, options: dict[str, Any]
) -> None:
    how: dict[str, Any] = {"virtual_size_bytes": MIB, "format": "qcow2", "options": options}
    image, new = store.create_image("default", "disk", **how)
    assert new
    assert world.files() == ["disk.data", "disk.qcow2"]
    assert image.options["data_file"] == "disk.data"
    assert qemu_info(world, "disk.qcow2")["format-specific"]["data"]["data-file"] == "disk.data"
    assert store.create_image("default", "disk", **how) == (image, False)
    with pytest.raises(AlreadyExists):
        store.create_image("default", "disk", **{**how, "options": {"data_file": "other.data"}})
    qemu(world, "qemu-io", "-f", "qcow2", "-c", "write -P 7 64k 64k", "disk.qcow2")
    assert (world.pool() / "disk.data").read_bytes()[65536:131072] == b"\7" * 65536
    assert store.info_image("default", "disk")["format-specific"]["data"]["data-file"] == "disk.data"
    assert store.show_image("default", "disk").actual_size_bytes >= 65536
    store.update_image("default", "disk", virtual_size_bytes=2 * MIB)
    done(store, store.convert_image("default", "disk", into="plain", format="raw"))
    assert (world.pool() / "plain.raw").read_bytes() == content(world, "disk.qcow2")
    assert done(store, store.check_image("default", "disk"))["check-errors"] == 0
    assert store.delete_image("default", "disk")
    assert world.files() == ["plain.raw"]


def test_overlays_stand_on_an_image_with_a_data_file(disk: Store, world: World) -> None:
    done(disk, disk.convert_image("default", "disk", into="base", options={**RAW_DATA, "data_file": "base.data"}))
    assert (world.pool() / "base.data").read_bytes() == BYTES
    disk.clone_image("default", "base", clone="top", options={"cluster_size_bytes": 65536})
    qemu(world, "qemu-io", "-f", "qcow2", "-c", "write -P 9 0 64k", "top.qcow2")
    done(disk, disk.convert_image("default", "top", into="flat", format="raw"))
    assert (world.pool() / "flat.raw").read_bytes() == b"\x09" * 65536 + BYTES[65536:]
    done(disk, disk.commit_image("default", "top"))
    assert (world.pool() / "base.data").read_bytes() == (world.pool() / "flat.raw").read_bytes()
    assert content(world, "base.qcow2") == content(world, "flat.raw")


def test_bytes_move_into_a_data_file_and_out_of_it_in_place(disk: Store, world: World) -> None:
    in_place(disk, options=RAW_DATA)
    assert world.files() == ["disk.data", "disk.qcow2"]
    with pytest.raises(InvalidArgument, match="has its bytes there now"):
        disk.convert_image("default", "disk", in_place=True, options=RAW_DATA)
    in_place(disk, options={"data_file": "two.data"})
    assert world.files() == ["disk~1.qcow2", "two.data"]
    assert content(world, "disk~1.qcow2") == BYTES
    in_place(disk, format="raw")
    assert (world.files(), content(world, "disk.raw")) == (["disk.raw"], BYTES)


@pytest.mark.parametrize(
    "name",
    [
        "../out.data",
        "/tmp/out.data",
        "a/b.data",
        ".creating.data",
        "x.raw",
        "x",
        "",
        "nbd:x.data",
        "x.data\0",
        "x\n.data",
    ],
)
def test_a_data_files_name_leads_nowhere_but_into_the_pool(store: Store, world: World, name: str) -> None:
    for make in (
        lambda options: store.create_image("default", "a", virtual_size_bytes=MIB, format="qcow2", options=options),
        lambda options: store.convert_image("default", "a", into="b", options=options),
    ):
        with pytest.raises(InvalidArgument) as refused:
            make({"data_file": name})
        assert refused.value.field == "options/data_file"
    assert world.files() == []


def test_a_file_that_is_there_already_becomes_nobodys_data_file(disk: Store, world: World) -> None:
    foreign = world.pool() / "disk.data"
    outside = world.root / "outside"
    outside.write_bytes(b"not ours")
    for make in (lambda: foreign.write_bytes(b"not ours"), lambda: foreign.symlink_to(outside)):
        make()
        with pytest.raises(StoreError, match="belongs to no image"):
            disk.create_image("default", "new", virtual_size_bytes=MIB, format="qcow2", options=RAW_DATA)
        assert sorted(os.listdir(world.pool())) == ["disk.data", "disk.raw"]
        assert foreign.read_bytes() == b"not ours"
        foreign.unlink()


def test_a_data_file_that_is_gone_makes_its_image_missing(store: Store, world: World) -> None:
    store.create_image("default", "disk", virtual_size_bytes=MIB, format="qcow2", options=RAW_DATA)
    (world.pool() / "disk.data").unlink()
    assert store.show_image("default", "disk").state == "missing"
    with pytest.raises(Conflict, match=r"cannot open disk\.data"):
        store.map_image("default", "disk")


def _agree(world: World) -> list[str]:
    """The images after the next start; catalog and directory tell the same."""
    store = world.open()
    images = store.list_images("default").items
    world.close_store(store, stop_targets=True)
    assert [image.state for image in images] == ["ready"] * len(images)
    assert world.files() == sorted(
        file for image in images for file in (image.file, image.options["data_file"]) if file
    )
    return [image.name for image in images]


def test_an_image_and_its_data_file_come_and_go_together_whenever_the_daemon_dies(world: World) -> None:
    how: dict[str, Any] = {"virtual_size_bytes": MIB, "format": "qcow2", "options": RAW_DATA}
    Path(world.state).mkdir()
    for verb, least in (
        (lambda store: store.create_image("default", "disk", **how), 6),
        (lambda store: store.delete_image("default", "disk"), 5),
    ):
        steps, found = 0, []
        while dies(world, verb, steps, _PUBLISHING):
            found.append(_agree(world))
            if found[-1] != found[0]:  # it was done: begin again
                store = world.open()
                _ = store.create_image("default", "disk", **how) if found[0] else store.delete_image("default", "disk")
                world.close_store(store, stop_targets=True)
            steps += 1
        assert len(found) >= least
        assert found[0] != found[-1] == _agree(world)
