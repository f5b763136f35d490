"""Who may talk to the API over TCP: programs of this machine, not web pages that a browser here was lured to.

A page cannot connect to a UNIX socket, but it can to 127.0.0.1, under a name of its own that resolves there (DNS
rebinding) or across origins. So over TCP the Host header must be a loopback name, and an Origin, if any, too.
"""

import ipaddress
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import ProblemResponse, problem_body

LARGEST_BODY = 1 << 20  # bytes


class LoopbackNamesOnly:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        fault = _fault(scope) if scope["type"] == "http" and _is_tcp(scope) else None
        if fault is None:
            await self._app(scope, receive, send)
            return
        body = problem_body("host_refused", fault, scope["path"])
        await ProblemResponse(body, body["status"])(scope, receive, send)


class BoundedBody:
    """ASGI middleware: a body longer than LARGEST_BODY is refused before it fills the memory."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        left = LARGEST_BODY

        async def counted() -> Message:
            nonlocal left
            message = await receive()
            left -= len(message.get("body", b""))
            if left < 0:
                raise HTTPException(413)
            return message

        await self._app(scope, counted, send)


def is_loopback(host: str) -> bool:
    """Whether this name or address can mean this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_tcp(scope: Scope) -> bool:
    server: Any = scope.get("server")
    return server is None or server[1] is not None  # a UNIX socket is (path, None)


def _fault(scope: Scope) -> str | None:
    headers = Headers(scope=scope)
    host, origin = headers.get("host", ""), headers.get("origin")
    if not is_loopback(_hostname(f"//{host}")):
        return f"Host {host[:80]!r} is not a loopback name; use 127.0.0.1, [::1] or localhost"
    if origin is not None and not is_loopback(_hostname(origin)):
        return f"Origin {origin[:80]!r} is not a loopback name; other sites may not use this API"
    return None


def _hostname(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""
