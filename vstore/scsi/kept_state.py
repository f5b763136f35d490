"""What a logical unit keeps over a loss of power, beside its image: saved mode parameters, identifying information,
persistent reservations. Each is a section of one state, which holds text; the unit says what the text means.

Here stands what the model needs of such a state, and one in memory for tests and fuzzers; target/state_file.py has it
in a file.
"""

from typing import Protocol


class StateLost(Exception):  # noqa: N818
    """Something was kept, and cannot be read any more."""


class Section(Protocol):
    """A part of what is kept, with a name of its own."""

    def load(self) -> bytes | None:
        """What was saved last; None: nothing ever was. Raises StateLost."""
        ...

    async def save(self, data: bytes) -> None:
        """Durable when it returns; UTF-8. OSError: what was saved before still stands."""
        ...


class State(Protocol):
    def section(self, name: str) -> Section: ...


class MemoryState:
    """Keeps nothing longer than it lives; its coroutines never suspend."""

    def __init__(self) -> None:
        self.sections: dict[str, bytes] = {}

    def section(self, name: str) -> "MemorySection":
        return MemorySection(self.sections, name)


class MemorySection:
    def __init__(self, sections: dict[str, bytes], name: str) -> None:
        self._sections, self._name = sections, name

    def load(self) -> bytes | None:
        return self._sections.get(self._name)

    async def save(self, data: bytes) -> None:
        self._sections[self._name] = data
