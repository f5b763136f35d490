"""`vstore file` and encrypted images: made and looked at with their secret, and nothing is in the clear unasked."""

from pathlib import Path

import pytest

from tests.api.test_file import File, Q
from tests.formats.reference import run
from tests.transfer.chains import create, write


@pytest.fixture
def file(capsys: pytest.CaptureFixture[str]) -> File:
    return File(capsys)


@pytest.fixture
def key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The option that gives a secret, which is hashed quickly here."""
    monkeypatch.setattr("formats.luks._ITERATIONS", 4000)
    (tmp_path / "key").write_bytes(b"open sesame")
    return ["--secret-file", tmp_path / "key"]


def decrypted(path: Path, format: str) -> bytes:
    """As qemu-img decrypts it, and its parents."""
    name = "key-secret" if format == "luks" else "encrypt.key-secret"
    source = f"driver={format},file.filename={path},{name}=k"
    options = ["--object", "secret,id=k,data=open sesame", "--image-opts", source]
    done = run("qemu-img", "convert", *options, "-O", "raw", path.with_name("decrypted"))
    assert done.returncode == 0, done.stderr
    return path.with_name("decrypted").read_bytes()


@pytest.mark.parametrize(("format", "options"), [("luks", []), ("qcow2", ["-o", "encrypt.format=luks"])])
def test_encrypted_images_are_made_filled_and_looked_at_with_their_secret(
    tmp_path: Path, file: File, key: list[object], format: str, options: list[str]
) -> None:
    source, path = create(tmp_path / "source", "raw", 3 << 20), tmp_path / "encrypted"
    write(source, "raw", "write -P 5 1M 700k")
    assert file("create", path, "3M", "-f", format, *options) != 0
    assert "secret" in file.err
    assert not path.exists()
    assert file("create", path, "3M", "-f", format, *options, *key) == 0, file.err
    assert file("convert", "-n", source, path, "-f", "raw", "-O", format, *key) == 0, file.err
    assert decrypted(path, format) == source.read_bytes()
    assert file("compare", source, path, "-f", "raw", "-F", format, *key) == 0
    assert file.json("map", path, "-f", format, *key)
    assert file.json("measure", path, "-f", format, "-O", "raw", *key)["required"]
    assert file("bench", path, "-f", format, "-c", 1, *key) == 0
    for verb in (["map"], ["measure", "-O", "raw"], ["bench", "-c", 1]):
        assert file(*verb, path, "-f", format) != 0
        assert "give its secret" in file.err


@pytest.mark.parametrize("options", [[], ["-o", "encrypt.format=luks"]])
def test_an_overlay_of_an_encrypted_image_is_encrypted_if_that_is_said(
    tmp_path: Path, file: File, key: list[object], options: list[str]
) -> None:
    base, overlay = tmp_path / "base", tmp_path / "overlay"
    assert file("create", base, "1M", *Q, "-o", "encrypt.format=luks", *key) == 0, file.err
    assert file("clone", base, overlay, *Q, *options) != 0
    assert file("clone", base, overlay, *Q, *options, *key) == 0, file.err
    assert file.json("info", overlay, *Q).get("encrypted", False) is bool(options)
    assert file("compare", base, overlay, *Q, "-F", "qcow2", *key) == 0, file.err


def test_nobody_who_gives_a_secret_gets_a_new_image_in_the_clear(tmp_path: Path, file: File, key: list[object]) -> None:
    source = create(tmp_path / "source", "raw", 1 << 20)
    for format in ("raw", "qcow2"):
        assert file("create", tmp_path / "disk", "1M", "-f", format, *key) != 0
        assert "secret" in file.err
    for options in (["luks"], ["qcow2", "-o", "encrypt.format=luks"]):
        assert file("convert", source, tmp_path / "disk", "-f", "raw", "-O", *options, *key) != 0
        assert "--in-place" in file.err
    assert not (tmp_path / "disk").exists()
