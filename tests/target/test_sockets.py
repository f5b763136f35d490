"""Listening sockets: private, never stolen from the living, taken over from the dead, removed by their maker only."""

import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from vstore.target.errors import ErrorCode, TargetError
from vstore.target.sockets import adopt, listen

STREAM, PACKET = socket.SOCK_STREAM, socket.SOCK_SEQPACKET


@pytest.mark.parametrize("kind", [STREAM, PACKET])
def test_socket_listens_with_mode_0600_and_goes_away(tmp_path: Path, kind: socket.SocketKind) -> None:
    path = tmp_path / "s"
    listener = listen(str(path), kind)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with socket.socket(socket.AF_UNIX, kind) as connection:
        connection.connect(str(path))
    listener.close()
    assert list(tmp_path.iterdir()) == []


def test_socket_of_a_living_process_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    listener = listen(path, STREAM)
    with pytest.raises(TargetError, match="in use") as caught:
        listen(path, STREAM)
    assert caught.value.code is ErrorCode.SOCKET_IN_USE
    with socket.socket(socket.AF_UNIX, STREAM) as connection:
        connection.connect(path)
    listener.close()


def test_socket_of_a_dead_process_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX, STREAM) as dead:
        dead.bind(str(path))
    listen(str(path), STREAM).close()
    assert not path.exists()


def test_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    path.write_bytes(b"precious")
    with pytest.raises(TargetError, match="exists and is no socket"):
        listen(str(path), STREAM)
    assert path.read_bytes() == b"precious"
    assert list(tmp_path.iterdir()) == [path]


def test_close_leaves_a_socket_that_another_put_there(tmp_path: Path) -> None:
    path = tmp_path / "s"
    first = listen(str(path), STREAM)
    path.unlink()
    second = listen(str(path), STREAM)
    first.close()
    assert path.exists()
    second.close()


def test_path_of_107_bytes_works_and_108_is_refused_with_the_limit(tmp_path: Path) -> None:
    room = 107 - len(os.fsencode(tmp_path)) - 1
    listen(str(tmp_path / ("s" * room)), STREAM).close()
    with pytest.raises(TargetError, match="a UNIX socket's path has 1 to 107 bytes"):
        listen(str(tmp_path / ("s" * (room + 1))), STREAM)


def test_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=f"{tmp_path}/none: there is no such directory"):
        listen(str(tmp_path / "none" / "s"), STREAM)


def test_relative_path_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    listen("s", STREAM).close()


@pytest.mark.parametrize("make", [os.eventfd, lambda _: socket.socket(socket.AF_INET, socket.SOCK_STREAM).detach()])
def test_adopting_what_is_no_unix_stream_socket_is_refused_and_closes_it(make: Callable[[int], int]) -> None:
    descriptor = make(0)
    with pytest.raises(TargetError, match="is not a"):
        adopt(descriptor)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)
