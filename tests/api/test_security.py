"""Over TCP only who has the token is answered, and only under loopback names, so that no web page reaches the API."""

from collections.abc import Iterator

import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient
from starlette.routing import BaseRoute, Mount, Route

from api.app import ROUTERS, create_app
from api.token import digest
from tests.api.conftest import TOKEN, tcp_client
from vstore.store import Store

WRONG = TOKEN[::-1]


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:8080", "localhost:8080", "[::1]:8080", "127.8.9.1"])
def test_loopback_names_are_answered(reader: TestClient, host: str) -> None:
    assert reader.get("/", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8080", "127.0.0.1.evil.example", "", "192.168.1.1", "[::"]
)
def test_other_hosts_are_refused_with_a_problem(reader: TestClient, host: str) -> None:
    response = reader.get("/", headers={"host": host})
    assert response.status_code == 421
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["code"] == "host_refused"


@pytest.mark.parametrize(
    ("origin", "status"),
    [("http://127.0.0.1:8080", 200), ("http://localhost", 200), ("https://evil.example", 421), ("null", 421)],
)
def test_other_origins_are_refused(reader: TestClient, origin: str, status: int) -> None:
    assert reader.get("/", headers={"origin": origin}).status_code == status


def test_a_unix_socket_is_no_matter_of_hosts_and_tokens(store: Store) -> None:
    """Its permissions say who may come."""

    async def unix(scope: object, receive: object, send: object) -> None:
        assert isinstance(scope, dict)
        await app({**scope, "server": ("/run/vstore/api.sock", None)}, receive, send)  # type: ignore[arg-type]

    app = create_app(store, digest(TOKEN))
    with TestClient(unix, base_url="http://anything") as client:
        assert client.get("/").status_code == 200


def routes_of(app: FastAPI) -> Iterator[tuple[str, str]]:
    """Every method and path that the application answers, documented or not."""
    for route in flat(app.routes):
        for method in sorted(route.methods or ()):
            yield method, route.path.replace("{", "").replace("}", "")


def flat(routes: list[BaseRoute]) -> Iterator[Route | APIRoute]:
    for route in routes:
        assert not isinstance(route, Mount), "a mounted application is not walked here"
        original = getattr(route, "original_router", None)  # FastAPI keeps an included router as one route
        if original is not None:
            yield from flat(original.routes)
        else:
            assert isinstance(route, Route | APIRoute), route
            yield route


def test_the_walk_finds_every_route(store: Store) -> None:
    found = list(routes_of(create_app(store, digest(TOKEN))))
    assert len(found) >= sum(len(router.routes) for router in ROUTERS) + 2
    for path in ("/", "/openapi.json", "/problems/code", "/v1/targets/target/attach", "/v1/targets/target/luns/lun"):
        assert ("GET", path) in found


@pytest.mark.parametrize("token", [None, WRONG, "", TOKEN[:-1], TOKEN + "A", TOKEN.swapcase()])
def test_no_route_answers_without_the_token(store: Store, token: str | None) -> None:
    with tcp_client(store, token) as stranger:
        for method, path in [*routes_of(create_app(store, digest(TOKEN))), ("GET", "/nowhere"), ("BREW", "/")]:
            response = stranger.request(method, path)
            assert response.status_code == 401, (method, path)
            assert response.headers["www-authenticate"].startswith('Bearer realm="vstore"')
            if method != "HEAD":
                assert response.headers["content-type"] == "application/problem+json"
                assert response.json()["code"] == "unauthorized"
                assert "`token` in the daemon's state directory" in response.json()["detail"]
    assert store.list_targets().items == []


def test_every_route_answers_with_the_token(store: Store) -> None:
    with tcp_client(store) as friend:
        for method, path in routes_of(create_app(store, digest(TOKEN))):
            assert friend.request(method, path).status_code not in (401, 403), (method, path)


def test_a_missing_token_is_told_from_a_wrong_one(store: Store) -> None:
    """RFC 6750 3.1: no error code when the request has no authentication at all."""
    with tcp_client(store, None) as nobody, tcp_client(store, WRONG) as stranger:
        assert nobody.get("/").headers["www-authenticate"] == 'Bearer realm="vstore"'
        assert stranger.get("/").headers["www-authenticate"] == 'Bearer realm="vstore", error="invalid_token"'


@pytest.mark.parametrize(
    ("header", "status"),
    [
        (f"Bearer {TOKEN}", 200),
        (f"bearer {TOKEN}", 200),  # RFC 9110 11.1: the scheme in any case
        (f"Bearer  {TOKEN}", 200),
        (TOKEN, 401),
        (f"Basic {TOKEN}", 401),
        (f"Bearer {TOKEN} {TOKEN}", 401),
        (f"Bearer{TOKEN}", 401),
        ("Bearer \xff", 401),
    ],
)
def test_only_the_bearer_scheme_with_one_token_is_taken(store: Store, header: str, status: int) -> None:
    with tcp_client(store, None) as client:
        assert client.get("/", headers={b"authorization": header.encode("latin-1")}).status_code == status


def test_two_authorization_headers_are_none(store: Store) -> None:
    with tcp_client(store, None) as client:
        both = [("authorization", f"Bearer {TOKEN}"), ("authorization", f"Bearer {WRONG}")]
        assert client.get("/", headers=both).status_code == 401
        assert client.get("/", headers=both[::-1]).status_code == 401


def test_a_token_does_not_make_a_foreign_page_welcome(reader: TestClient) -> None:
    assert reader.get("/", headers={"origin": "https://evil.example"}).status_code == 421


def test_every_operation_declares_the_bearer_scheme_and_its_refusal(reader: TestClient) -> None:
    document = reader.get("/openapi.json").json()
    assert document["components"]["securitySchemes"]["token"]["type"] == "http"
    assert document["components"]["securitySchemes"]["token"]["scheme"] == "bearer"
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            assert operation["security"] == [{"token": []}], (method, path)
            assert {"401", "421"} <= set(operation["responses"]), (method, path)
