"""Locks by name keep verbs on one object apart, and no others."""

import threading

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
