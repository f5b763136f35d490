"""Who may talk to the API over TCP: programs that have the token, and no web page that a browser here was lured to.

    request --> LoopbackNamesOnly (421) --> BearerOnly (401) --> BoundedBody (413) --> routes

Any user of this machine can connect to 127.0.0.1, so over TCP a request shows the token (RFC 6750). A web page can
connect too, under a name of its own that resolves there (DNS rebinding) or across origins: so the Host header must be a
loopback name, and an Origin, if any, too. Over a UNIX socket neither is asked for: its permissions said who may come.
"""

from collections.abc import Mapping
from hmac import compare_digest
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.addresses import is_loopback
from api.errors import ProblemResponse, problem_body
from api.token import digest

LARGEST_BODY = 1 << 20  # bytes
TOKEN_PLACE = (
    "the content of the file `token` in the daemon's state directory "
    "(/var/lib/vstore for root, ~/.local/state/vstore for others, unless --state-dir says otherwise)"
)
_CHALLENGE = 'Bearer realm="vstore"'


class LoopbackNamesOnly:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        fault = _foreign_name(Headers(scope=scope)) if _is_asked_over_tcp(scope) else None
        if fault is None:
            await self._app(scope, receive, send)
        else:
            await _refusal("host_refused", fault, scope)(scope, receive, send)


class BearerOnly:
    """ASGI middleware. It stands before the routes, so that without the token nobody learns which there are."""

    def __init__(self, app: ASGIApp, token_digest: bytes) -> None:
        self._app = app
        self._token_digest = token_digest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        fault = self._fault(Headers(scope=scope)) if _is_asked_over_tcp(scope) else None
        if fault is None:
            await self._app(scope, receive, send)
            return
        reason, challenge = fault
        detail = f"{reason}; send `Authorization: Bearer TOKEN`, where TOKEN is {TOKEN_PLACE}"
        await _refusal("unauthorized", detail, scope, {"WWW-Authenticate": challenge})(scope, receive, send)

    def _fault(self, headers: Headers) -> tuple[str, str] | None:
        """What is wrong, and the challenge that says so: RFC 6750 3.1 names no error where no token came."""
        given = headers.getlist("authorization")
        if not given:
            return "over TCP every request shows a token, and this one shows none", _CHALLENGE
        scheme, _, token = given[0].partition(" ")
        if len(given) == 1 and scheme.lower() == "bearer" and compare_digest(digest(token.strip()), self._token_digest):
            return None
        return "the Authorization header does not have this daemon's token", f'{_CHALLENGE}, error="invalid_token"'


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


def _is_asked_over_tcp(scope: Scope) -> bool:
    server: Any = scope.get("server")
    return scope["type"] != "lifespan" and (server is None or server[1] is not None)  # a UNIX socket is (path, None)


def _refusal(code: str, detail: str, scope: Scope, headers: Mapping[str, str] | None = None) -> ProblemResponse:
    body = problem_body(code, detail, scope["path"])
    return ProblemResponse(body, body["status"], headers)


def _foreign_name(headers: Headers) -> str | None:
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
