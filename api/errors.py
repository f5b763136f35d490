"""Every error of the API as application/problem+json (RFC 9457), from one table; nothing else makes an error body.

`type` leads to a page of the daemon itself (`/problems/CODE`) that tells what the problem means and what helps.
"""

# ruff: noqa: N818  (the names say what is wrong)

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException

from vstore.store.errors import StoreError

MEDIA_TYPE = "application/problem+json"


@dataclass(frozen=True)
class Problem:
    """One row: `help` says what the problem means and what to do."""

    code: str
    status: int
    title: str
    help: str


PROBLEMS = {
    row.code: row
    for row in (
        Problem("invalid_argument", 422, "A value cannot be right", "The detail names the field and what it may be."),
        Problem("invalid_request", 422, "The request has the wrong shape", "See errors[] and /openapi.json."),
        Problem("malformed_json", 400, "The body is not JSON", "Send JSON with Content-Type: application/json."),
        Problem("not_found", 404, "There is no such object", "List the collection to see what there is."),
        Problem("already_exists", 409, "The name is taken", "It exists and differs from the request."),
        Problem("conflict", 409, "The state of things forbids it", "The detail says what has to change first."),
        Problem("in_use", 409, "Something depends on it", "The detail names the dependents; end them first."),
        Problem("unsupported", 409, "The format cannot do that", "The detail says what the format lacks."),
        Problem(
            "secret_needed", 409, "An encrypted image lacks its secret", "Set the secret that the detail names anew."
        ),
        Problem(
            "secret_wrong", 409, "The secret does not open the image", "Name another secret in the image's `secret`."
        ),
        Problem("stale", 412, "It has changed meanwhile", "Read it again, and repeat the change with the new ETag."),
        Problem("exists", 412, "It exists already", "If-None-Match: * asked to create and nothing else."),
        Problem("gone", 412, "There is nothing to delete", "If-Match: * asked to delete what exists and nothing else."),
        Problem("locked", 423, "Another process holds the image", "Close it there (a VM, qemu-img) and try again."),
        Problem("pool_full", 507, "The pool is full", "Free space on the pool's file system."),
        Problem("pool_unavailable", 503, "The pool's file system refused", "The detail has the system's own reason."),
        Problem("target_unavailable", 503, "The target process is not up", "It comes back by itself; try again soon."),
        Problem(
            "busy", 503, "Too many requests wait for it", "Something holds it up; the detail says what to wait for."
        ),
        Problem("work_failed", 500, "The work ended without a result", "The image is as a crash leaves it: whole."),
        Problem("catalog_unavailable", 503, "The state directory cannot be used", "The detail says who has it."),
        Problem("unauthorized", 401, "The token is missing or wrong", "Over TCP every request shows the token."),
        Problem("host_refused", 421, "The Host or Origin is not ours", "The API answers to loopback names only."),
        Problem("no_such_resource", 404, "There is no such resource", "See /openapi.json for the paths."),
        Problem("method_not_allowed", 405, "The method is not offered here", "The Allow header has the methods."),
        Problem("too_large", 413, "The body is too large", "No request of this API needs a body of that length."),
        Problem("http_error", 400, "The request cannot be served", "The detail says why."),
        Problem("internal_error", 500, "A fault in vstore itself", "The daemon's log has the trace; please report it."),
    )
}
_SOON_OVER = ("target_unavailable", "busy")
_BY_STATUS = {404: "no_such_resource", 405: "method_not_allowed", 413: "too_large"}


class Refused(Exception):
    """A refusal that HTTP itself asks for, such as a failed precondition; `code` is a row of the table."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail


class ProblemResponse(JSONResponse):
    """ASCII throughout, because what it quotes may be no text at all (lone surrogates)."""

    media_type = MEDIA_TYPE

    def render(self, content: object) -> bytes:
        return json.dumps(content).encode()


def problem_body(
    code: str, detail: str, instance: str, errors: Sequence[Mapping[str, str]] = (), status: int | None = None
) -> dict[str, Any]:
    row = PROBLEMS[code]
    body: dict[str, Any] = {
        "type": f"/problems/{code}",
        "title": row.title,
        "status": status or row.status,
        "detail": detail,
        "instance": instance,
        "code": code,
    }
    return {**body, "errors": list(errors)} if errors else body


def install(app: FastAPI) -> None:
    """Every way an endpoint can fail ends here."""
    app.add_exception_handler(StoreError, _store_error)
    app.add_exception_handler(Refused, _refused)
    app.add_exception_handler(RequestValidationError, _invalid_request)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _internal_error)
    app.add_api_route("/problems/{code}", _problem_page, include_in_schema=False)


def _problem_page(code: str) -> Response:
    row = PROBLEMS.get(code)
    if row is None:
        raise HTTPException(404)
    return PlainTextResponse(f"{row.title} ({row.code}, {row.status} {HTTPStatus(row.status).phrase})\n\n{row.help}\n")


def _answer(
    request: Request, code: str, detail: str, errors: Sequence[Mapping[str, str]] = (), **kept: Any
) -> Response:
    body = problem_body(code, detail, request.url.path, errors, kept.pop("status", None))
    return ProblemResponse(body, body["status"], **kept)


def _store_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, StoreError)
    errors = [_where(request, error.field, error.detail)] if error.field else []
    headers = {"Retry-After": "1"} if error.code in _SOON_OVER else None
    return _answer(request, error.code, error.detail, errors, headers=headers)


def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return _answer(request, error.code, error.detail)


def _where(request: Request, field: str, detail: str) -> dict[str, str]:
    """RFC 9457 3.1: a JSON pointer into the body; fields of path and query by their name."""
    if field in request.path_params or field in request.query_params:
        return {"detail": detail, "parameter": field}
    return {"detail": detail, "pointer": f"#/{field}"}


def _invalid_request(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    faults = error.errors()
    if any(fault["type"] == "json_invalid" for fault in faults):
        reason = faults[0].get("ctx", {}).get("error", faults[0]["msg"])
        return _answer(request, "malformed_json", f"the body is not JSON: {reason}")
    errors = [_fault(fault) for fault in faults]
    return _answer(request, "invalid_request", "; ".join(each["detail"] for each in errors), errors)


def _fault(fault: Mapping[str, Any]) -> dict[str, str]:
    place, *path = (str(part) for part in fault["loc"])
    name = "/".join(path)
    detail = f"{name or place}: {fault['msg'][:1].lower()}{fault['msg'][1:]}"
    if place == "body":
        return {"detail": detail, "pointer": f"#/{name}" if name else "#"}
    return {"detail": detail, "parameter": name}


def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = _BY_STATUS.get(error.status_code, "http_error")
    detail = f"{request.method} {request.url.path}: {PROBLEMS[code].title[:1].lower()}{PROBLEMS[code].title[1:]}"
    return _answer(request, code, detail, status=error.status_code, headers=error.headers)


def _internal_error(request: Request, _error: Exception) -> Response:
    return _answer(request, "internal_error", "this should not have happened; the daemon's log tells more")
