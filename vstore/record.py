"""Records: frozen dataclasses whose methods stand here once, instead of being written and compiled for each class.

What `dataclasses` offers (fields, replace, asdict) works on them. A target process declares some fifty before its guest
may come in, and `dataclass` takes half a millisecond to make the methods of one.
"""

from dataclasses import dataclass, fields
from typing import Any, ClassVar, dataclass_transform


@dataclass_transform(frozen_default=True)
class Record:
    """Base of every declaration: its annotated names are the fields, in order."""

    _names: ClassVar[tuple[str, ...]] = ()
    _defaults: ClassVar[dict[str, Any]] = {}

    def __init_subclass__(cls) -> None:
        declared = fields(dataclass(init=False, repr=False, eq=False)(cls))  # type: ignore[arg-type]  # now it is one
        cls._names = tuple(field.name for field in declared)
        cls._defaults = {name: getattr(cls, name) for name in cls._names if hasattr(cls, name)}

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
