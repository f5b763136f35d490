"""Reads through the page cache: all that is there, however little each call does."""

import os
from pathlib import Path

import pytest

from formats import plain_io


def test_a_read_goes_on_until_it_has_all_or_the_file_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content, pread = os.urandom(5000), os.pread
    (tmp_path / "file").write_bytes(content)
    monkeypatch.setattr(os, "pread", lambda descriptor, length, offset: pread(descriptor, -(-length // 2), offset))
    with (tmp_path / "file").open("rb") as file:
        assert plain_io.read(file.fileno(), 0, 5000) == content
        assert plain_io.read(file.fileno(), 300, 700) == content[300:1000]
        assert plain_io.read(file.fileno(), 4000, 4096) == content[4000:]
        assert plain_io.read(file.fileno(), 6000, 10) == b""
