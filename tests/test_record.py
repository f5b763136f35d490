"""Records behave as frozen dataclasses do."""

import dataclasses
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

import pytest

from vstore.record import Record


class Point(Record):
    x: int
    y: int = 2


@dataclasses.dataclass(frozen=True)
class Reference:
    x: int
    y: int = 2


CALLS = [((1,), {}), ((1, 5), {}), ((), {"y": 3, "x": 1}), ((1,), {"y": 3})]
WRONG = [((), {}), ((1, 2, 3), {}), ((), {"y": 1}), ((1,), {"z": 1})]


@pytest.mark.parametrize(("values", "named"), CALLS)
def test_they_are_made_shown_taken_apart_and_replaced_alike(values: tuple[int, ...], named: dict[str, int]) -> None:
    ours, theirs = Point(*values, **named), Reference(*values, **named)
    assert repr(ours) == repr(theirs).replace("Reference", "Point")
    assert dataclasses.asdict(ours) == dataclasses.asdict(theirs)
    assert list(dataclasses.asdict(ours)) == ["x", "y"]
    assert dataclasses.asdict(dataclasses.replace(ours, y=9)) == dataclasses.asdict(dataclasses.replace(theirs, y=9))


@pytest.mark.parametrize(("values", "named"), WRONG)
def test_what_does_not_fit_the_fields_is_no_record(values: tuple[int, ...], named: dict[str, int]) -> None:
    with pytest.raises(TypeError):
        Reference(*values, **named)
    with pytest.raises(TypeError, match=re.escape("do not fit Point(x, y)")):
        Point(*values, **named)


def test_they_are_equal_by_their_class_and_their_fields() -> None:
    assert Point(1) == Point(1, 2)
    assert hash(Point(1)) == hash(Point(1, 2))
    assert Point(1) != Point(2)
    assert Point(1) != Reference(1)


def test_they_stay_as_they_are() -> None:
    point = Point(1)
    with pytest.raises(AttributeError, match="Point is frozen"):
        point.x = 2  # type: ignore[misc]
    assert point.x == 1


def test_one_made_of_another_has_the_fields_of_both() -> None:
    class Solid(Point):
        z: int = dataclasses.field(default=3, metadata={"axis": True})
        unit: ClassVar[str] = "mm"

    assert repr(Solid(1, z=4)).endswith("Solid(x=1, y=2, z=4)")
    assert [field.name for field in dataclasses.fields(Solid)] == ["x", "y", "z"]
    assert dataclasses.fields(Solid)[2].metadata == {"axis": True}
    assert dataclasses.replace(Solid(1), y=7) == Solid(1, 7, 3)


def test_threads_that_ask_first_all_get_the_fields_as_they_were_declared() -> None:
    together = threading.Barrier(4)

    class Wide(Record):
        a: int = dataclasses.field(default=1, metadata={"is": "a"})

    def ask(_: int) -> object:
        together.wait(10)
        return dataclasses.fields(Wide)[0].metadata["is"]

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(ask, range(4))) == ["a"] * 4


def test_one_can_be_matched_by_position() -> None:
    match Point(5, 6):
        case Point(x, y):
            assert (x, y) == (5, 6)
