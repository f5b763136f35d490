"""Verbs on LUNs: what the process serves and what the catalog says are the same, whichever of the two fails."""

import os
from contextlib import AbstractContextManager, suppress

import pytest

from tests.store.world import MIB, World, eventually
from vstore.store import Store
from vstore.store.errors import (
    AlreadyExists,
    Conflict,
    InUse,
    InvalidArgument,
    Locked,
    NotFound,
    PoolUnavailable,
    StoreError,
    TargetUnavailable,
)
from vstore.target.client import TargetClient


@pytest.fixture
def ready(store: Store) -> Store:
    """Images a (1 MiB) and b (512 bytes), targets t and u."""
    store.create_image("default", "a", virtual_size_bytes=MIB)
    store.create_image("default", "b", virtual_size_bytes=512)
    store.create_target("t")
    store.create_target("u")
    return store


def served(world: World, target: str) -> list[tuple[int, int, str]]:
    """(SCSI target, LUN, image) as the process tells them."""
    with TargetClient(str(world.runtime / "targets" / target / "ctl.sock")) as client:
        return [(lun.settings.target, lun.settings.lun, lun.settings.image.name) for lun in client.status().luns]


def _open_files(pid: int) -> set[str]:
    files = set()
    for entry in os.listdir(f"/proc/{pid}/fd"):
        with suppress(FileNotFoundError):  # listdir's own
            files.add(os.readlink(f"/proc/{pid}/fd/{entry}"))
    return files


def test_a_mapped_image_is_served_by_the_process(ready: Store, world: World) -> None:
    lun, new = ready.map_lun("t", "1:5", image="a", read_only=True, logical_block_length_bytes=4096)
    assert new
    assert (lun.name, lun.scsi_target, lun.lun, lun.image) == ("1:5", 1, 5, "a")
    assert (lun.read_only, lun.logical_block_length_bytes, lun.virtual_size_bytes) == (True, 4096, MIB)
    assert served(world, "t") == [(1, 5, "default/a")]
    assert ready.show_target("t").luns == ["1:5"]
    assert ready.show_lun("t", "1:5") == lun


def test_a_lun_says_what_becomes_of_discarded_clusters_and_so_does_its_process(ready: Store, world: World) -> None:
    ready.create_image("default", "q", virtual_size_bytes=MIB, format="qcow2")
    lun, _ = ready.map_lun("t", "0", image="q", discard="punch")
    assert lun.discard == "punch"
    with TargetClient(str(world.runtime / "targets" / "t" / "ctl.sock")) as client:
        assert [each.settings.discard for each in client.status().luns] == ["punch"]
    with pytest.raises(InvalidArgument, match="unref, punch, keep"):
        ready.map_lun("u", "0", image="q", discard="never")


def test_the_process_gets_the_image_as_a_descriptor(ready: Store, world: World) -> None:
    ready.map_lun("t", "0", image="a")
    pid = ready.show_target("t").process.pid
    assert pid is not None
    assert str(world.pool() / "a.raw") in _open_files(pid)


def test_the_daemon_itself_keeps_no_image_open(ready: Store, world: World) -> None:
    ready.map_lun("t", "0", image="a")
    links = [
        os.readlink(f"/proc/self/fd/{fd}")
        for fd in os.listdir("/proc/self/fd")
        if os.path.exists(f"/proc/self/fd/{fd}")
    ]
    assert str(world.pool() / "a.raw") not in links


def test_the_serial_is_made_from_the_image_and_stays_when_it_moves(ready: Store) -> None:
    first, _ = ready.map_lun("t", "0", image="a")
    ready.unmap_lun("t", "0")
    second, _ = ready.map_lun("u", "3", image="a")
    assert first.serial == second.serial == ready.show_image("default", "a").id.replace("-", "")


def test_mapping_the_same_again_is_no_error_and_another_image_is(ready: Store) -> None:
    first, _ = ready.map_lun("t", "0", image="a")
    assert ready.map_lun("t", "0", image="a") == (first, False)
    with pytest.raises(AlreadyExists):
        ready.map_lun("t", "0", image="b")
    with pytest.raises(AlreadyExists, match="read_only False, not True"):
        ready.map_lun("t", "0", image="a", read_only=True)


def test_an_image_has_one_writer_or_many_readers(ready: Store) -> None:
    ready.map_lun("t", "0", image="a", read_only=True)
    ready.map_lun("u", "0", image="a", read_only=True)
    with pytest.raises(InUse, match="LUN t/0; only read-only mappings may share"):
        ready.map_lun("t", "1", image="a")
    ready.map_lun("t", "2", image="b")
    with pytest.raises(InUse, match="LUN t/2"):
        ready.map_lun("u", "2", image="b", read_only=True)


def test_two_images_never_share_a_serial(ready: Store) -> None:
    ready.map_lun("t", "0", image="a", serial="DISK1")
    with pytest.raises(InvalidArgument, match="LUN t/0 has 'DISK1' for image a"):
        ready.map_lun("u", "0", image="b", serial="DISK1")


def test_an_image_that_is_not_whole_blocks_is_refused(ready: Store) -> None:
    with pytest.raises(InvalidArgument, match="not a multiple of 4096"):
        ready.map_lun("t", "0", image="b", logical_block_length_bytes=4096)
    with pytest.raises(InvalidArgument, match="choose 512 or 4096"):
        ready.map_lun("t", "0", image="b", logical_block_length_bytes=520)


