"""Socket files: made with their permissions, removed by their maker alone, never taken from the living."""

import os
import socket
import stat
from pathlib import Path

import pytest

from vstore.vhost_user.listener import LONGEST_PATH, Listener, Permissions


def test_a_socket_is_private_by_default(tmp_path: Path) -> None:
    listener = Listener(tmp_path / "s")
    assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o600
    listener.close()
    assert not (tmp_path / "s").exists()


def test_permissions_are_given_as_wished(tmp_path: Path) -> None:
    mine = os.getuid(), os.getgid()
    listener = Listener(tmp_path / "s", Permissions(mode=0o660, owner=mine[0], group=mine[1]))
    status = (tmp_path / "s").stat()
    assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (0o660, *mine)
    listener.close()


def test_a_path_of_107_bytes_is_served_and_one_of_108_is_a_clear_error(tmp_path: Path) -> None:
    stem = f"{tmp_path}/"
    longest = stem + "x" * (LONGEST_PATH - len(stem))
    Listener(longest).close()
    with pytest.raises(ValueError, match="1 to 107 bytes"):
        Listener(longest + "x")
    with pytest.raises(ValueError, match="1 to 107 bytes"):
        Listener("")


def test_a_dead_processs_socket_is_replaced(tmp_path: Path) -> None:
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(tmp_path / "s"))
    dead.close()
    listener = Listener(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(tmp_path / "s"))
    listener.close()


def test_a_living_ones_socket_is_left_alone(tmp_path: Path) -> None:
    living = Listener(tmp_path / "s")
    with pytest.raises(OSError, match="somebody listens there"):
        Listener(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(tmp_path / "s"))
    living.close()


@pytest.mark.parametrize("kind", ["file", "directory", "link to nothing"])
def test_what_is_no_socket_is_left_alone(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "s"
    {
        "file": lambda: path.write_text("dear data"),
        "directory": path.mkdir,
        "link to nothing": lambda: path.symlink_to(tmp_path / "nothing"),
    }[kind]()
    with pytest.raises(FileExistsError, match="no socket"):
        Listener(path)
    assert os.path.lexists(path)


def test_a_directory_that_is_missing_is_an_error_that_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Listener(tmp_path / "missing" / "s")


def test_a_socket_that_somebody_else_has_put_there_meanwhile_is_not_removed(tmp_path: Path) -> None:
    ours = Listener(tmp_path / "s")
    (tmp_path / "s").unlink()
    theirs = Listener(tmp_path / "s")
    ours.close()
    assert (tmp_path / "s").exists()
    theirs.close()
    assert not (tmp_path / "s").exists()


def test_closing_after_somebody_removed_the_file_is_no_error(tmp_path: Path) -> None:
    listener = Listener(tmp_path / "s")
    (tmp_path / "s").unlink()
    listener.close()


def test_permissions_that_cannot_be_given_leave_no_socket_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "not yours to give")

    monkeypatch.setattr(os, "chown", refuse)
    with pytest.raises(PermissionError):
        Listener(tmp_path / "s", Permissions(group=12345))
    assert not (tmp_path / "s").exists()
