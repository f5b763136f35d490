"""Looks into images that others use: they hold up nobody, and there are never too many of them."""

import threading
from typing import Any

import pytest

from tests.store.world import MIB, eventually
from vstore.store import Store
from vstore.store.errors import Busy


@pytest.fixture
def chain(store: Store) -> Store:
    """base (raw) <- top (qcow2)."""
    store.create_image("default", "base", virtual_size_bytes=MIB)
    store.clone_image("default", "base", clone="top")
    return store


@pytest.mark.parametrize("look", ["info_image", "map_image"])
def test_a_look_keeps_nobody_from_the_image(chain: Store, monkeypatch: pytest.MonkeyPatch, look: str) -> None:
    """A dashboard that asks all the time would keep a guest from its disk, also after the death of its process."""
    chain.create_target("vm0")
    do = chain.workers.do

    def mapped_meanwhile(*arguments: Any, **options: Any) -> dict[str, Any]:
        chain.map_lun("vm0", "0", image="top")
        return do(*arguments, **options)

    monkeypatch.setattr(chain.workers, "do", mapped_meanwhile)
    getattr(chain, look)("default", "top")
    assert chain.show_image("default", "top").luns == ["vm0/0"]


def test_looks_never_hold_all_threads_that_requests_have(chain: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    places, held, go_on = 20, threading.Semaphore(0), threading.Event()

    def slow(*_: Any, **_options: Any) -> dict[str, Any]:
        held.release()
        go_on.wait()
        return {}

    monkeypatch.setattr(chain.workers, "run", slow)
    threads = [threading.Thread(target=chain.info_image, args=("default", "top")) for _ in range(places)]
    try:
        for thread in threads:
            thread.start()
        for _ in range(8):
            held.acquire()
        eventually(lambda: not chain.workers._asked._value)
        with pytest.raises(Busy, match="look into images already"):
            chain.info_image("default", "top")
    finally:
        go_on.set()
        for thread in threads:
            thread.join()
    chain.info_image("default", "top")
