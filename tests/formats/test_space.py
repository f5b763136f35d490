"""Space of a file, where a file system lacks what others have."""

import errno
import fcntl
import os
from pathlib import Path

import pytest

from formats import space
from formats.space import block_queue


@pytest.fixture
def without_ioctl(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(fcntl, "ioctl", refuse)


@pytest.mark.usefixtures("without_ioctl")
def test_zeros_are_written_where_the_file_system_cannot_say_them(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * (3 << 20))
    with (tmp_path / "file").open("r+b") as file:
        space.zero_range(file.fileno(), 1000, 2 << 20)
    assert (tmp_path / "file").read_bytes() == b"x" * 1000 + bytes(2 << 20) + b"x" * ((1 << 20) - 1000)


@pytest.mark.usefixtures("without_ioctl")
def test_what_cannot_be_punched_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 4096)
    with (tmp_path / "file").open("r+b") as file:
        assert not space.punches(file.fileno())
        for refused in (space.punch, space.reserve):
            with pytest.raises(OSError, match="not supported"):
                refused(file.fileno(), 0, 4096)


def test_an_error_that_means_something_else_is_not_swallowed() -> None:
    reader, writer = os.pipe()
    with pytest.raises(OSError, match="Errno"):
        space.zero_range(writer, 0, 4096)
    os.close(reader)
    os.close(writer)


def test_a_device_that_is_not_there_has_no_queue() -> None:
    assert block_queue(os.makedev(4000, 77), "logical_block_size") == 0
