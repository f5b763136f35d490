"""What every route needs: the Store behind the application, the problems an operation may answer, and list pages."""

from collections.abc import Mapping
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import Depends, Query, Request, Response

from api.errors import MEDIA_TYPE, PROBLEMS, problem_body
from api.schemas import Item, Listing, ProblemBody
from vstore.store import Store
from vstore.store.records import Page


def _store(request: Request) -> Store:
    store: Store = request.app.state.store
    return store


TheStore = Annotated[Store, Depends(_store)]


class _Paging:
    """Query parameters of a list, and its answer."""

    def __init__(
        self,
        request: Request,
        response: Response,
        limit: Annotated[int | None, Query(description="items per page, 1 to 500")] = None,
        cursor: Annotated[str | None, Query(description="where the page begins; taken from `next`")] = None,
    ) -> None:
        self._path = request.url.path
        self._response = response
        self.limit = limit
        self.cursor = cursor

    def listing(self, page: Page[Item], **kept: str) -> Listing[Item]:
        """The page as a body, with a `Link: rel="next"` (RFC 8288) where there is more; `kept`: other parameters."""
        if page.cursor is None:
            return Listing(items=page.items, next=None)
        query = {**kept, "cursor": page.cursor} | ({} if self.limit is None else {"limit": str(self.limit)})
        following = f"{self._path}?{urlencode(query)}"
        self._response.headers["Link"] = f'<{following}>; rel="next"'
        return Listing(items=page.items, next=following)


Paging = Annotated[_Paging, Depends()]


def problems(*codes: str) -> dict[int | str, dict[str, Any]]:
    """OpenAPI responses of an operation that takes arguments, and can fail with these rows of the table."""
    return refusals("invalid_argument", *codes)


def refusals(*codes: str) -> dict[int | str, dict[str, Any]]:
    """OpenAPI responses for these rows of the table of problems, each with an example."""
    by_status: dict[int | str, dict[str, Any]] = {}
    for code in codes:
        row = PROBLEMS[code]
        answer = by_status.setdefault(
            row.status, {"model": ProblemBody, "description": row.title, "content": {MEDIA_TYPE: {"examples": {}}}}
        )
        example: Mapping[str, Any] = {"value": problem_body(code, row.help, "/v1/…")}
        answer["content"][MEDIA_TYPE]["examples"][code] = example
    return by_status


def examples(value: Mapping[str, Any], *statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI responses that show one body."""
    return {status: {"content": {"application/json": {"example": value}}} for status in statuses}
