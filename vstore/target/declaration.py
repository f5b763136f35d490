"""Requests and answers as declarations: a record whose fields carry the check that guards them.

    class Resize(Declaration):
        target: int = declared(whole(0, 255))
        length: int = declared(whole(512, 2**63 - 512))

`parse` turns a JSON value into the record or raises a TargetError that names the field by its path and says
what would be right; past it, the values are trusted. `plain` is the way back.
"""

import dataclasses
import json
import math
import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, dataclass_transform

from vstore.record import Record
from vstore.target.errors import ErrorCode, TargetError

Check = Callable[[str, Any], Any]  # (path of the field, value) -> value, or TargetError


@dataclass_transform(kw_only_default=True, frozen_default=True)
class Declaration(Record):
    """Base of what goes over the control channel; its fields are given by name."""


_D = TypeVar("_D", bound=Declaration)


def declared(check: Check, default: Any = dataclasses.MISSING) -> Any:
    """A field guarded by `check`; without a default it has to be there."""
    return dataclasses.field(default=default, metadata={"check": check})


def parse(record: type[_D], value: object, path: str = "") -> _D:
    """The JSON object `value` as a `record`. Raises TargetError: unknown, missing or unfit field."""
    if not isinstance(value, dict):
        raise _refusal(path, value, "an object")
    fields = {field.name: field for field in dataclasses.fields(record)}
    for name in value:
        if name not in fields:
            raise TargetError(
                ErrorCode.INVALID_REQUEST, f"{_join(path, name)[:60]} is no field here; they are {', '.join(fields)}"
            )
    for name, field in fields.items():
        if name not in value and field.default is dataclasses.MISSING:
            raise TargetError(ErrorCode.INVALID_REQUEST, f"{_join(path, name)} is missing")
    return record(**{name: fields[name].metadata["check"](_join(path, name), item) for name, item in value.items()})


def plain(record: Declaration) -> dict[str, Any]:
    """The JSON object of a declared record."""
    return dataclasses.asdict(record)


def whole(low: int, high: int) -> Check:
    def check(path: str, value: Any) -> Any:
        if type(value) is not int or not low <= value <= high:  # a bool is no number here
            raise _refusal(path, value, f"a whole number from {low} to {high}")
        return value

    return check


def text(most: int, pattern: str = r"[^\x00-\x1f\x7f]*", expected: str = "without control characters") -> Check:
    compiled = re.compile(pattern)

    def check(path: str, value: Any) -> Any:
        if not isinstance(value, str) or len(value) > most or not compiled.fullmatch(value):
            raise _refusal(path, value, f"text of at most {most} characters, {expected}")
        return value

    return check


def flag(path: str, value: Any) -> Any:
    if not isinstance(value, bool):
        raise _refusal(path, value, "true or false")
    return value


def seconds(path: str, value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise _refusal(path, value, "a number of seconds")
    return value


def one_of(*choices: Any) -> Check:
    def check(path: str, value: Any) -> Any:
        if not any(value == choice and type(value) is type(choice) for choice in choices):
            raise _refusal(path, value, f"one of {', '.join(json.dumps(choice) for choice in choices)}")
        return value

    return check


def optional(inner: Check) -> Check:
    def check(path: str, value: Any) -> Any:
        return None if value is None else inner(path, value)

    return check


def nested(record: type[Declaration]) -> Check:
    def check(path: str, value: Any) -> Any:
        return parse(record, value, path)

    return check


def rows(record: type[Declaration], most: int) -> Check:
    def check(path: str, value: Any) -> Any:
        if not isinstance(value, Sequence) or isinstance(value, str) or len(value) > most:
            raise _refusal(path, value, f"a list of at most {most} objects")
        return tuple(parse(record, item, f"{path}[{index}]") for index, item in enumerate(value))

    return check


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _refusal(path: str, value: object, expected: str) -> TargetError:
    shown = json.dumps(value, default=repr)
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    return TargetError(ErrorCode.INVALID_REQUEST, f"{path or 'the request'}: {shown} is not {expected}")
