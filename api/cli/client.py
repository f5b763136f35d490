"""The command's way to the daemon: REST calls.

How they travel (`api.cli.connection`) is imported by the first call: a command that needs no daemon is not to wait for
it.
"""

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

from api.cli.errors import ApiProblem


class Client:
    def __init__(self, url: str | None = None) -> None:
        """`url`: `unix:///path`, `http://127.0.0.1:PORT`, or None for the daemon of this user or machine."""
        self._given = url

    @cached_property
    def url(self) -> str:
        """Where the daemon is."""
        from api.paths import client_socket

        return self._given or f"unix://{client_socket()}"

    def call(
        self, method: str, path: str, body: object | None = None, headers: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        """The JSON body of the answer; empty for 204. Raises ApiProblem, Unreachable."""
        from api.cli.connection import exchange

        status, answer = exchange(self.url, method, path, body, headers or {})
        if status >= 400:
            raise ApiProblem(status, answer)
        return answer

    def items(self, path: str) -> Iterator[dict[str, Any]]:
        """All items of a list, page by page."""
        following: str | None = path
        while following:
            page = self.call("GET", following)
            yield from page["items"]
            following = page["next"]
