"""Only loopback addresses are listened at."""

import pytest

from api.addresses import DEFAULT_PORT, Address, is_loopback
from api.cli.serve import serve
from tests.store.world import ROOT


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.com", ""])
def test_no_other_address_passes_for_loopback(host: str) -> None:
    assert not is_loopback(host)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("8080", Address("127.0.0.1", 8080)),
        ("127.0.0.2:80", Address("127.0.0.2", 80)),
        ("[::1]:80", Address("::1", 80)),
        ("localhost:0", Address("localhost", 0)),
    ],
)
def test_an_address_is_a_host_and_a_port_or_a_port(text: str, address: Address) -> None:
    assert Address.parse(text) == address
    assert Address.parse(str(address)) == address


@pytest.mark.parametrize(
    "text", ["", "x", "127.0.0.1", "127.0.0.1:65536", "127.0.0.1:\u0661", "[::]:80", "10.0.0.1:80"]
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="listen at"):
        Address.parse(text)


@pytest.mark.parametrize(
    ("options", "address"),
    [
        ([], Address("127.0.0.1", DEFAULT_PORT)),
        (["--no-listen"], None),
        (["--listen", "[::1]:80"], Address("::1", 80)),
    ],
)
def test_by_default_the_daemon_listens_at_its_port_on_loopback(
    monkeypatch: pytest.MonkeyPatch, options: list[str], address: Address | None
) -> None:
    asked: list[Address | None] = []
    monkeypatch.setattr("api.serve.serve", lambda _paths, listen, **_: asked.append(listen))
    monkeypatch.setattr("vstore.target.log.set_up", lambda: None)
    serve.main(options, standalone_mode=False)
    assert asked == [address]


def test_the_readme_names_the_port_that_it_is() -> None:
    assert f"`127.0.0.1:{DEFAULT_PORT}`" in (ROOT / "README.md").read_text()
