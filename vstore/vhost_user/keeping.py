"""What it takes to go on with a front-end after the process that served it was killed, kept by another one.

    session --put, drop--> Keeping ==socket, SCM_RIGHTS==> Kept in the daemon       the process dies here
                                                             |
    session <--------- the same messages, in order <---------+--> another process

What is kept are the messages that would set the connection up as it stands now, with their descriptors: the next
process obeys them as if the front-end had sent them once more. A packet lies in the daemon's socket when `put` returns,
whatever becomes of us then, so a front-end never has an answer to what is not kept. The state of logical units goes the
same way, under names of its own.
"""

import json
import os
import select
import socket
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

from vstore.record import Record

CONNECTION = "connection"
BEGUN = "begun"  # the message that is being obeyed
UNIT = "unit"
MOST_DESCRIPTORS = 8
LONGEST_PACKET = 1 << 17
_PATIENCE = 5000  # milliseconds that a daemon may be busy with something else


class KeptMessage(Record):
    """`request` 0: no message, but something else that is known by its name. The descriptors are the keeper's own."""

    request: int
    flags: int
    payload: bytes
    descriptors: tuple[int, ...] = ()

    def close(self) -> None:
        for descriptor in self.descriptors:
            os.close(descriptor)


class Kept:
    """Messages by name; names are paths, and `drop` takes all beneath one."""

    def __init__(self) -> None:
        self._messages: dict[str, KeptMessage] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._messages

    def __getitem__(self, name: str) -> KeptMessage:
        return self._messages[name]

    def names(self) -> list[str]:
        return list(self._messages)

    def items(self) -> Iterator[tuple[str, KeptMessage]]:
        return iter(list(self._messages.items()))

    def beneath(self, name: str) -> list[tuple[str, KeptMessage]]:
        return [(each, message) for each, message in self.items() if each == name or each.startswith(f"{name}/")]

    def hold(self, name: str, message: KeptMessage) -> None:
        """Takes over its descriptors."""
        old = self._messages.pop(name, None)
        self._messages[name] = message
        if old:
            old.close()

    def forget(self, name: str) -> None:
        for each, message in self.beneath(name):
            del self._messages[each]
            message.close()

    def close(self) -> None:
        while self._messages:
            self._messages.popitem()[1].close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def obey(self, data: bytes, descriptors: Sequence[int]) -> None:
        """A packet of Keeping; its descriptors are this one's now. Raises ValueError, KeyError, TypeError."""
        try:
            told = json.loads(data)
            name, message = (told["drop"], None) if "drop" in told else (told["put"], message_of(told, descriptors))
        except (ValueError, KeyError, TypeError):
            for descriptor in descriptors:
                os.close(descriptor)
            raise
        if message is None:
            self.forget(name)
        else:
            self.hold(name, message)


def message_of(told: Mapping[str, Any], descriptors: Sequence[int]) -> KeptMessage:
    return KeptMessage(int(told["request"]), int(told["flags"]), bytes.fromhex(told["payload"]), tuple(descriptors))


def plain(name: str, message: KeptMessage) -> dict[str, Any]:
    return {"put": name, "request": message.request, "flags": message.flags, "payload": message.payload.hex()}


class Keeping(Kept):
    """In the process that serves: knows it all too, for a daemon that comes later."""

    def __init__(self) -> None:
        super().__init__()
        self._daemon: socket.socket | None = None

    def attach(self, descriptor: int) -> None:
        """Tells all to whoever has the other end of this socket, which is taken over, and from now on each change."""
        self.detach()
        self._daemon = socket.socket(fileno=descriptor)
        self._daemon.setblocking(False)
        for name, message in self.items():
            self._tell(plain(name, message), message.descriptors)

    def detach(self) -> None:
        daemon, self._daemon = self._daemon, None
        if daemon:
            daemon.close()

    def put(
        self, name: str, payload: bytes = b"", *, request: int = 0, flags: int = 0, descriptors: Sequence[int] = ()
    ) -> None:
        """The descriptors stay the caller's."""
        message = KeptMessage(request, flags, payload, tuple(map(os.dup, descriptors)))
        self.hold(name, message)
        self._tell(plain(name, message), message.descriptors)

    def drop(self, name: str) -> None:
        if self.beneath(name):
            self.forget(name)
            self._tell({"drop": name}, ())

    def close(self) -> None:
        self.detach()
        super().close()

    def _tell(self, told: dict[str, Any], descriptors: Sequence[int]) -> None:
        data = json.dumps(told, separators=(",", ":")).encode()
        while self._daemon:
            try:
                socket.send_fds(self._daemon, [data], descriptors, socket.MSG_NOSIGNAL)
                return
            except BlockingIOError:
                poll = select.poll()
                poll.register(self._daemon, select.POLLOUT)
                if not poll.poll(_PATIENCE):
                    self.detach()
            except OSError:  # it is gone; the next one asks for everything
                self.detach()
