"""What goes wrong between a command and the daemon; `api.cli` says what exit code each is."""

# ruff: noqa: N818  (the names say what is wrong; the base class says that it is an error)

from collections.abc import Mapping
from typing import Any


class ClientError(Exception):
    """Base of what goes wrong between a command and the daemon."""


class Unreachable(ClientError):
    """There is no daemon, or it did not answer."""


class NotAllowed(Unreachable):
    """The socket is there, but not for this user; or the token cannot be one."""


class ApiProblem(ClientError):
    """The daemon's refusal; `status` and `body` are the problem as it came."""

    def __init__(self, status: int, body: Mapping[str, Any]) -> None:
        super().__init__(body.get("detail") or body.get("title") or f"the daemon answered {status}")
        self.status = status
        self.body = body
