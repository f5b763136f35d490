"""Records behave as frozen dataclasses do."""

import dataclasses
import re

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
