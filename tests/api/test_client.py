"""The command over TCP: which token it shows to whom, and what it says when that is refused."""

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn

from api.app import create_app
from api.cli import main
from api.token import digest
from tests.api.conftest import TOKEN
from tests.store.world import eventually
from vstore.store import Store


@pytest.fixture
def tcp_url(store: Store) -> Iterator[str]:
    """The address of a daemon behind TCP."""
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(create_app(store, digest(TOKEN)), lifespan="off", log_config=None))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    eventually(lambda: server.started)
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    server.should_exit = True
    thread.join()


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The state directory of this user's daemon; nothing else of this machine is looked at."""
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path))
    monkeypatch.setattr("api.paths._ROOT_STATE", tmp_path / "system")
    monkeypatch.delenv("VSTORE_TOKEN", raising=False)
    return tmp_path


def test_the_token_comes_from_the_environment(tcp_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VSTORE_TOKEN", TOKEN)
    assert main(["--url", tcp_url, "image", "list"]) == 0


@pytest.mark.parametrize("place", ["token", "system/token"])
def test_the_token_comes_from_the_state_directory_of_this_user_or_machine(
    tcp_url: str, state: Path, place: str
) -> None:
    (state / "system").mkdir()
    (state / place).write_text(f"{TOKEN}\n")
    assert main(["--url", tcp_url, "image", "create", "a", "1M"]) == 0
    assert main(["--url", tcp_url, "image", "delete", "a"]) == 0


def test_the_environment_comes_before_the_file(tcp_url: str, state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (state / "token").write_text(TOKEN)
    monkeypatch.setenv("VSTORE_TOKEN", "A" * 43)
    assert main(["--url", tcp_url, "image", "list"]) == 77


@pytest.mark.parametrize(("token", "reason"), [(None, "shows none"), ("A" * 43, "does not have this daemon's token")])
def test_no_token_or_a_wrong_one_is_77_and_says_where_it_is(
    tcp_url: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    token: str | None,
    reason: str,
) -> None:
    if token:
        monkeypatch.setenv("VSTORE_TOKEN", token)
    assert main(["--url", tcp_url, "image", "list"]) == 77
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.count("\n") == 1
    assert reason in told.err
    assert "`token` in the daemon's state directory" in told.err


@pytest.mark.parametrize("token", ["two words", "line\r\nX-Evil: 1", "caf\xe9"])
def test_what_cannot_be_a_token_is_not_sent(
    tcp_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], token: str
) -> None:
    monkeypatch.setenv("VSTORE_TOKEN", token)
    assert main(["--url", tcp_url, "image", "list"]) == 77
    assert "characters that no token has" in capsys.readouterr().err


def test_the_kept_token_goes_to_this_machine_only(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[dict[str, str]] = []

    def request(_self: object, _method: str, _path: str, _body: object, headers: dict[str, str]) -> None:
        sent.append(headers)
        raise ConnectionRefusedError

    monkeypatch.setattr("http.client.HTTPConnection.request", request)
    (state / "token").write_text(TOKEN)
    for host in ("127.0.0.1:1", "[::1]:1", "localhost:1", "192.0.2.1:1", "vstore.example:1", "127.0.0.1.example:1"):
        assert main(["--url", f"http://{host}", "image", "list"]) == 69
    assert ["Authorization" in headers for headers in sent] == [True, True, True, False, False, False]


@pytest.mark.parametrize("url", ["http://127.0.0.1:x", "http://[::1", "http://", "https://127.0.0.1:1", "x"])
def test_an_address_that_cannot_be_is_69_and_one_line(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--url", url, "image", "list"]) == 69
    assert "write unix:///path or http://127.0.0.1:PORT" in capsys.readouterr().err