@pytest.mark.parametrize(("target", "image"), [("nobody", "a"), ("t", "nothing")])
def test_what_is_not_there_is_not_mapped(ready: Store, target: str, image: str) -> None:
    with pytest.raises(NotFound):
        ready.map_lun(target, "0", image=image)


def test_luns_are_listed_in_order_page_by_page(ready: Store) -> None:
    for number, name in enumerate(("0:10", "0:9", "1:0", "2:3")):
        ready.create_image("default", f"i{number}", virtual_size_bytes=512)
        ready.map_lun("t", name, image=f"i{number}")
    page = ready.list_luns("t", limit=3)
    assert [lun.name for lun in page.items] == ["9", "10", "1:0"]
    assert [lun.name for lun in ready.list_luns("t", limit=3, cursor=page.cursor).items] == ["2:3"]


def test_an_unmapped_lun_is_gone_from_process_and_catalog(ready: Store, world: World) -> None:
    ready.map_lun("t", "0", image="a")
    assert ready.unmap_lun("t", "0")
    assert served(world, "t") == []
    assert ready.unmap_lun("t", "0") is False
    assert ready.list_luns("t").items == []


def test_unmapping_leaves_what_another_client_mapped_there_meanwhile(
    ready: Store, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def after_another(**names: str) -> AbstractContextManager[None]:
        monkeypatch.undo()
        ready.unmap_lun("t", "0")
        ready.map_lun("t", "0", image="b")
        return ready.holding(**names)

    ready.map_lun("t", "0", image="a")
    monkeypatch.setattr(ready, "holding", after_another)
    assert ready.unmap_lun("t", "0") is False
    assert ready.show_lun("t", "0").image == "b"
    assert served(world, "t") == [(0, 0, "default/b")]


def test_a_mapped_image_grows_in_the_process_that_serves_it(ready: Store, world: World) -> None:
    ready.map_lun("t", "0", image="a")
    assert ready.update_image("default", "a", virtual_size_bytes=2 * MIB).virtual_size_bytes == 2 * MIB
    with TargetClient(str(world.runtime / "targets" / "t" / "ctl.sock")) as client:
        assert [lun.length for lun in client.status().luns] == [2 * MIB]
    assert (world.pool() / "a.raw").stat().st_size == 2 * MIB


def test_a_mapped_image_is_not_shrunk_nor_resized_below_readers(ready: Store) -> None:
    ready.map_lun("t", "0", image="a")
    with pytest.raises(InUse, match="shrunk while it is mapped as LUN t/0"):
        ready.update_image("default", "a", virtual_size_bytes=512, shrink=True)
    ready.map_lun("t", "1", image="b", read_only=True)
    with pytest.raises(InUse, match="read-only as LUN t/1"):
        ready.update_image("default", "b", virtual_size_bytes=1024)


def test_a_mapped_image_keeps_whole_logical_blocks(ready: Store) -> None:
    ready.map_lun("t", "0", image="a", logical_block_length_bytes=4096)
    with pytest.raises(InvalidArgument, match="multiple of 4096"):
        ready.update_image("default", "a", virtual_size_bytes=MIB + 512)


@pytest.mark.parametrize(
    ("code", "refusal"),
    [
        ("invalid_request", InvalidArgument),
        ("image_locked", Locked),
        ("image_refused", Conflict),
        ("lun_exists", Conflict),
        ("busy", TargetUnavailable),
        ("internal", TargetUnavailable),
    ],
)
def test_a_refusal_of_the_process_is_told_and_nothing_is_recorded(
    ready: Store, world: World, code: str, refusal: type[StoreError]
) -> None:
    world.fail("t", map_lun=code)
    with pytest.raises(refusal, match="target t: map_lun fails as it was told to"):
        ready.map_lun("t", "0", image="a")
    assert ready.list_luns("t").items == []
    assert ready.show_image("default", "a").luns == []


def test_a_catalog_that_fails_after_the_process_mapped_takes_the_lun_away(
    ready: Store, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ready.catalog, "write", refuse)
    with pytest.raises(OSError, match="No space"):
        ready.map_lun("t", "0", image="a")
    assert served(world, "t") == []


def test_a_process_that_dies_while_unmapping_comes_back_with_the_lun(ready: Store, world: World) -> None:
    ready.map_lun("t", "0", image="a")
    world.fail("t", unmap_lun="die")
    with pytest.raises(TargetUnavailable):
        ready.unmap_lun("t", "0")
    assert [lun.name for lun in ready.list_luns("t").items] == ["0"]


@pytest.mark.parametrize(("code", "refusal"), [("host_error", PoolUnavailable), ("internal", TargetUnavailable)])
def test_a_lun_that_left_with_an_error_comes_back_until_it_is_unmapped_in_peace(
    ready: Store, world: World, code: str, refusal: type[StoreError]
) -> None:
    ready.map_lun("t", "0", image="a")
    world.fail("t", unmap_lun=f"{code}_after")
    with pytest.raises(refusal, match="unmap_lun fails once it is done"):
        ready.unmap_lun("t", "0")
    eventually(lambda: served(world, "t") == [(0, 0, "default/a")], 5)
    assert [lun.name for lun in ready.list_luns("t").items] == ["0"]
    world.fail("t")
    assert ready.unmap_lun("t", "0")
    assert served(world, "t") == []
