import threading

import pytest

from vstore.transfer.line import Turn, work_in_line


def test_turns_come_in_the_order_of_the_items_and_each_item_has_one() -> None:
    had: list[int] = []

    def work(item: int, turn: Turn) -> None:
        if item % 3:  # the others do without
            with turn:
                had.append(item)

    work_in_line(iter(range(500)), work, 7)
    assert had == [item for item in range(500) if item % 3]


def test_the_first_item_that_fails_in_its_turn_is_told_and_no_thread_is_left() -> None:
    threads = threading.active_count()

    def work(item: int, turn: Turn) -> None:
        with turn:
            if item >= 5:
                raise ValueError(item)

    with pytest.raises(ValueError, match=r"^5$"):
        work_in_line(iter(range(1000)), work, 8)
    assert threading.active_count() == threads


def test_what_fails_while_the_others_wait_ends_them() -> None:
    def work(item: int, turn: Turn) -> None:
        if item == 0:
            raise OSError("the disk is full")
        with turn:
            pass

    with pytest.raises(OSError, match="full"):
        work_in_line(iter(range(100)), work, 8)


def test_an_error_of_the_items_themselves_is_told() -> None:
    def items():  # type: ignore[no-untyped-def]
        yield 1
        raise OSError("the map is torn")

    with pytest.raises(OSError, match="torn"):
        work_in_line(items(), lambda _item, _turn: None, 3)


@pytest.mark.parametrize("threads", [1, 5])
def test_without_order_nobody_waits_and_all_is_done(threads: int) -> None:
    done: set[int] = set()

    def work(item: int, turn: Turn) -> None:
        with turn:
            done.add(item)

    work_in_line(iter(range(300)), work, threads, ordered=False)
    assert done == set(range(300))
