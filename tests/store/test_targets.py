"""Verbs on targets: each has a process and a socket, and an end."""

import os
import socket
import tempfile
from pathlib import Path

import pytest

from tests.store.world import MIB, World, alive
from vstore.store import Store
from vstore.store.errors import AlreadyExists, Conflict, InUse, InvalidArgument, NotFound, Stale, TargetUnavailable


def test_a_new_target_listens_for_a_vmm(store: Store, world: World) -> None:
    target, new = store.create_target("web", request_queues=2, labels={"a": "b"})
    assert new
    assert target.process.state == "listening"
    assert alive(target.process.pid)
    assert target.socket == f"{world.runtime}/targets/web/vhost.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as vmm:
        vmm.connect(target.socket)


def test_creating_the_same_target_twice_is_one_process(store: Store, world: World) -> None:
    first, _ = store.create_target("web", request_queues=2)
    second, new = store.create_target("web", request_queues=2)
    assert not new
    assert second == first
    assert len(world.children) == 1
    with pytest.raises(AlreadyExists, match="request_queues 2, not 3"):
        store.create_target("web", request_queues=3)


@pytest.mark.parametrize(
    ("field", "settings"),
    [
        ("request_queues", {"request_queues": 0}),
        ("request_queues", {"request_queues": 65}),
        ("threads", {"threads": 0}),
        ("threads", {"request_queues": 2, "threads": 3}),
        ("poll_us", {"poll_us": -1}),
        ("poll_us", {"poll_us": 1_000_001}),
    ],
)
def test_a_setting_out_of_range_is_refused_by_field(store: Store, field: str, settings: dict[str, int]) -> None:
    with pytest.raises(InvalidArgument, match="choose") as refusal:
        store.create_target("web", **settings)  # type: ignore[arg-type]
    assert refusal.value.field == field


def test_a_name_whose_socket_path_would_be_too_long_is_refused_at_once(world: World) -> None:
    world.runtime = world.root / ("r" * 60)
    store = world.open()
    with pytest.raises(InvalidArgument, match="at least 5 characters shorter"):
        store.create_target("n" * (LONGEST - len(f"{world.runtime}/targets//vhost.sock") + 5))
    assert store.list_targets().items == []


LONGEST = 107


def test_a_target_whose_process_does_not_come_up_is_not_created(world: World) -> None:
    def spawn_nothing(control: str, log: Path) -> object:
        raise FileNotFoundError(2, "no such interpreter", control + str(log))

    world.spawn = spawn_nothing  # type: ignore[assignment, method-assign]
    store = world.open()
    with pytest.raises(TargetUnavailable, match="no such interpreter"):
        store.create_target("web")
    assert store.list_targets().items == []
    assert os.listdir(world.runtime / "targets") == []


def test_a_process_that_cannot_tell_its_status_is_ended(store: Store, world: World) -> None:
    (world.runtime / "targets" / "web").mkdir()
    world.fail("web", status="internal")
    with pytest.raises(TargetUnavailable, match="status fails as it was told to"):
        store.create_target("web")
    assert not any(alive(child.pid) for child in world.children)


def test_targets_are_listed_by_name_page_by_page(store: Store) -> None:
    for name in ("c", "a", "b"):
        store.create_target(name)
    page = store.list_targets(limit=2)
    assert [target.name for target in page.items] == ["a", "b"]
    assert [target.name for target in store.list_targets(limit=2, cursor=page.cursor).items] == ["c"]


def test_labels_of_a_target_merge_under_the_revision_that_was_seen(store: Store) -> None:
    store.create_target("web", labels={"a": "1"})
    assert store.update_target("web", labels={"a": None, "b": "2"}, revision=1).labels == {"b": "2"}
    with pytest.raises(Stale):
        store.update_target("web", labels={"c": "3"}, revision=1)


def test_a_deleted_target_leaves_no_process_and_no_socket(store: Store, world: World) -> None:
    pid = store.create_target("web")[0].process.pid
    assert store.delete_target("web")
    assert not alive(pid)
    assert os.listdir(world.runtime / "targets") == []
    assert store.delete_target("web") is False
    with pytest.raises(NotFound):
        store.show_target("web")


def test_a_target_with_luns_is_not_deleted_and_they_are_named(store: Store) -> None:
    store.create_image("default", "a", virtual_size_bytes=MIB)
    pid = store.create_target("web")[0].process.pid
    store.map_lun("web", "3", image="a")
    with pytest.raises(InUse, match="has LUN 3; unmap it first"):
        store.delete_target("web")
    assert alive(pid)


def test_a_name_that_a_foreign_process_serves_is_refused(store: Store, world: World) -> None:
    (world.runtime / "targets" / "web").mkdir()
    world.spawn(str(world.runtime / "targets" / "web" / "ctl.sock"), Path(tempfile.mkstemp(dir=world.root)[1]))
    with pytest.raises(Conflict, match="this catalog does not know"):
        store.create_target("web")
    assert store.list_targets().items == []
