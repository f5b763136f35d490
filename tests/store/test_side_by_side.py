"""Many threads at once: every verb is whole, and in the end catalog, files and processes agree."""

import random
import threading

from tests.store.test_luns import served
from tests.store.world import World
from vstore.store import Store
from vstore.store.errors import StoreError

_ROUNDS, _THREADS = 25, 6


def test_verbs_from_many_threads_leave_one_truth(store: Store, world: World) -> None:
    store.create_target("t")
    faults: list[Exception] = []
    threads = [threading.Thread(target=_work, args=(store, seed, faults)) for seed in range(_THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    images = {image.name: image for image in store.list_images("default").items}
    assert world.files() == sorted(str(image.file) for image in images.values())
    assert world.states() <= {str(image.file) for image in images.values() if image.luns}
    for image in images.values():
        assert image.parent in (None, *images)
        assert all(images[child].parent == image.name for child in image.children)
    luns = {lun.name: f"default/{lun.image}" for lun in store.list_luns("t").items}
    assert {str(number): image for _, number, image in served(world, "t")} == luns


def _work(store: Store, seed: int, faults: list[Exception]) -> None:
    """Verbs at random on the same few objects; only refusals that the store has words for are right."""
    chance = random.Random(seed)
    verbs = (
        lambda: store.create_image("default", chance.choice("ab"), virtual_size_bytes=chance.choice((512, 1024))),
        lambda: store.update_image("default", chance.choice("ab"), virtual_size_bytes=4096),
        lambda: store.delete_image("default", chance.choice("ab")),
        lambda: store.map_lun("t", chance.choice("01"), image=chance.choice("ab")),
        lambda: store.unmap_lun("t", chance.choice("01")),
        lambda: store.list_images("default"),
        lambda: store.clone_image("default", chance.choice("ab"), clone=chance.choice("cd")),
        lambda: store.delete_image("default", chance.choice("cd")),
        lambda: store.update_target("t", labels={"seed": str(seed)}),
    )
    for _ in range(_ROUNDS):
        try:
            chance.choice(verbs)()
        except StoreError:
            pass
        except Exception as fault:
            faults.append(fault)
