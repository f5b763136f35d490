"""Over TCP only loopback names are answered, so that no web page reaches the API through a browser of this machine."""

import pytest
from fastapi.testclient import TestClient

from api.app import create_app
from api.security import is_loopback
from vstore.store import Store


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


def test_a_unix_socket_is_no_matter_of_hosts(store: Store) -> None:
    """Its permissions say who may come."""

    async def unix(scope: object, receive: object, send: object) -> None:
        assert isinstance(scope, dict)
        await app({**scope, "server": ("/run/vstore/api.sock", None)}, receive, send)  # type: ignore[arg-type]

    app = create_app(store)
    with TestClient(unix, base_url="http://anything") as client:
        assert client.get("/").status_code == 200


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.com", ""])
def test_no_other_address_passes_for_loopback(host: str) -> None:
    assert not is_loopback(host)
