"""Fixtures: the application over a store of fake target processes, in this process and behind a real socket."""

import socket
import threading
from base64 import urlsafe_b64encode
from collections.abc import Iterator

import pytest
import uvicorn
from fastapi.testclient import TestClient

from api.app import create_app
from api.token import digest
from tests.store.conftest import store, world
from tests.store.world import World, eventually
from vstore.store import Store

__all__ = ["client", "reader", "store", "url", "world"]

TOKEN = urlsafe_b64encode(bytes(range(32))).decode().rstrip("=")  # the same in every process: tests are named by it


def tcp_client(store: Store, token: str | None = TOKEN) -> TestClient:
    """A client of the application over what it takes for TCP; without a token if there is none."""
    app = create_app(store, digest(TOKEN))
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    return TestClient(app, base_url="http://127.0.0.1", headers=headers, raise_server_exceptions=False)


@pytest.fixture
def client(store: Store) -> Iterator[TestClient]:
    with tcp_client(store) as client:
        yield client


@pytest.fixture(scope="session")
def reader() -> Iterator[TestClient]:
    """A client for tests that leave nothing behind."""
    world = World()
    with tcp_client(world.open()) as client:
        yield client
    world.close()


@pytest.fixture
def url(store: Store, world: World) -> Iterator[str]:
    """The address of a daemon behind a UNIX socket."""
    path = world.root / "api.sock"
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listening.bind(str(path))
    server = uvicorn.Server(uvicorn.Config(create_app(store, digest(TOKEN)), lifespan="off", log_config=None))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    eventually(lambda: server.started)
    yield f"unix://{path}"
    server.should_exit = True
    thread.join()
