"""Where things are, for root, for users, and for systemd."""

from pathlib import Path

import pytest

from api.paths import Paths, client_socket, client_tokens, default_paths


def test_root_has_the_system_directories() -> None:
    assert default_paths({}, 0) == Paths(Path("/var/lib/vstore"), Path("/run/vstore"))


def test_a_user_has_the_xdg_directories() -> None:
    environ = {"XDG_STATE_HOME": "/home/u/state", "XDG_RUNTIME_DIR": "/run/user/1000"}
    assert default_paths(environ, 1000) == Paths(Path("/home/u/state/vstore"), Path("/run/user/1000/vstore"))


def test_a_user_without_a_session_keeps_sockets_at_home_not_in_tmp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/u")
    assert default_paths({}, 1000) == Paths(
        Path("/home/u/.local/state/vstore"), Path("/home/u/.local/state/vstore/run")
    )


def test_systemd_says_where() -> None:
    environ = {"STATE_DIRECTORY": "/var/lib/a:/var/lib/b", "RUNTIME_DIRECTORY": "/run/a"}
    assert default_paths(environ, 0) == Paths(Path("/var/lib/a"), Path("/run/a"))


def test_a_client_prefers_its_own_daemon(tmp_path: Path) -> None:
    (tmp_path / "vstore").mkdir()
    (tmp_path / "vstore" / "api.sock").touch()
    assert client_socket({"XDG_RUNTIME_DIR": str(tmp_path)}, 1000) == tmp_path / "vstore" / "api.sock"


def test_a_client_looks_for_the_token_of_its_own_daemon_first() -> None:
    environ = {"XDG_STATE_HOME": "/home/u/state"}
    assert client_tokens(environ, 1000) == (Path("/home/u/state/vstore/token"), Path("/var/lib/vstore/token"))
