"""Commits beside writers: what changes between the look at a batch and its beginning keeps nothing older out of it."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.formats.qcow2.oracle import assert_clean, open_qcow2, qemu_create
from tests.formats.reference import qemu_io
from vstore.dataplane.native import lib
from vstore.disk import Disk

BLOCK = 65536
LATE = 200  # rows of zeros


class Zeroing:
    """The compiled module, with a guest that zeroes rows of blocks right before the first commit begins."""

    def __init__(self, lib: Any, disk: Disk) -> None:
        self._lib, self._disk = lib, disk
        self._left = LATE

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lib, name)

    def vs_volume_commit_begin(self, *arguments: object) -> int:
        while self._left:
            self._left -= 1
            self._disk.write_zeroes_blocking(2 * self._left * BLOCK, BLOCK, deallocate=True)
        return int(self._lib.vs_volume_commit_begin(*arguments))


@pytest.mark.parametrize("extended", ["off", "on"])
def test_a_flush_takes_what_was_written_before_it_whatever_is_zeroed_as_it_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extended: str
) -> None:
    path, crashed = tmp_path / "disk.qcow2", tmp_path / "crashed.qcow2"
    qemu_create(path, 1024 * BLOCK, extended_l2=extended)
    disk = Disk(open_qcow2(path))
    disk.write_blocking(0, b"a" * (2 * LATE * BLOCK))
    disk.flush_blocking()
    disk.write_blocking(1000 * BLOCK, b"b" * BLOCK)
    monkeypatch.setattr("vstore.dataplane.volume.lib", Zeroing(lib, disk))
    disk.flush_blocking()
    shutil.copy(path, crashed)
    disk.close()
    qemu_io("qcow2", crashed, f"read -P 0x62 {1000 * BLOCK} {BLOCK}")
    assert_clean(path)
