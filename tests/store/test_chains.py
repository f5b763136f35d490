"""Overlays: what the catalog says of parents and children, what the files say, and what a parent may no longer do."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.store.world import MIB, World
from vstore.store import Store
from vstore.store.errors import AlreadyExists, Conflict, InUse, InvalidArgument, NotFound


def qemu_info(path: Path, format: str) -> dict[str, Any]:
    argv = ["qemu-img", "info", "-f", format, "--output=json", str(path)]
    told: dict[str, Any] = json.loads(subprocess.run(argv, capture_output=True, check=True).stdout)
    return told


@pytest.fixture
def base(store: Store) -> Store:
    """Image base: raw, 1 MiB."""
    store.create_image("default", "base", virtual_size_bytes=MIB)
    return store


def test_a_new_qcow2_image_is_what_qemu_reads(store: Store, world: World) -> None:
    options = {"cluster_size_bytes": 131072, "extended_l2": True, "refcount_bits": 32, "compression_type": "zstd"}
    image, _ = store.create_image("default", "a", virtual_size_bytes=3 * MIB, format="qcow2", options=options)
    assert (image.file, image.virtual_size_bytes, image.chain_depth, image.parent) == ("a.qcow2", 3 * MIB, 0, None)
    assert image.options == options | {"lazy_refcounts": False, "compat": "1.1"}
    told = qemu_info(world.pool() / "a.qcow2", "qcow2")
    assert (told["virtual-size"], told["cluster-size"]) == (3 * MIB, 131072)
    assert told["format-specific"]["data"]["extended-l2"] is True
    assert told["format-specific"]["data"]["refcount-bits"] == 32
    assert told["format-specific"]["data"]["compression-type"] == "zstd"


def test_preallocated_metadata_makes_a_file_whose_clusters_are_all_there(store: Store, world: World) -> None:
    store.create_image("default", "a", virtual_size_bytes=MIB, format="qcow2", preallocation="metadata")
    argv = ["qemu-img", "check", "--output=json", str(world.pool() / "a.qcow2")]
    told = json.loads(subprocess.run(argv, capture_output=True, check=True).stdout)
    assert told["allocated-clusters"] == told["total-clusters"] == 16


def test_an_overlay_names_its_parents_file_and_format_and_is_as_long(base: Store, world: World) -> None:
    image, new = base.create_image("default", "top", format="qcow2", parent="base")
    assert new
    assert (image.parent, image.backing, image.chain_depth) == ("base", "base.raw", 1)
    assert image.virtual_size_bytes == MIB
    assert base.show_image("default", "base").children == ["top"]
    told = qemu_info(world.pool() / "top.qcow2", "qcow2")
    assert (told["backing-filename"], told["backing-filename-format"]) == ("base.raw", "raw")
    (world.pool() / "base.raw").write_bytes(b"b" * MIB)
    read = ["qemu-io", "-r", "-f", "qcow2", "-c", "read -P 0x62 0 1M", str(world.pool() / "top.qcow2")]
    assert b"read 1048576/1048576" in subprocess.run(read, capture_output=True, check=True).stdout


def test_a_clone_is_an_overlay_and_cloning_again_is_one_clone(base: Store) -> None:
    first, new = base.clone_image("default", "base", clone="top", labels={"a": "b"})
    assert (new, first.parent, first.format) == (True, "base", "qcow2")
    assert base.clone_image("default", "base", clone="top") == (first, False)
    assert base.create_image("default", "top", format="qcow2", parent="base") == (first, False)


@pytest.mark.parametrize(
    ("asked", "differs"),
    [
        ({"parent": "other"}, "parent"),
        ({"parent": None, "virtual_size_bytes": MIB}, "parent"),
        ({"parent": "base", "virtual_size_bytes": 2 * MIB}, "virtual_size_bytes"),
        ({"parent": "base", "options": {"cluster_size_bytes": 4096}}, "options/cluster_size_bytes"),
    ],
)
def test_an_overlay_that_differs_from_what_is_asked_for_is_named(
    base: Store, asked: dict[str, Any], differs: str
) -> None:
    base.create_image("default", "other", virtual_size_bytes=MIB)
    base.clone_image("default", "base", clone="top", options={"cluster_size_bytes": 65536})
    with pytest.raises(AlreadyExists) as refusal:
        base.create_image("default", "top", format="qcow2", **asked)
    assert refusal.value.field == differs


@pytest.mark.parametrize(
    ("field", "asked"),
    [
        ("format", {"format": "raw", "parent": "base"}),
        ("parent", {"format": "qcow2", "parent": "memory"}),
        ("options/cluster_size", {"format": "qcow2", "options": {"cluster_size": 65536}}),
        ("options/backing_file", {"format": "qcow2", "options": {"backing_file": "/etc/passwd"}}),
        ("options/extended_l2", {"format": "raw", "options": {"extended_l2": True}}),
        ("options", {"format": "qcow2", "options": {"cluster_size_bytes": 100}}),
        ("options", {"format": "qcow2", "options": {"extended_l2": 3}}),
        ("options/extended_l2", {"format": "qcow2", "options": {"extended_l2": None}}),
        (
            "options",
            {"format": "qcow2", "preallocation": "metadata", "parent": "base", "options": {"extended_l2": False}},
        ),
        ("preallocation", {"format": "raw", "preallocation": "metadata"}),
    ],
)
def test_what_cannot_be_made_is_refused_by_field_and_leaves_no_file(
    base: Store, world: World, field: str, asked: dict[str, Any]
) -> None:
    base.create_image("default", "memory", virtual_size_bytes=MIB, format="memory")
    size = {} if "parent" in asked else {"virtual_size_bytes": MIB}
    with pytest.raises(InvalidArgument) as refusal:
        base.create_image("default", "a", **size, **asked)
    assert refusal.value.field == field
    assert world.files() == ["base.raw"]


def test_a_parent_that_is_not_there_is_not_found(store: Store) -> None:
    with pytest.raises(NotFound) as refusal:
        store.create_image("default", "top", format="qcow2", parent="base")
    assert refusal.value.field == "parent"


def test_an_image_without_parent_needs_a_size(store: Store) -> None:
    with pytest.raises(InvalidArgument, match="give the size of the disk, or a parent"):
        store.create_image("default", "a", format="qcow2")


def test_a_parent_is_neither_deleted_nor_resized_and_its_children_are_named(base: Store, world: World) -> None:
    for name in ("one", "two"):
        base.clone_image("default", "base", clone=name)
    with pytest.raises(InUse, match="parent of one, two; delete or rebase them first"):
        base.delete_image("default", "base")
    with pytest.raises(InUse, match="cannot be resized, because it is the parent of one, two"):
        base.update_image("default", "base", virtual_size_bytes=2 * MIB)
    assert base.update_image("default", "base", labels={"gold": "1"}).labels == {"gold": "1"}
    for name in ("one", "two", "base"):
        assert base.delete_image("default", name)
    assert world.files() == []


def test_a_message_names_ten_of_many_children(base: Store) -> None:
    for number in range(12):
        base.clone_image("default", "base", clone=f"c{number:02}")
    with pytest.raises(InUse, match="c09 and 2 more;"):
        base.delete_image("default", "base")


def test_an_image_that_a_guest_writes_to_does_not_become_a_parent(base: Store) -> None:
    base.create_target("t")
    base.map_lun("t", "0", image="base")
    with pytest.raises(InUse, match="mapped writable as LUN t/0 and cannot be a parent"):
        base.clone_image("default", "base", clone="top")
    base.unmap_lun("t", "0")
    base.map_lun("t", "0", image="base", read_only=True)
    assert base.clone_image("default", "base", clone="top")[1]


def test_a_parent_is_mapped_read_only_and_in_no_other_way(base: Store) -> None:
    base.create_target("t")
    base.clone_image("default", "base", clone="top")
    with pytest.raises(InUse, match="cannot be mapped writable, because it is the parent of top"):
        base.map_lun("t", "0", image="base")
    assert base.map_lun("t", "0", image="base", read_only=True)[1]


def test_a_chain_tells_its_depth_at_each_image(base: Store) -> None:
    parent = "base"
    for depth in range(1, 5):
        assert base.clone_image("default", parent, clone=f"d{depth}")[0].chain_depth == depth
        parent = f"d{depth}"
    told = {image.name: (image.chain_depth, image.children) for image in base.list_images("default").items}
    assert told == {"base": (0, ["d1"]), "d1": (1, ["d2"]), "d2": (2, ["d3"]), "d3": (3, ["d4"]), "d4": (4, [])}


def test_a_chain_ends_where_the_data_plane_does(base: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vstore.store.chains.MOST_IMAGES", 3)
    base.clone_image("default", "base", clone="one")
    base.clone_image("default", "one", clone="two")
    with pytest.raises(InvalidArgument, match="image two has 2 parents already"):
        base.clone_image("default", "two", clone="three")


def test_an_overlay_whose_parents_file_is_gone_is_still_listed(base: Store, world: World) -> None:
    base.clone_image("default", "base", clone="top")
    (world.pool() / "base.raw").unlink()
    assert base.show_image("default", "top").state == "ready"
    assert base.show_image("default", "base").state == "missing"
    with pytest.raises(Conflict):
        base.delete_image("default", "base")


@pytest.mark.parametrize(("format", "options"), [("luks", {}), ("qcow2", {"encrypt.format": "luks"})])
def test_what_needs_a_secret_is_refused_by_name(store: Store, world: World, format: str, options: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"need one|no such option"):
        store.create_image("default", "a", virtual_size_bytes=MIB, format=format, options=options)
    assert world.files() == []
