"""The daemon dies before each file operation and around each commit of a verb: the next start finds no half-done thing.

A child process runs the verb and ends itself, without any cleaning up, at its n-th step; steps are the audit events of
the file system calls (raised before the call) and both sides of each commit. n grows until the verb gets through.
"""

import os
import sys
from collections.abc import Callable, Iterator
from collections.abc import Set as AbstractSet
from contextlib import contextmanager

import pytest
from sqlalchemy import Connection

from tests.store.test_luns import served
from tests.store.world import MIB, World, eventually
from vstore.store import Store
from vstore.store.catalog import Catalog

_STEPS = {"open", "os.link", "os.rename", "os.remove", "os.truncate"}
_DIED, _MOST_STEPS = 9, 200

Verb = Callable[[Store], object]

VERBS: dict[str, Verb] = {
    "create": lambda store: store.create_image("default", "new", virtual_size_bytes=MIB),
    "create_full": lambda store: store.create_image("default", "new", virtual_size_bytes=MIB, preallocation="full"),
    "grow": lambda store: store.update_image("default", "old", virtual_size_bytes=2 * MIB),
    "shrink": lambda store: store.update_image("default", "old", virtual_size_bytes=512, shrink=True),
    "delete": lambda store: store.delete_image("default", "old"),
}

TARGET_VERBS: dict[str, Verb] = {
    "create_target": lambda store: store.create_target("new"),
    "delete_target": lambda store: store.delete_target("empty"),
    "map": lambda store: store.map_lun("t", "0", image="a"),
    "unmap": lambda store: store.unmap_lun("t", "1"),
    "grow": lambda store: store.update_image("default", "b", virtual_size_bytes=2 * MIB),
}


@pytest.mark.parametrize("name", VERBS)
def test_catalog_and_files_agree_after_a_crash_at_any_step(world: World, name: str) -> None:
    prepare(world)
    steps = 0
    while dies(world, VERBS[name], steps, _STEPS):
        check(world)
        steps += 1
        assert steps < _MOST_STEPS
    check(world)
    assert steps >= 3  # at least a file operation and both sides of a commit were hit


@pytest.mark.parametrize("name", TARGET_VERBS)
def test_catalog_and_processes_agree_after_a_crash_around_any_commit(world: World, name: str) -> None:
    store = world.open()
    store.create_image("default", "a", virtual_size_bytes=MIB)
    store.create_image("default", "b", virtual_size_bytes=MIB)
    store.create_target("t")
    store.create_target("empty")
    store.map_lun("t", "1", image="b")
    world.close_store(store, stop_targets=False)
    steps = 0
    while dies(world, TARGET_VERBS[name], steps, frozenset()):
        check_targets(world)
        steps += 1
        assert steps < _MOST_STEPS
    check_targets(world)
    assert steps == 2  # before the commit and after it


def check_targets(world: World) -> None:
    """After the next start the processes are those of the catalog, and serve its LUNs."""
    store = world.open()
    bring_up(store)
    names = [target.name for target in store.list_targets().items]
    assert sorted(os.listdir(world.runtime / "targets")) == names
    for name in names:
        expected = {(lun.scsi_target, lun.lun, f"default/{lun.image}") for lun in store.list_luns(name).items}
        assert set(served(world, name)) == expected
    for image in store.list_images("default").items:
        assert (world.pool() / f"{image.name}.raw").stat().st_size == image.virtual_size_bytes
    world.close_store(store, stop_targets=False)


def prepare(world: World) -> None:
    store = world.open()
    store.create_image("default", "old", virtual_size_bytes=MIB)
    (world.pool() / "old.raw").write_bytes(b"x" * MIB)
    (world.pool() / "foreign.raw").write_bytes(b"not ours")
    world.close_store(store, stop_targets=True)


def dies(world: World, verb: Verb, step: int, events: AbstractSet[str]) -> bool:
    """Runs the verb in a child that ends at `step`; False: it got through before."""
    child = os.fork()
    if child == 0:
        try:
            store = world.open()
            bring_up(store)
            die_at(step, events)
            verb(store)
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, _DIED)
    return status == _DIED


def bring_up(store: Store) -> None:
    for target in store.list_targets().items:
        eventually(lambda name=target.name: store.show_target(name).process.state == "listening")  # type: ignore[misc]


def die_at(step: int, events: AbstractSet[str]) -> None:
    left = step

    def count() -> None:
        nonlocal left
        if left == 0:
            os._exit(_DIED)
        left -= 1

    sys.addaudithook(lambda event, _arguments: count() if event in events else None)
    whole_write = Catalog.write

    @contextmanager
    def write(self: Catalog) -> Iterator[Connection]:
        with whole_write(self) as connection:
            yield connection
            count()
        count()

    Catalog.write = write  # type: ignore[method-assign]


def check(world: World) -> None:
    """After the next start, catalog and directory tell the same, and what was not the verb's is untouched."""
    store = world.open()
    images = {image.name: image for image in store.list_images("default").items}
    expected = sorted([f"{name}.raw" for name in images] + ["foreign.raw"])
    assert world.files() == expected
    for image in images.values():
        assert image.state == "ready"
        assert (world.pool() / f"{image.name}.raw").stat().st_size == image.virtual_size_bytes
    if "old" in images:
        length = min(MIB, images["old"].virtual_size_bytes)
        assert (world.pool() / "old.raw").read_bytes()[:length] == b"x" * length
    assert (world.pool() / "foreign.raw").read_bytes() == b"not ours"
    if store.delete_image("default", "new"):
        assert "new.raw" not in world.files()
    world.close_store(store, stop_targets=True)
