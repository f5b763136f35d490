"""The token: made once, kept for its owner alone, and refused when anybody else could have had it."""

import os
import stat
from pathlib import Path

import pytest

from api.token import TokenError, digest, kept_digest


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "token"


def test_the_first_start_makes_256_random_bits_for_the_owner_alone(file: Path) -> None:
    before = os.umask(0)
    kept = kept_digest(file)
    os.umask(before)
    token = file.read_text().rstrip("\n")
    assert len(token) == 43  # 256 bits in base64url, without padding
    assert kept == digest(token)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert os.listdir(file.parent) == ["token"]


def test_later_starts_keep_it(file: Path) -> None:
    assert kept_digest(file) == kept_digest(file)


def test_two_daemons_have_two_tokens(tmp_path: Path) -> None:
    assert kept_digest(tmp_path / "a") != kept_digest(tmp_path / "b")


def test_what_a_start_that_was_cut_short_left_is_not_taken(file: Path) -> None:
    (file.parent / "token.new").write_text("half a tok")
    kept_digest(file)
    assert os.listdir(file.parent) == ["token"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
def test_a_token_that_others_could_have_read_or_written_is_refused(file: Path, mode: int) -> None:
    kept_digest(file)
    file.chmod(mode)
    with pytest.raises(TokenError, match=r"others could have read it.*delete it"):
        kept_digest(file)


@pytest.mark.parametrize("content", [b"", b"short\n", b"A" * 44, b"A" * 42 + b"!", b"A" * 43 + b"\n\n", b"\xff" * 43])
def test_what_is_no_token_is_refused(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    file.chmod(0o600)
    with pytest.raises(TokenError, match=r"no token of vstore.*delete it"):
        kept_digest(file)


def test_a_link_a_pipe_and_a_directory_are_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text("A" * 43)
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(tmp_path / "pipe", 0o600)
    (tmp_path / "directory").mkdir(0o700)
    for name in ("link", "pipe", "directory"):
        with pytest.raises(TokenError, match=name):
            kept_digest(tmp_path / name)


def test_a_state_directory_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(TokenError, match="cannot be kept there"):
        kept_digest(tmp_path / "nothing" / "token")
