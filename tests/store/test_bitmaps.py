"""Dirty bitmaps of images in the catalog, offline and under a target process, held against qemu-img."""

import json
import subprocess
from typing import Any

import pytest

from tests.store.world import MIB, World
from vstore.store import Store
from vstore.store.errors import Conflict, InUse, NotFound, Unsupported


@pytest.fixture
def disk(store: Store) -> Store:
    """Image a: qcow2, 1 MiB; target t."""
    store.create_image("default", "a", virtual_size_bytes=MIB, format="qcow2")
    store.create_target("t")
    return store


def qemu_bitmaps(world: World) -> dict[str, list[str]]:
    argv = ["qemu-img", "info", "-U", "-f", "qcow2", "--output=json", str(world.pool() / "a.qcow2")]
    told: dict[str, Any] = json.loads(subprocess.run(argv, capture_output=True, check=True).stdout)
    return {row["name"]: row["flags"] for row in told["format-specific"]["data"].get("bitmaps", [])}


@pytest.mark.parametrize("mapped", [False, True], ids=["offline", "under a target"])
def test_bitmaps_come_and_go_as_qemu_sees_them(disk: Store, world: World, mapped: bool) -> None:
    if mapped:
        disk.map_lun("t", "0", image="a")
    made, new = disk.add_bitmap("default", "a", "x", granularity_bytes=4096)
    assert (new, made.granularity_bytes, made.enabled, made.consistent) == (True, 4096, True, True)
    assert disk.add_bitmap("default", "a", "x", granularity_bytes=4096) == (made, False)
    with pytest.raises(Conflict, match="differs"):
        disk.add_bitmap("default", "a", "x", enabled=False)
    disk.add_bitmap("default", "a", "y", enabled=False)
    assert not disk.disable_bitmap("default", "a", "x").enabled
    assert disk.enable_bitmap("default", "a", "y").enabled
    assert disk.merge_bitmap("default", "a", "y", sources=["x"]).name == "y"
    assert disk.clear_bitmap("default", "a", "x").name == "x"
    assert [each.name for each in disk.list_bitmaps("default", "a").items] == ["x", "y"]
    page = disk.list_bitmaps("default", "a", limit=1)
    assert [each.name for each in disk.list_bitmaps("default", "a", cursor=page.cursor).items] == ["y"]
    assert qemu_bitmaps(world) == {"x": [], "y": ["auto"]}
    assert disk.remove_bitmap("default", "a", "x")
    assert not disk.remove_bitmap("default", "a", "x")
    assert qemu_bitmaps(world) == {"y": ["auto"]}
    with pytest.raises(NotFound, match="no bitmap 'x'"):
        disk.merge_bitmap("default", "a", "y", sources=["x"])


def test_who_cannot_have_bitmaps_is_told_so(disk: Store) -> None:
    disk.create_image("default", "raw", virtual_size_bytes=MIB)
    with pytest.raises(Unsupported, match="hold no bitmaps"):
        disk.add_bitmap("default", "raw", "x")
    disk.map_lun("t", "0", image="a", read_only=True)
    with pytest.raises(InUse, match="read-only"):
        disk.add_bitmap("default", "a", "x")
