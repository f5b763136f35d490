"""Fixtures: a world, and a store in it."""

from collections.abc import Iterator

import pytest

from tests.store.world import World
from vstore.store import Store


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.close()


@pytest.fixture
def store(world: World) -> Store:
    return world.open()
