"""The QEMU Machine Protocol, as far as the tests need it: a command, its answer, and the events met on the way."""

import json
from typing import Any

from tests.guest.channel import LineChannel


class QmpError(Exception):
    """QEMU refused a command; the text is QEMU's own."""


class Qmp:
    """A QMP session on a channel; `events` keeps the names of the events seen so far, oldest first."""

    def __init__(self, channel: LineChannel) -> None:
        self._channel = channel
        self._greeted = False
        self.events: list[str] = []

    def execute(self, command: str, timeout: float = 10.0, **arguments: Any) -> Any:
        """Run a QMP command and return its "return" member. Raises QmpError, or ChannelError when QEMU is gone."""
        if not self._greeted:
            self._greeted = True
            self._channel.receive(timeout)  # {"QMP": ...}
            self.execute("qmp_capabilities", timeout)
        words = {name.replace("_", "-"): value for name, value in arguments.items()}
        self._channel.send(json.dumps({"execute": command, "arguments": words}), timeout)
        answer = self._answer(timeout)
        if "error" in answer:
            raise QmpError(f"{command}: {answer['error']['desc']}")
        return answer["return"]

    def wait_event(self, name: str, timeout: float = 10.0) -> None:
        """Return once an event of this name has come, now or before."""
        while name not in self.events:
            self._note(json.loads(self._channel.receive(timeout)))

    def _answer(self, timeout: float) -> dict[str, Any]:
        while True:
            message: dict[str, Any] = json.loads(self._channel.receive(timeout))
            if "event" not in message:
                return message
            self._note(message)

    def _note(self, message: dict[str, Any]) -> None:
        if "event" in message:
            self.events.append(message["event"])
