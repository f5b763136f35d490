"""Locks by name keep verbs on one object apart, and no others."""

import threading

import pytest

from tests.store.world import eventually
from vstore.store.errors import Busy
from vstore.store.locks import NamedLocks


def test_one_name_has_one_holder_at_a_time() -> None:
    locks, inside, most = NamedLocks(), [], []

    def work() -> None:
        for _ in range(200):
            with locks.hold("image:a", "target:t"):
                inside.append(1)
                most.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(most) == 800
    assert max(most) == 1


def test_other_names_are_free_meanwhile() -> None:
    locks = NamedLocks()
    with locks.hold("image:a"), locks.hold("image:b", "target:t"):
        pass


def test_overlapping_sets_in_any_order_never_block_each_other_for_good() -> None:
    locks, done = NamedLocks(), []

    def work(*names: str) -> None:
        for _ in range(300):
            with locks.hold(*names):
                pass
        done.append(names)

    threads = [threading.Thread(target=work, args=names) for names in (("a", "b"), ("b", "c"), ("c", "a"), ("b", "a"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(done) == 4


def test_a_name_is_free_again_after_a_failure() -> None:
    locks = NamedLocks()
    try:
        with locks.hold("a"):
            raise ValueError
    except ValueError:
        pass
    with locks.hold("a"):
        pass


def test_who_comes_after_enough_others_is_refused_and_they_get_through() -> None:
    locks, through = NamedLocks(), []

    def work() -> None:
        with locks.hold("image:a", "target:t", most_waiting=2):
            through.append(1)

    threads = [threading.Thread(target=work) for _ in range(2)]
    with locks.hold("target:t"):
        for thread in threads:
            thread.start()
        eventually(lambda: locks._waiting["target:t"] == 2)
        with pytest.raises(Busy, match="2 requests wait for target t already"), locks.hold("target:t", most_waiting=2):
            pass
        with pytest.raises(Busy, match="image a"), locks.hold("image:a", "image:b", most_waiting=2):
            pass
        with locks.hold("image:b", most_waiting=2):
            pass
    for thread in threads:
        thread.join(20)
    assert len(through) == 2
    with locks.hold("image:a", "target:t", most_waiting=1):
        pass
