"""Work that was ended when the image had changed already: the catalog follows the image."""

import os
import sqlite3
from typing import Any

import pytest

from tests.store.test_jobs import ended
from tests.store.test_transfers import done
from tests.store.world import MIB, World
from vstore.store import Store
from vstore.store.jobs import RunningJob
from vstore.worker.wire import Cancelled


@pytest.fixture
def chain(store: Store) -> Store:
    """base (raw) <- top (qcow2), both 1 MiB."""
    store.create_image("default", "base", virtual_size_bytes=MIB)
    store.clone_image("default", "base", clone="top")
    return store


@pytest.mark.parametrize("linked", [True, False])
def test_a_start_that_was_killed_while_it_undid_a_deletion_is_followed_by_one_that_goes_on(
    world: World, linked: bool
) -> None:
    store = world.open()
    image, _ = store.create_image("default", "a", virtual_size_bytes=MIB)
    world.close_store(store, stop_targets=True)
    file = world.pool() / "a.raw"
    doomed = file.with_name(f".deleting-{_id(world)}.a.raw")
    (os.link if linked else os.rename)(file, doomed)
    if not linked:  # somebody has put another one there meanwhile
        file.write_bytes(bytes(2 * MIB))
    store = world.open()
    assert store.show_image("default", "a").file == image.file == "a.raw"
    assert doomed.exists() == (not linked)


def _id(world: World) -> str:
    with sqlite3.connect(world.state / "catalog.sqlite") as catalog:
        return str(catalog.execute("SELECT id FROM images").fetchone()[0])


@pytest.fixture
def late_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers do all of their work, and are ended before they have told so."""
    run = RunningJob.run

    def ended_late(self: RunningJob, *arguments: Any, **options: Any) -> dict[str, Any]:
        run(self, *arguments, **options)
        raise Cancelled("it was ended")

    monkeypatch.setattr(RunningJob, "run", ended_late)


@pytest.mark.usefixtures("late_end")
@pytest.mark.parametrize("unsafe", [False, True])
def test_a_rebase_that_was_ended_when_the_image_named_its_new_parent_has_succeeded(chain: Store, unsafe: bool) -> None:
    chain.create_image("default", "other", virtual_size_bytes=MIB)
    done(chain, chain.rebase_image("default", "top", parent="other", unsafe=unsafe))
    assert chain.show_image("default", "top").parent == "other"
    same = chain.rebase_image("default", "top", parent="other")
    assert ended(chain, same.id) == "cancelled"
    done(chain, chain.rebase_image("default", "top", parent=None))
    assert chain.show_image("default", "top").parent is None


@pytest.mark.usefixtures("late_end")
def test_a_commit_that_was_ended_leaves_the_catalog_the_length_that_the_parent_has(chain: Store, world: World) -> None:
    chain.update_image("default", "top", virtual_size_bytes=2 * MIB)
    assert ended(chain, chain.commit_image("default", "top").id) == "cancelled"
    assert (world.pool() / "base.raw").stat().st_size == 2 * MIB
    assert chain.show_image("default", "base").virtual_size_bytes == 2 * MIB


@pytest.mark.usefixtures("late_end")
def test_a_snapshot_whose_applying_was_ended_leaves_the_catalog_the_length_that_the_disk_has(store: Store) -> None:
    store.create_image("default", "disk", virtual_size_bytes=MIB, format="qcow2")
    store.create_snapshot("default", "disk", "one")
    store.update_image("default", "disk", virtual_size_bytes=2 * MIB)
    assert ended(store, store.apply_snapshot("default", "disk", "one").id) == "cancelled"
    assert store.show_image("default", "disk").virtual_size_bytes == MIB
