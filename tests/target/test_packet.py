"""Packets and their descriptors: what comes is owned, what is malformed is told, nothing leaks."""

import os
import socket
import threading
from collections.abc import Iterator

import pytest

from vstore.target.errors import TargetError
from vstore.target.packet import (
    LARGEST_MESSAGE,
    LARGEST_PACKET,
    MOST_DESCRIPTORS,
    MOST_FILES,
    Descriptors,
    Joiner,
    Packet,
    encode,
    receive,
    send,
    send_packet,
)


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


def test_message_too_long_is_refused_before_it_is_sent() -> None:
    with pytest.raises(TargetError, match="more than a message's 16777216"):
        encode({"a": "x" * LARGEST_MESSAGE})


@pytest.mark.parametrize(("length", "files"), [(LARGEST_PACKET * 3, 0), (10, 500), (LARGEST_PACKET * 2, 3), (0, 241)])
def test_long_message_comes_in_pieces_with_its_descriptors_in_order(
    ends: tuple[socket.socket, socket.socket], length: int, files: int
) -> None:
    before = open_descriptors()
    mine = [os.memfd_create(f"{size}") for size in range(files)]
    for size, descriptor in enumerate(mine):
        os.ftruncate(descriptor, size)
    message = {"a": "+." * (length // 2)}
    sender = threading.Thread(target=send, args=(ends[0], encode(message), mine))
    sender.start()
    joiner, joined = Joiner(), None
    while joined is None:
        joined = joiner.add(received(ends[1]))
    sender.join()
    assert joined.message() == message
    taken = [joined.descriptors.take() for _ in range(len(joined.descriptors))]
    assert [os.fstat(descriptor).st_size for descriptor in taken if descriptor is not None] == list(range(files))
    for descriptor in (*mine, *taken):
        assert descriptor is not None
        os.close(descriptor)
    assert open_descriptors() == before


def test_whole_packet_amid_pieces_begins_anew_and_leaks_nothing() -> None:
    before = open_descriptors()
    joiner = Joiner()
    assert joiner.add(Packet(b'+{"a":', Descriptors([os.dup(0)]))) is None
    whole = joiner.add(Packet(b"{}", Descriptors()))
    assert whole is not None
    assert (whole.message(), len(whole.descriptors)) == ({}, 0)
    assert joiner.add(Packet(b"+[", Descriptors([os.dup(0)]))) is None
    joiner.close()
    assert open_descriptors() == before


@pytest.mark.parametrize(("piece", "files"), [(b"+" + bytes(1 << 20), 0), (b"+", 200)])
def test_message_without_end_is_a_fault_and_takes_no_room(piece: bytes, files: int) -> None:
    before = open_descriptors()
    joiner = Joiner()
    for _ in range(40):
        assert joiner.add(Packet(piece, Descriptors([os.dup(0) for _ in range(files)]))) is None
        assert len(open_descriptors()) <= MOST_FILES + len(before)
    last = joiner.add(Packet(b".}", Descriptors()))
    assert last is not None
    with pytest.raises(TargetError, match=f"more than 16777216 bytes or {MOST_FILES} descriptors"):
        last.message()
    last.descriptors.close()
    joiner.close()
    assert open_descriptors() == before


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
    send_packet(ends[0], data, [0] * (MOST_DESCRIPTORS + 7))
    packet = received(ends[1])
    with packet.descriptors, pytest.raises(TargetError):
        packet.message()
    assert open_descriptors() == before
