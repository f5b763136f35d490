"""ETag, If-Match and If-None-Match (RFC 9110 13): an object's revision is its strong entity tag.

Routes depend on one of the classes here; each takes the headers that fit its kind of request, and answers for it.
"""

import re
from typing import Annotated, Protocol, TypeVar

from fastapi import Depends, Header, Response

from api.errors import Refused

_TAG = re.compile(r'"(\d{1,18})"', re.ASCII)


class Tagged(Protocol):
    @property
    def revision(self) -> int: ...


class Job(Tagged, Protocol):
    @property
    def id(self) -> str: ...


Record = TypeVar("Record", bound=Tagged)
Started = TypeVar("Started", bound=Job)


class _Reading:
    """GET: tells the tag."""

    def __init__(self, response: Response) -> None:
        self._response = response

    def answer(self, record: Record) -> Record:
        self._response.headers["ETag"] = f'"{record.revision}"'
        return record


class _Creating(_Reading):
    """PUT: 201 for what is new, 200 for what was there just so."""

    def __init__(
        self,
        response: Response,
        if_none_match: Annotated[str | None, Header(description="`*`: create, or fail if it exists")] = None,
    ) -> None:
        super().__init__(response)
        if if_none_match not in (None, "*"):
            raise Refused("exists", f"If-None-Match {if_none_match[:80]!r} is not offered here; send * or nothing")
        self.must_be_new = if_none_match == "*"

    def done(self, outcome: tuple[Record, bool], what: str) -> Record:
        """`outcome`: the object, and whether it is new. Raises Refused."""
        record, new = outcome
        if self.must_be_new and not new:
            raise Refused("exists", f"{what} exists already, and If-None-Match: * asked to create it")
        self._response.status_code = 201 if new else 200
        return self.answer(record)


class _Changing(_Reading):
    """PATCH and DELETE: on the revision that the client saw, if it says which."""

    def __init__(
        self,
        response: Response,
        if_match: Annotated[str | None, Header(description="the ETag that was seen, or `*`: it must exist")] = None,
    ) -> None:
        super().__init__(response)
        self.revision = _revision(if_match)
        self._must_exist = if_match is not None

    def deleted(self, done: bool, what: str) -> None:
        """Deleting what is gone is no error, unless If-Match insists. Raises Refused."""
        if self._must_exist and not done:
            raise Refused("gone", f"there is no {what}")


class _Starting(_Changing):
    """POST of long work: 202, and where its job is."""

    def accepted(self, record: Started) -> Started:
        self._response.status_code = 202
        self._response.headers["Location"] = f"/v1/jobs/{record.id}"
        return self.answer(record)


class _Preferring:
    """Work that may be long: the client chooses whether to wait for it (RFC 7240 4.1)."""

    def __init__(
        self,
        response: Response,
        prefer: Annotated[str | None, Header(description="`respond-async`: answer 202 with a job at once")] = None,
    ) -> None:
        self._response = response
        words = (each.partition(";")[0].strip().lower() for each in (prefer or "").split(","))
        self.detached = "respond-async" in words

    def accepted(self, record: Started) -> Started:
        self._response.status_code = 202
        self._response.headers.update(self.headers(record))
        return record

    @staticmethod
    def headers(record: Job) -> dict[str, str]:
        """Of the answer: where the job is."""
        return {"Location": f"/v1/jobs/{record.id}", "Preference-Applied": "respond-async"}


def _revision(if_match: str | None) -> int | None:
    if if_match is None or if_match == "*":
        return None
    match = _TAG.fullmatch(if_match)
    if match is None:
        raise Refused("stale", f"If-Match {if_match[:80]!r} is no revision of this object; send the ETag as it came")
    return int(match[1])


Reading = Annotated[_Reading, Depends()]
Creating = Annotated[_Creating, Depends()]
Changing = Annotated[_Changing, Depends()]
Starting = Annotated[_Starting, Depends()]
Preferring = Annotated[_Preferring, Depends()]
