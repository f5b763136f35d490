"""A process that cannot start says why."""

from pathlib import Path

from tests.target.conftest import Running
from tests.target.guest import refusal
from vstore.target.errors import ErrorCode
from vstore.target.spawn import spawn


def test_second_process_on_the_same_control_socket_says_why_it_does_not_start(target: Running, tmp_path: Path) -> None:
    error = refusal(spawn, target.control, tmp_path / "second.log")
    assert error.code is ErrorCode.NOT_STARTED
    assert "in use" in error.detail
    assert target.client.status().pid == target.process.pid
