"""Records: frozen dataclasses whose methods stand here once, instead of being written and compiled for each class.

What `dataclasses` offers (fields, replace, asdict) works on them, and a record becomes a dataclass when that is first
asked of it. A target process declares some fifty before its guest may come in, and `dataclass` takes up to a
millisecond for each.
"""

import threading
from dataclasses import MISSING, Field, dataclass
from typing import Any, ClassVar, dataclass_transform

_FIELDS = "__dataclass_fields__"  # what the functions of `dataclasses` ask a class for


class _FieldsWhenAsked:
    """Makes the class that it is read from a dataclass, which puts the fields themselves in its place there."""

    _making: ClassVar[threading.RLock] = threading.RLock()  # again, for the fields of the bases

    def __get__(self, _instance: object, owner: type) -> Any:
        with self._making:
            if vars(owner)[_FIELDS] is self:
                dataclass(init=False, repr=False, eq=False)(owner)
        return vars(owner)[_FIELDS]


@dataclass_transform(frozen_default=True)
class Record:
    """Base of every declaration: its annotated names are the fields, in order."""

    __match_args__: ClassVar[tuple[str, ...]] = ()
    _names: ClassVar[tuple[str, ...]] = ()
    _defaults: ClassVar[dict[str, Any]] = {}

    def __init_subclass__(cls) -> None:
        cls.__doc__ = cls.__doc__ or cls.__name__  # else `dataclass` would write one, which takes longest of all
        setattr(cls, _FIELDS, _FieldsWhenAsked())
        own = [name for name, hint in cls.__annotations__.items() if not _of_the_class(hint)]
        cls._names = tuple(dict.fromkeys((*cls._names, *own)))
        cls.__match_args__ = cls._names  # type: ignore[misc]  # as `dataclass` does
        cls._defaults = cls._defaults | {name: value for name in own if (value := _default(cls, name)) is not MISSING}

    def __init__(self, *values: Any, **named: Any) -> None:
        """Raises TypeError where a field is missing, or there is none of that name."""
        if named or len(values) != len(self._names):
            values = self._filled(values, named)
        self.__dict__.update(zip(self._names, values, strict=True))

    def _filled(self, values: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, ...]:
        given = {**self._defaults, **named, **dict(zip(self._names, values, strict=False))}
        if len(values) > len(self._names) or given.keys() != set(self._names):
            fits = f"{type(self).__name__}({', '.join(self._names)})"
            raise TypeError(f"{len(values)} values and {', '.join(named) or 'no names'} do not fit {fits}")
        return tuple(given[name] for name in self._names)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__} is frozen: {name} stays as it is")

    def __eq__(self, other: object) -> bool:
        return vars(self) == vars(other) if type(other) is type(self) else NotImplemented

    def __hash__(self) -> int:
        return hash(tuple(vars(self).values()))

    def __repr__(self) -> str:
        return f"{type(self).__qualname__}({', '.join(f'{name}={value!r}' for name, value in vars(self).items())})"


def _of_the_class(hint: object) -> bool:
    return hint is ClassVar or getattr(hint, "__origin__", None) is ClassVar


def _default(cls: type, name: str) -> Any:
    value = vars(cls).get(name, MISSING)
    return value.default if isinstance(value, Field) else value
