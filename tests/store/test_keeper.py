"""The supervisor: a process that dies comes back with its LUNs, and one that lives is adopted."""

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from tests.store.test_luns import served
from tests.store.world import MIB, World, alive, eventually
from vstore.store import Store
from vstore.store.access import SocketAccess
from vstore.store.errors import InvalidArgument, TargetUnavailable
from vstore.store.plans import LunPlan, TargetPlan
from vstore.target.client import TargetClient
from vstore.target.verbs import Configure, ImageSource, MapLun


def _prepared(store: Store) -> int:
    store.create_image("default", "a", virtual_size_bytes=MIB)
    store.create_image("default", "b", virtual_size_bytes=MIB)
    pid = store.create_target("t")[0].process.pid
    store.map_lun("t", "0", image="a")
    store.map_lun("t", "1:2", image="b", read_only=True)
    assert pid is not None
    return pid


BOTH = [(0, 0, "default/a"), (1, 2, "default/b")]


def _up(store: Store) -> bool:
    process = store.show_target("t").process
    return process.state == "listening" and process.problem is None


def test_a_killed_process_is_replaced_and_serves_the_same_luns(store: Store, world: World) -> None:
    pid = _prepared(store)
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: store.show_target("t").process.restarts == 1 and _up(store))
    assert store.show_target("t").process.pid != pid
    assert served(world, "t") == BOTH


def test_a_process_that_keeps_dying_is_tried_less_and_less_often_and_heals(store: Store, world: World) -> None:
    pid = _prepared(store)
    world.fail("t", map_lun="die")
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: store.show_target("t").process.restarts >= 2)
    assert store.show_target("t").process.state != "listening"
    (world.runtime / "targets" / "t" / "faults.json").unlink()
    eventually(lambda: _up(store))
    assert served(world, "t") == BOTH


def test_verbs_on_a_process_that_is_down_are_refused_and_can_be_repeated(store: Store, world: World) -> None:
    pid = _prepared(store)
    store.create_image("default", "c", virtual_size_bytes=MIB)
    world.fail("t", status="die")
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: store.show_target("t").process.state == "failed")
    with pytest.raises(TargetUnavailable, match="it will be tried again"):
        store.map_lun("t", "7", image="c")
    (world.runtime / "targets" / "t" / "faults.json").unlink()
    eventually(lambda: _up(store))
    store.map_lun("t", "7", image="c")
    assert served(world, "t") == [*BOTH, (0, 7, "default/c")]


def test_the_next_daemon_adopts_what_the_last_one_left_running(store: Store, world: World) -> None:
    pid = _prepared(store)
    world.close_store(store, stop_targets=False)
    again = world.open()
    eventually(lambda: _up(again))
    assert again.show_target("t").process.pid == pid
    assert [lun.name for lun in again.list_luns("t").items] == ["0", "1:2"]
    assert served(world, "t") == BOTH
    assert len(world.children) == 1


def test_an_adopted_process_is_mended_to_what_the_catalog_says(store: Store, world: World) -> None:
    pid = _prepared(store)
    world.close_store(store, stop_targets=False)
    with TargetClient(str(world.runtime / "targets" / "t" / "ctl.sock")) as client:
        client.unmap_lun(2, target=1)
        client.map_lun(MapLun(lun=9, image=ImageSource(format="null", length=MIB), serial="stray"))
        client.resize_lun(0, 2 * MIB)
    again = world.open()
    eventually(lambda: _up(again))
    assert again.show_target("t").process.pid == pid
    assert sorted(served(world, "t")) == BOTH
    assert again.show_image("default", "a").virtual_size_bytes == 2 * MIB  # the image grew before the catalog heard


def test_closing_stops_the_processes_and_the_next_daemon_starts_new_ones(store: Store, world: World) -> None:
    pid = _prepared(store)
    world.close_store(store, stop_targets=True)
    assert not alive(pid)
    assert os.listdir(world.runtime / "targets") == []
    again = world.open()
    eventually(lambda: _up(again))
    assert served(world, "t") == BOTH


def test_a_lun_whose_image_is_locked_is_told_and_mapped_once_it_is_free(store: Store, world: World) -> None:
    pid = _prepared(store)
    world.fail("t", map_lun="image_locked")
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: "LUN 0 is not mapped" in (store.show_target("t").process.problem or ""))
    assert store.show_target("t").process.state == "listening"  # the other LUNs are served meanwhile
    (world.runtime / "targets" / "t" / "faults.json").unlink()
    eventually(lambda: _up(store))  # by itself: the keeper looks again soon
    assert served(world, "t") == BOTH


def test_a_lun_whose_file_is_gone_does_not_take_the_others_down(store: Store, world: World) -> None:
    pid = _prepared(store)
    (world.pool() / "a.raw").unlink()
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: "LUN 0 is not mapped" in (store.show_target("t").process.problem or ""))
    assert served(world, "t") == BOTH[1:]


def _broken_length(_plan: LunPlan, _length: int) -> None:
    raise ArithmeticError("nobody foresaw this")


def test_a_keeper_survives_what_nobody_foresaw_and_tries_again(
    store: Store, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid = _prepared(store)
    keeper = store.supervisor._keeper("t")
    monkeypatch.setattr(keeper, "_ground", replace(keeper._ground, length_told=_broken_length))
    keeper.mend_soon()
    eventually(lambda: store.show_target("t").process.problem == "ArithmeticError: nobody foresaw this", 5)
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: store.show_target("t").process.state == "failed", 5)
    monkeypatch.undo()
    eventually(lambda: _up(store), 10)
    assert served(world, "t") == BOTH


def test_a_socket_path_that_became_too_long_is_told() -> None:
    plan = TargetPlan(Configure(name="t", socket="/" + "x" * 107), SocketAccess("0600", None, None), {})
    with pytest.raises(InvalidArgument, match="has 1 to 107 bytes; choose a shorter runtime directory"):
        plan.listening().__enter__()


def test_a_process_whose_target_was_deleted_is_ended_at_the_next_start(store: Store, world: World) -> None:
    pid = store.create_target("t")[0].process.pid
    world.close_store(store, stop_targets=False)
    (world.state / "catalog.sqlite").unlink()
    again = world.open()
    assert not alive(pid)
    assert again.list_targets().items == []
    assert os.listdir(world.runtime / "targets") == []


def test_a_process_that_serves_luns_unknown_to_the_catalog_is_left_alone(store: Store, world: World) -> None:
    pid = _prepared(store)
    world.close_store(store, stop_targets=False)
    (world.state / "catalog.sqlite").unlink()
    again = world.open()
    assert again.list_targets().items == []
    assert alive(pid)
    assert served(world, "t") == BOTH


def test_no_descriptor_leaks_over_many_lives(store: Store) -> None:
    pid = _prepared(store)
    before = _descriptors()
    for life in range(1, 4):
        os.kill(pid, signal.SIGKILL)
        eventually(lambda life=life: store.show_target("t").process.restarts == life and _up(store))  # type: ignore[misc]
        told = store.show_target("t").process.pid
        assert told is not None
        pid = told
    assert _descriptors() == before


def _descriptors() -> int:
    """How many this process has open, the catalog's connections aside, which are pooled."""
    links = [Path(f"/proc/self/fd/{entry}") for entry in os.listdir("/proc/self/fd")]
    return sum(1 for link in links if link.is_symlink() and "catalog" not in os.readlink(link))
