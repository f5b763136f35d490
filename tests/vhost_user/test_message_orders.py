"""Each virtual machine monitor's own order of messages is obeyed: fixtures/vhost_user, replayed."""

import contextlib
import os
from collections.abc import Callable, Iterator

import pytest

from tests.vhost_user.conftest import Rig, rig
from tests.vhost_user.frontend import FORMS, Frontend, scripts

SCRIPTS = {script.stem: script.read_text() for script in scripts()}


@contextlib.contextmanager
def descriptors(names: list[str], frontend: Frontend) -> Iterator[list[int]]:
    makers: dict[str, Callable[[], int]] = {
        "+eventfd": lambda: os.eventfd(0),
        "+memory": lambda: os.dup(frontend.memory),
        "+log": lambda: os.dup(frontend.memory),
    }
    made = [makers[name]() for name in names]
    try:
        yield made
    finally:
        for descriptor in made:
            os.close(descriptor)


async def step(line: str, frontend: Frontend) -> None:
    """Sends one line's message, and holds its answer against the line."""
    question, _, answer = line.partition("=>")
    name, *words = question.split()
    numbers = [int(word, 0) for word in words if word[0] not in "+!"]
    with descriptors([word for word in words if word.startswith("+")], frontend) as attached:
        if answer:
            expected = () if answer.strip() == "nothing" else tuple(int(word, 0) for word in answer.split())
            assert await frontend.ask(name, *numbers, descriptors=attached) == expected, line
        elif words and words[-1].startswith("!"):
            assert await frontend.tell(name, *numbers, descriptors=attached) == int(words[-1][1:] or 0), line
        else:
            frontend.send(name, *numbers, descriptors=attached)


async def expect(line: str, frontend: Frontend, device_rig: Rig) -> None:
    _, what, *numbers = line.split()
    await frontend.settled()
    state = "started" if what == "stopped" else what
    found = [index for index, ring in enumerate(device_rig.device.rings) if getattr(ring, state)]
    assert found == [int(number) for number in numbers], line


async def play(lines: Iterator[str], device_rig: Rig) -> bool:
    """Plays until DISCONNECT; whether there is more to play."""
    async with device_rig.connection() as frontend:
        for line in lines:
            if line == "DISCONNECT":
                return True
            if line.startswith("EXPECT"):
                await expect(line, frontend, device_rig)
            else:
                await step(line, frontend)
        await frontend.settled()
    return False


@pytest.mark.parametrize("script", SCRIPTS)
async def test_a_monitors_own_order_of_messages_is_obeyed(script: str) -> None:
    text = SCRIPTS[script]
    lines = iter([line for line in text.splitlines() if line and not line.startswith("#")])
    async with rig(config_space="# CONFIG" in text) as device_rig:
        while await play(lines, device_rig):
            pass
        assert not any(ring.started or ring.enabled for ring in device_rig.device.rings)
        assert not device_rig.device.regions


def test_the_scripts_name_only_messages_that_exist() -> None:
    named = {line.split()[0] for text in SCRIPTS.values() for line in text.splitlines() if line}
    assert named - {"#", "EXPECT", "DISCONNECT"} <= set(FORMS)
    assert len(SCRIPTS) >= 10
