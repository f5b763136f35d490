"""Packets and their descriptors: what comes is owned, what is malformed is told, nothing leaks."""

import os
import socket
from collections.abc import Iterator

import pytest

from vstore.target.errors import TargetError
from vstore.target.packet import LARGEST_PACKET, MOST_DESCRIPTORS, Packet, encode, receive, send


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in (ours, theirs):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    with ours, theirs:
        yield ours, theirs


def open_descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def received(end: socket.socket) -> Packet:
    packet = receive(end)
    assert packet is not None
    return packet


def test_packet_arrives_whole_with_its_descriptor(ends: tuple[socket.socket, socket.socket]) -> None:
    with open(__file__, "rb") as file:
        send(ends[0], encode({"a": [1, "ä"]}), [file.fileno()])
        packet = received(ends[1])
        assert packet.message() == {"a": [1, "ä"]}
        descriptor = packet.descriptors.take()
        assert descriptor is not None
        assert os.path.sameopenfile(descriptor, file.fileno())
        assert not os.get_inheritable(descriptor)
        os.close(descriptor)
        assert packet.descriptors.take() is None


def test_packets_keep_their_borders(ends: tuple[socket.socket, socket.socket]) -> None:
    for number in range(3):
        send(ends[0], encode({"n": number}))
    assert [received(ends[1]).message()["n"] for _ in range(3)] == [0, 1, 2]


def test_end_of_the_connection_is_none(ends: tuple[socket.socket, socket.socket]) -> None:
    ends[0].close()
    assert receive(ends[1]) is None


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"{", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 60000, "not JSON"),
        (b"1" * 60000, "not JSON"),
        (b"[]", "not a JSON object"),
        (b"null", "not a JSON object"),
        (b"x" * (LARGEST_PACKET + 1), "longer than 65536 bytes"),
    ],
)
def test_malformed_packet_says_why(ends: tuple[socket.socket, socket.socket], data: bytes, sentence: str) -> None:
    ends[0].send(data)
    with pytest.raises(TargetError, match=sentence):
        received(ends[1]).message()


def test_largest_packet_passes(ends: tuple[socket.socket, socket.socket]) -> None:
    send(ends[0], encode({"a": "x" * (LARGEST_PACKET - 8)}))
    assert len(received(ends[1]).message()["a"]) == LARGEST_PACKET - 8


def test_message_too_long_for_a_packet_is_refused_before_it_is_sent() -> None:
    with pytest.raises(TargetError, match="more than a packet's 65536"):
        encode({"a": "x" * LARGEST_PACKET})


def test_descriptors_nobody_took_are_closed(ends: tuple[socket.socket, socket.socket]) -> None:
    before = open_descriptors()
    send(ends[0], b"{}", [0, 1, 2])
    with received(ends[1]).descriptors as descriptors:
        assert len(descriptors) == 3
    assert open_descriptors() == before


@pytest.mark.parametrize("data", [b"", b"{}", b"x" * (LARGEST_PACKET + 1)])
def test_too_many_descriptors_are_a_fault_and_all_closed(
    ends: tuple[socket.socket, socket.socket], data: bytes
) -> None:
    before = open_descriptors()
    send(ends[0], data, [0] * (MOST_DESCRIPTORS + 7))
    packet = received(ends[1])
    with packet.descriptors, pytest.raises(TargetError):
        packet.message()
    assert open_descriptors() == before
