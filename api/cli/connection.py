"""One HTTP request to the daemon over a UNIX socket or loopback TCP, from the standard library.

Over TCP it shows the daemon's token: VSTORE_TOKEN, or else the one that is kept in the state directory of the daemon of
this user or machine, which goes to this machine only.
An HTTP framework would take longer to import than the request takes (a test holds this module to that).
"""

import http.client
import json
import os
import re
import socket
from collections.abc import Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from api.addresses import is_loopback
from api.cli.errors import NotAllowed, Unreachable
from api.paths import client_tokens

_TIMEOUT = 120.0  # seconds; a target that stops flushes first
_UNIX = "unix://"
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*", re.ASCII)  # RFC 6750 2.1, b64token


def exchange(
    url: str, method: str, path: str, body: object | None, headers: Mapping[str, str]
) -> tuple[int, dict[str, Any]]:
    """Status and JSON body of the answer; an empty body for none. Raises Unreachable, NotAllowed."""
    connection = _connection(url)
    sent = {"Accept": "application/json", **_authorization(url), **headers}
    data = None if body is None else json.dumps(body)
    if data is not None:
        sent["Content-Type"] = "application/json"
    try:
        connection.request(method, path, data, sent)
        response = connection.getresponse()
        content = response.read()
    except PermissionError as error:
        raise NotAllowed(f"{url}: this user may not use the daemon's socket") from error
    except (OSError, http.client.HTTPException) as error:
        raise Unreachable(f"no daemon answers at {url} ({error}); start one with `vstore serve`") from error
    finally:
        connection.close()
    return response.status, _parsed(response.status, content)


def _parsed(status: int, content: bytes) -> dict[str, Any]:
    try:
        return dict(json.loads(content)) if content else {}
    except ValueError as error:
        raise Unreachable(f"the answer ({status}) is not JSON: is this a vstore daemon?") from error


def _connection(url: str) -> http.client.HTTPConnection:
    if url.startswith(_UNIX):
        return _UnixConnection(url.removeprefix(_UNIX))
    return http.client.HTTPConnection(*_tcp_address(url), timeout=_TIMEOUT)


def _tcp_address(url: str) -> tuple[str, int | None]:
    """Raises Unreachable."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:  # a port that is no number, half an IPv6 address
        host, port = None, None
    if not host or parts.scheme != "http":
        raise Unreachable(f"{url!r} is no address of a daemon; write unix:///path or http://127.0.0.1:PORT")
    return host, port


def _authorization(url: str) -> dict[str, str]:
    """Raises NotAllowed, Unreachable."""
    if url.startswith(_UNIX):
        return {}
    token = os.environ.get("VSTORE_TOKEN")
    if not token and is_loopback(_tcp_address(url)[0]):
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
