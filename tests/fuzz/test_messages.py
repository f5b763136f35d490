"""The kept cases of the message fuzzer stay without finding, and it finds faults that are put there for it."""

import asyncio
import itertools
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fuzz import messages
from tests.fuzz.messages import CORPUS, FindingError, replay
from tests.fuzz.messages_conversation import Conversation, Descriptors, Draws
from tests.vhost_user.fake_device import FakeDevice
from vstore.vhost_user.channel import Message
from vstore.vhost_user.guest_memory import GuestMemory
from vstore.vhost_user.messages import MESSAGES
from vstore.vhost_user.session import Session

CASES = sorted(CORPUS.iterdir())
ROOT = Path(__file__).parents[2]


def cases(seed: int, count: int) -> Iterator[bytes]:
    source = random.Random(seed)
    return (source.randbytes(source.randrange(1, 300)) for _ in range(count))


@pytest.mark.parametrize("real", [False, True], ids=["fake data plane", "data plane"])
async def test_the_kept_cases_leave_everything_in_order(real: bool) -> None:
    assert len(CASES) >= 20
    await replay([path.read_bytes() for path in CASES], real=real)


@pytest.mark.parametrize("real", [False, True], ids=["fake data plane", "data plane"])
async def test_new_cases_leave_everything_in_order(real: bool) -> None:
    await replay(cases(seed=99, count=60), real=real)


async def finds(monkeypatch: pytest.MonkeyPatch, where: object, name: str, replacement: object) -> str:
    monkeypatch.setattr(where, name, replacement)
    with pytest.raises(FindingError) as found:
        await replay(cases(seed=1, count=200))
    return str(found.value)


async def test_a_leaked_descriptor_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "descriptors are left open" in await finds(monkeypatch, Message, "close", lambda _: None)


async def test_memory_that_stays_mapped_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    told = await finds(monkeypatch, GuestMemory, "clear", lambda _: None)
    assert "left open" in told or "is mapped" in told


async def test_an_exception_in_a_method_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    assert "ZeroDivisionError" in await finds(monkeypatch, FakeDevice, "vring_set_call", broken)


async def test_a_session_that_does_not_end_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    async def hang(session: Session) -> None:
        session._channel.close()
        await asyncio.sleep(3600)

    monkeypatch.setattr(messages, "PATIENCE", 0.1)
    monkeypatch.setattr(Session, "_end", hang)
    with pytest.raises(FindingError, match="does not end"):
        await replay(cases(seed=1, count=1))


def test_decisions_past_the_end_are_zero() -> None:
    draws = Draws(b"\x07")
    assert (draws.left, draws.number(), draws.left) == (True, 7, False)
    assert (draws.number(4), draws.pick("first", "second"), draws.chance(1)) == (0, "first", True)


def test_seeded_fuzzing_plays_cases_and_keeps_a_finding(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert messages.generate(0.3, 5, real=False) > 0
    monkeypatch.setattr(messages, "CORPUS", tmp_path)
    monkeypatch.setattr(GuestMemory, "clear", lambda _: None)
    with pytest.raises(FindingError):
        messages.generate(20, 5, real=False)
    assert len(list(tmp_path.iterdir())) == 1


def test_it_breeds_cases_by_coverage() -> None:
    command = [sys.executable, "-m", "tests.fuzz.messages", "--atheris", "--seconds", "2"]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert "stat::number_of_executed_units" in ended.stderr


def test_conversations_reach_every_message() -> None:
    descriptors = Descriptors()
    spoken = set()
    for case in cases(seed=2, count=200):
        for whole, _ in itertools.islice(Conversation(Draws(case), descriptors), 60):
            spoken.add(int.from_bytes(whole[:4], sys.byteorder))
    descriptors.close()
    assert set(MESSAGES) <= spoken
