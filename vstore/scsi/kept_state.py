"""What a logical unit keeps over a loss of power, beside its image: saved mode parameters, identifying information,
persistent reservations. Each is a section of one state, which holds text; the unit says what the text means.

Here stands what the model needs of such a state, and one in memory for tests and fuzzers; target/state_file.py has it
in a file.
"""

import asyncio
import json
import logging
from collections.abc import Mapping
from typing import Protocol, Self

_log = logging.getLogger(__name__)


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

    def save_blocking(self, data: bytes) -> None:
        """The same for a thread that may wait."""
        ...


class State(Protocol):
    def section(self, name: str) -> Section: ...


class MemoryState:
    """Keeps nothing longer than it lives; its coroutines never suspend."""

    def __init__(self) -> None:
        self.sections: dict[str, bytes] = {}

    @classmethod
    def of(cls, sections: Mapping[str, bytes]) -> Self:
        """As they are found after a restart."""
        state = cls()
        state.sections = dict(sections)
        return state

    def section(self, name: str) -> "MemorySection":
        return MemorySection(self.sections, name)


class MemorySection:
    def __init__(self, sections: dict[str, bytes], name: str) -> None:
        self._sections, self._name = sections, name

    def load(self) -> bytes | None:
        return self._sections.get(self._name)

    async def save(self, data: bytes) -> None:
        self.save_blocking(data)

    def save_blocking(self, data: bytes) -> None:
        self._sections[self._name] = data


class KeptBytes:
    """Short byte strings by name, in one section; what cannot be read any more is nothing, and is logged."""

    def __init__(self, section: Section | None) -> None:
        """Without a section nothing can be kept."""
        self._section = section
        self._saving = asyncio.Lock()
        self.values: Mapping[str, bytes] = {}
        try:
            data = section.load() if section else None
            if data is not None:
                self.values = {name: bytes.fromhex(text) for name, text in json.loads(data).items()}
        except (StateLost, ValueError, TypeError, AttributeError):
            _log.exception("What a logical unit had kept cannot be read any more")

    @property
    def keeps(self) -> bool:
        return self._section is not None

    async def save(self, **values: bytes) -> None:
        """Of these names; nothing is kept of one whose value is empty. Raises OSError; then all is as before."""
        assert self._section
        async with self._saving:  # or one save would undo what another one has not told yet
            changed = {name: data for name, data in (dict(self.values) | values).items() if data}
            await self._section.save(json.dumps({name: data.hex() for name, data in changed.items()}).encode())
            self.values = changed
