"""The task set of a logical unit (SAM-5 clause 8): which command may begin, by its task attribute.

    SIMPLE           waits for every ORDERED and every HEAD OF QUEUE command that came before
    ORDERED          waits for every command that came before, also on the data plane
    HEAD OF QUEUE    waits for none

An ORDERED or HEAD OF QUEUE command shuts the data plane's gate as long as it is there; the data plane itself hands on
what comes behind one, so that nothing younger overtakes it on its way here. SIMPLE commands go in any order among
themselves (QUEUE ALGORITHM MODIFIER is 1).
"""

import asyncio
from collections.abc import Awaitable, Callable

from vstore.scsi.task import TaskAttribute

Drain = Callable[[], Awaitable[None]]

_ORDERED, _HEAD_OF_QUEUE = TaskAttribute.ORDERED, TaskAttribute.HEAD_OF_QUEUE
_BARRIERS = (_ORDERED, _HEAD_OF_QUEUE)


class Entry:
    """A command that is in the task set."""

    __slots__ = ("_gone", "attribute")

    def __init__(self, attribute: TaskAttribute) -> None:
        self.attribute = attribute
        self._gone: asyncio.Event | None = None

    def keeps_back(self, attribute: TaskAttribute) -> bool:
        """Whether a younger command of this attribute waits for it."""
        return attribute is _ORDERED or (attribute is not _HEAD_OF_QUEUE and self.attribute in _BARRIERS)

    async def gone(self) -> None:
        self._gone = self._gone or asyncio.Event()
        await self._gone.wait()

    def go(self) -> None:
        if self._gone:
            self._gone.set()


class TaskSet:
    """`changed` is called when the first barrier comes, and when the last one has gone."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._entries: dict[Entry, None] = {}  # oldest first
        self._drains: list[Drain] = []
        self._barriers = 0

    @property
    def open(self) -> bool:
        """Whether a SIMPLE command may begin at once, as far as those that are here know."""
        return not self._barriers

    def on_drain(self, drain: Drain) -> None:
        """It returns when nothing that began before is in flight on a data plane."""
        self._drains.append(drain)

    def forget_drain(self, drain: Drain) -> None:
        self._drains.remove(drain)

    async def enter(self, attribute: TaskAttribute) -> Entry:
        """Returns when the command may begin; `leave` must follow."""
        entry = Entry(attribute)
        older = []
        if self._barriers or attribute is _ORDERED:
            older = [each for each in self._entries if each.keeps_back(attribute)]
        self._entries[entry] = None
        if attribute in _BARRIERS:
            self._count(1)
        try:
            for each in older:
                if each in self._entries:
                    await each.gone()
            if attribute is _ORDERED:
                for drain in list(self._drains):
                    if drain in self._drains:  # or its target port went while another one was drained
                        await drain()
        except BaseException:
            self.leave(entry)
            raise
        return entry

    def leave(self, entry: Entry) -> None:
        del self._entries[entry]
        entry.go()
        if entry.attribute in _BARRIERS:
            self._count(-1)

    def _count(self, more: int) -> None:
        before = self.open
        self._barriers += more
        if self.open is not before:
            self._changed()
