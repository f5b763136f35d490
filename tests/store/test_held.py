"""What a process tells is held as it told it, to its last word, and its descriptors are closed in the end."""

import os
import socket
from collections.abc import Iterator

import pytest

from vstore.store.held import Held
from vstore.vhost_user.keeping import Keeping


@pytest.fixture
def held() -> Iterator[Held]:
    before = len(os.listdir("/proc/self/fd"))
    made = Held()
    yield made
    made.close()
    assert len(os.listdir("/proc/self/fd")) == before


def told(held: Held, keeping: Keeping) -> None:
    keeping.attach(os.dup(held.theirs.fileno()))
    held.handed()


def test_what_was_put_before_and_after_is_held_and_what_was_dropped_is_not(held: Held) -> None:
    keeping = Keeping()
    with open(os.devnull, "rb") as file:
        keeping.put("memory/1", b"one", request=37, descriptors=[file.fileno()])
        told(held, keeping)
        keeping.put("memory/2", b"two", request=37, flags=9, descriptors=[file.fileno(), file.fileno()])
        keeping.put("memory/1", b"again", request=37)
    keeping.put("vring/2/KICK", b"")
    keeping.put("vring/20/KICK", b"")
    keeping.drop("vring/2")
    keeping.close()
    assert held.ended(10)
    assert sorted(held.kept.names()) == ["memory/1", "memory/2", "vring/20/KICK"]
    assert held.kept["memory/1"].payload == b"again"
    two = held.kept["memory/2"]
    assert (two.request, two.flags, two.payload, len(two.descriptors)) == (37, 9, b"two", 2)
    assert all(os.path.samestat(os.fstat(each), os.stat(os.devnull)) for each in two.descriptors)


def test_a_process_that_lives_has_not_ended(held: Held) -> None:
    keeping = Keeping()
    told(held, keeping)
    keeping.put("x")
    assert not held.ended(0.05)
    keeping.close()


def test_packets_that_make_no_sense_are_passed_over(held: Held) -> None:
    for nonsense in (b"{", b"[]", b'{"put":"x"}', b"\xff"):
        socket.send_fds(held.theirs, [nonsense], [0])
    held.theirs.send(b'{"put":"y","request":1,"flags":0,"payload":""}')
    held.handed()
    assert held.ended(10)
    assert held.kept.names() == ["y"]


def test_a_daemon_that_has_gone_is_no_trouble_for_who_tells_it() -> None:
    held, keeping = Held(), Keeping()
    told(held, keeping)
    held.close()
    keeping.put("x", b"1")
    keeping.put("y", b"2")
    assert keeping.names() == ["x", "y"]
    keeping.close()
