"""The command's way to the daemon: one HTTP request over a UNIX socket or loopback TCP, from the standard library.

Over TCP it shows the daemon's token: VSTORE_TOKEN, or else the one that is kept in the state directory of the daemon of
this user or machine, which goes to this machine only.
An HTTP framework would take longer to import than the request takes (a test holds this module to that).
"""

# ruff: noqa: N818  (the names say what is wrong; the base class says that it is an error)

import http.client
import json
import os
import re
import socket
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from api.addresses import is_loopback
from api.paths import client_socket, client_tokens

_TIMEOUT = 120.0  # seconds; a target that stops flushes first
_UNIX = "unix://"
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*", re.ASCII)  # RFC 6750 2.1, b64token


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


class Client:
    def __init__(self, url: str | None = None) -> None:
        """`url`: `unix:///path`, `http://127.0.0.1:PORT`, or None for the daemon of this user or machine."""
        self.url = url or f"{_UNIX}{client_socket()}"

    def call(
        self, method: str, path: str, body: object | None = None, headers: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        """The JSON body of the answer; empty for 204. Raises ApiProblem, Unreachable."""
        connection = self._connection()
        sent = {"Accept": "application/json", **self._authorization(), **(headers or {})}
        data = None if body is None else json.dumps(body)
        if data is not None:
            sent["Content-Type"] = "application/json"
        try:
            connection.request(method, path, data, sent)
            response = connection.getresponse()
            content = response.read()
        except PermissionError as error:
            raise NotAllowed(f"{self.url}: this user may not use the daemon's socket") from error
        except (OSError, http.client.HTTPException) as error:
            raise Unreachable(f"no daemon answers at {self.url} ({error}); start one with `vstore serve`") from error
        finally:
            connection.close()
        return _answer(response.status, content)

    def items(self, path: str) -> Iterator[dict[str, Any]]:
        """All items of a list, page by page."""
        following: str | None = path
        while following:
            page = self.call("GET", following)
            yield from page["items"]
            following = page["next"]

    def _connection(self) -> http.client.HTTPConnection:
        if self.url.startswith(_UNIX):
            return _UnixConnection(self.url.removeprefix(_UNIX))
        return http.client.HTTPConnection(*self._tcp_address(), timeout=_TIMEOUT)

    def _tcp_address(self) -> tuple[str, int | None]:
        """Raises Unreachable."""
        try:
            parts = urlsplit(self.url)
            host, port = parts.hostname, parts.port
        except ValueError:  # a port that is no number, half an IPv6 address
            host, port = None, None
        if not host or parts.scheme != "http":
            raise Unreachable(f"{self.url!r} is no address of a daemon; write unix:///path or http://127.0.0.1:PORT")
        return host, port

    def _authorization(self) -> dict[str, str]:
        """Raises NotAllowed, Unreachable."""
        if self.url.startswith(_UNIX):
            return {}
        token = os.environ.get("VSTORE_TOKEN")
        if not token and is_loopback(self._tcp_address()[0]):
            token = _kept_token()
        if not token:
            return {}
        if not _TOKEN.fullmatch(token):
            raise NotAllowed("the token (VSTORE_TOKEN, or the file `token`) has characters that no token has")
        return {"Authorization": f"Bearer {token}"}


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=_TIMEOUT)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(_TIMEOUT)
        self.sock.connect(os.fspath(self._path))


def _kept_token() -> str | None:
    """None: this user cannot read any."""
    for file in client_tokens():
        with suppress(OSError):
            return file.read_text("ascii", "replace").strip()
    return None


def _answer(status: int, content: bytes) -> dict[str, Any]:
    try:
        body = json.loads(content) if content else {}
    except ValueError as error:
        raise Unreachable(f"the answer ({status}) is not JSON: is this a vstore daemon?") from error
    if status >= 400:
        raise ApiProblem(status, body)
    return dict(body)
