"""A lost write is told once, to one of those who share an open file; every flush of the disk fails from then on."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from formats.host_file import HostFile
from formats.registry import open_chain
from tests.formats.qcow2.oracle import qemu_create
from vstore.dataplane import Volume
from vstore.disk import Disk


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    path = tmp_path / "disk.qcow2"
    qemu_create(path, 1 << 20)
    disk = Disk(*open_chain("qcow2", path))
    disk.write_blocking(0, bytes(4096))
    disk.flush_blocking()
    yield disk
    with pytest.raises(OSError, match="Input/output error"):  # also the last flush
        disk.close()


def assert_lost(disk: Disk) -> None:
    with pytest.raises(OSError, match="Input/output error") as caught:
        disk.flush_blocking()
    assert caught.value.errno == errno.EIO


def test_what_a_commit_learnt_fails_flushes_without_one(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", fails)
        disk.write_blocking(1 << 16, b"a")
        assert_lost(disk)
    assert_lost(disk)  # what waits for a commit
    assert disk.volume.lost(0) == errno.EIO


def test_what_other_work_on_the_image_learnt_fails_flushes_of_written_bytes(disk: Disk) -> None:
    file = disk.image.layers[0].file
    assert isinstance(file, HostFile)
    file.lost = errno.EIO
    disk.write_blocking(0, b"in place")
    assert_lost(disk)


def test_what_the_volume_learnt_fails_commits(disk: Disk) -> None:
    disk.volume.lost(0, errno.EIO)
    disk.write_blocking(1 << 16, b"a")
    assert_lost(disk)
    file = disk.image.layers[0].file
    assert file is not None
    assert file.lost == errno.EIO


def test_the_first_error_stays() -> None:
    volume = Volume(1 << 20, 1 << 16)
    volume.set_layer(0, -1, 8, 1)
    assert [volume.lost(0, error) for error in (0, errno.EIO, errno.ENOSPC, 0)] == [0, *[errno.EIO] * 3]
    with pytest.raises(OSError, match="volume_lost"):
        volume.lost(1)
    volume.close()
