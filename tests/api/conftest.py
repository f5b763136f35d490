"""Fixtures: the application over a store of fake target processes, in this process and behind a real socket."""

import socket
import threading
from collections.abc import Iterator

import pytest
import uvicorn
from fastapi.testclient import TestClient

from api.app import create_app
from tests.store.conftest import store, world
from tests.store.world import World, eventually
from vstore.store import Store

__all__ = ["client", "reader", "store", "url", "world"]


@pytest.fixture
def client(store: Store) -> Iterator[TestClient]:
    with TestClient(create_app(store), base_url="http://127.0.0.1", raise_server_exceptions=False) as client:
        yield client


@pytest.fixture(scope="session")
def reader() -> Iterator[TestClient]:
    """A client for tests that leave nothing behind."""
    world = World()
    with TestClient(create_app(world.open()), base_url="http://127.0.0.1", raise_server_exceptions=False) as client:
        yield client
    world.close()


@pytest.fixture
def url(store: Store, world: World) -> Iterator[str]:
    """The address of a daemon behind a UNIX socket."""
    path = world.root / "api.sock"
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listening.bind(str(path))
    server = uvicorn.Server(uvicorn.Config(create_app(store), lifespan="off", log_config=None))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    eventually(lambda: server.started)
    yield f"unix://{path}"
    server.should_exit = True
    thread.join()
