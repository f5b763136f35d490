"""Defects on purpose, to see that the enumeration catches each: tests of the tests. Applied in the crashed process."""

from collections.abc import Callable

MUTANTS: dict[str, Callable[[], None]] = {}


def apply(name: str) -> None:
    """Breaks the code under test; an empty name leaves it whole."""
    if name:
        MUTANTS[name]()
