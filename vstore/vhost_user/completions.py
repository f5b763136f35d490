"""Answers on their way to the driver, gathered: a batch of them costs one call into C and one interrupt."""

import asyncio
import errno
from collections.abc import Callable

from vstore.dataplane import Completion, Device, Notice
from vstore.vhost_user.complaints import Complaints


class Completions:
    def __init__(self, device: Device, complaints: Complaints, first: Callable[[], None] = lambda: None) -> None:
        """`first`: what has to be done before any answer that waits here is told."""
        self._first = first
        self._device = device
        self._complaints = complaints
        self._waiting: list[Completion] = []

    def add(self, notice: Notice, response: bytes, data_in: bytes = b"") -> None:
        """Answers a request. It reaches the used ring with the next flush(), at the latest in the loop's next turn."""
        if data_in:
            try:
                self._device.request_write(notice.request, 0, data_in)
            except OSError as error:
                self.break_ring(notice, error)
                return
        self._queue(Completion(notice.request, response, len(data_in)))

    def break_ring(self, notice: Notice, reason: object) -> None:
        """Gives the request back unanswered; its ring is served no more until the driver sets it up anew."""
        self._complaints.tell("vring %d: %s", notice.vring, reason)
        self._device.vring_break(notice.vring)
        self._queue(Completion(notice.request, b"", 0))

    def flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        if waiting:
            self._first()
            self._device.complete(waiting)

    def _queue(self, completion: Completion) -> None:
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self.flush)
        self._waiting.append(completion)


def went_away(error: OSError) -> bool:
    """Whether guest memory is no longer there: the front-end cut its file, or unmapped what a request still names."""
    return error.errno == errno.EFAULT
