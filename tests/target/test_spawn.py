"""A process that cannot start says why."""

import os
from pathlib import Path

import pytest

from tests.target.conftest import Running, running
from tests.target.guest import refusal
from vstore.target.errors import ErrorCode
from vstore.target.spawn import spawn


def test_second_process_on_the_same_control_socket_says_why_it_does_not_start(target: Running, tmp_path: Path) -> None:
    error = refusal(spawn, target.control, tmp_path / "second.log")
    assert error.code is ErrorCode.NOT_STARTED
    assert "in use" in error.detail
    assert target.client.status().pid == target.process.pid


def test_process_does_not_get_the_token_and_others_cannot_read_its_log(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("VSTORE_TOKEN", "not-for-guests")
    monkeypatch.setenv("FOR_ALL", "seen")
    mask = os.umask(0)
    try:
        for target in running(tmp_path):
            environment = Path(f"/proc/{target.process.pid}/environ").read_bytes()
            assert b"FOR_ALL=seen" in environment
            assert b"not-for-guests" not in environment
    finally:
        os.umask(mask)
    assert (tmp_path / "target.log").stat().st_mode & 0o777 == 0o600
