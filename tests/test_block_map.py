"""Copy-on-write on the data plane, case by case; tests/copy_on_write holds random operations against a model."""

import contextlib
import errno
import os
import shutil
import sys
import time
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import pytest

from formats.errors import UnsupportedFeature
from formats.image import BlockState, Change, HostExtent, Image, Layer
from formats.qcow2.pages import Pages
from formats.registry import open_chain
from tests.formats.qcow2.oracle import assert_clean, open_qcow2, qemu_create
from tests.formats.reference import run
from vstore import block_io, commits
from vstore.dataplane import Volume
from vstore.disk import Disk

MIB = 1 << 20

T = TypeVar("T")


def test_a_map_is_loaded_where_something_is_met(tmp_path: Path) -> None:
    path = tmp_path / "large.qcow2"
    qemu_create(path, 1 << 40)
    disk = Disk(open_qcow2(path))
    disk.write_blocking(1 << 39, b"x" * 512)
    assert disk.volume.get_entry(0) >> 60 == BlockState.NOT_LOADED
    assert disk.volume.get_entry((1 << 39) // 65536 + 1) >> 60 == BlockState.HOLE
    assert disk.read_blocking(1 << 39, 1024) == b"x" * 512 + bytes(512)
    disk.close()
    assert_clean(path)


def test_blocks_in_a_row_do_not_go_on_in_a_grown_disk(tmp_path: Path) -> None:
    path = tmp_path / "row.qcow2"
    qemu_create(path, MIB, cluster_size=4096, preallocation="falloc")
    disk = Disk(open_qcow2(path))
    disk.write_blocking(0, b"x" * MIB)
    disk.resize(4 * MIB)
    disk.write_blocking(3 * MIB, b"y" * 4096)
    disk.close()
    assert_clean(path)
    disk = Disk(open_qcow2(path))
    assert disk.read_blocking(0, 4 * MIB) == b"x" * MIB + bytes(2 * MIB) + b"y" * 4096 + bytes(MIB - 4096)
    disk.close()


def wait_for(condition: Callable[[], bool]) -> bool:
    for _ in range(2000):
        if condition():
            return True
        time.sleep(0.005)
    return False


def test_the_window_is_refilled_each_time_that_half_of_it_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "disk.qcow2"
    monkeypatch.setattr(commits, "WINDOW_BYTES", 0)
    monkeypatch.setattr(commits, "SOON", 0)
    qemu_create(path, 64 * MIB)
    disk = Disk(open_qcow2(path))
    for block in range(64):
        disk.write_blocking(block << 16, b"x")
        assert wait_for(lambda: disk.volume.window >= commits.FEWEST_RESERVED // 2)
    disk.close()
    assert_clean(path)


def test_a_commit_that_fails_is_tried_again_after_a_pause_and_told_of_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path, calls = tmp_path / "disk.qcow2", []
    monkeypatch.setattr(commits, "MOST_PENDING", 4)
    monkeypatch.setattr(block_io, "PAUSE", 0.01)
    qemu_create(path, 64 * MIB)
    image = open_qcow2(path)
    commit = image.commit

    def fail_at_first(changes: Sequence[Change]) -> None:
        calls.append(len(changes))
        if len(calls) < 5:
            raise OSError(errno.ENOSPC, "the host is full")
        commit(changes)

    monkeypatch.setattr(image, "commit", fail_at_first)
    disk = Disk(image)
    for block in range(4):
        disk.write_blocking(block << 16, b"x")
    assert wait_for(lambda: disk.volume.pending == 0 and len(calls) == 5)
    assert len(caplog.messages) == 1
    disk.close()
    assert_clean(path)


def test_a_compressed_block_finds_room_when_others_were_quicker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content, path = tmp_path / "content.raw", tmp_path / "disk.qcow2"
    content.write_bytes(b"c" * MIB)
    assert run("qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", content, path).returncode == 0
    disk = Disk(open_qcow2(path))
    replace, calls = Volume.replace, []

    def late(volume: Volume, block: int, data: bytes) -> bool:
        calls.append(block)
        if len(calls) == 1:
            volume.take_back()
        return replace(volume, block, data)

    monkeypatch.setattr(Volume, "replace", late)
    disk.write_blocking(5, b"x")
    assert disk.read_blocking(0, 10) == b"cccccxcccc"
    assert calls == [0, 0]
    disk.close()


@pytest.mark.parametrize("failures", [1, 2, 3])
def test_zeroes_over_a_new_block_survive_commits_that_fail_and_nothing_is_written_where_it_has_no_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failures: int
) -> None:
    path = tmp_path / "disk.qcow2"
    qemu_create(path, MIB)
    image = open_qcow2(path)
    commit, calls = image.commit, []

    def fail_at_first(changes: Sequence[Change]) -> None:
        calls.append(changes)
        if len(calls) <= failures:
            raise OSError(errno.ENOSPC, "the host is full")
        commit(changes)

    monkeypatch.setattr(image, "commit", fail_at_first)
    disk = Disk(image)
    disk.write_blocking(0, b"x" * 131072)
    disk.write_zeroes_blocking(0, 65536, deallocate=True)
    for _ in range(failures):
        with pytest.raises(OSError, match="host is full"):
            disk.flush_blocking()
    disk.write_blocking(100, b"y" * 100)
    assert disk.read_blocking(0, 131072) == (bytes(100) + b"y" * 100).ljust(65536, b"\0") + b"x" * 65536
    disk.flush_blocking()
    disk.close()
    assert_clean(path)


@pytest.mark.parametrize("written", [[1], [5], [8], [0], [3, 4, 8], [*range(10)]])
@pytest.mark.parametrize("most", [3, commits.MOST_BLOCKS])
def test_what_is_written_into_a_row_of_zeroes_survives_a_commit_that_fails_half_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: list[int], most: int
) -> None:
    path, content = tmp_path / "disk.qcow2", bytearray(b"x" * MIB)
    qemu_create(path, MIB)
    monkeypatch.setattr(commits, "MOST_BLOCKS", most)
    disk = Disk(open_qcow2(path))
    disk.write_blocking(0, bytes(content))
    disk.flush_blocking()
    disk.write_zeroes_blocking(65536, 8 * 65536, deallocate=True)
    content[65536 : 9 * 65536] = bytes(8 * 65536)
    for block in written:
        disk.write_blocking(block << 16, b"y" * 65536)
        content[block << 16 : block + 1 << 16] = b"y" * 65536

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "the host is full")

    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(Pages, "write_back", full)
            with pytest.raises(OSError, match="host is full"):
                disk.flush_blocking()
    disk.flush_blocking()
    assert disk.read_blocking(0, MIB) == content
    disk.close()
    assert_clean(path)
    again = Disk(open_qcow2(path))
    assert again.read_blocking(0, MIB) == content
    again.close()


class Medium:
    """Whether an image's map can be read now."""

    def __init__(self, image: Image, monkeypatch: pytest.MonkeyPatch) -> None:
        self.broken = False
        self._load, self._masks = image.load_entries, image.masks
        monkeypatch.setattr(image, "load_entries", lambda first, count: self._try(self._load(first, count)))
        monkeypatch.setattr(image, "masks", lambda first, count: self._try(self._masks(first, count)))

    def _try(self, found: T) -> T:
        if self.broken:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return found


@pytest.mark.parametrize("extended", ["off", "on"])
@pytest.mark.timeout(20)
def test_a_map_that_cannot_be_read_is_an_error_each_time_and_none_once_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extended: str
) -> None:
    path, size = tmp_path / "disk.qcow2", 16384
    qemu_create(path, 100 * size, cluster_size=size, extended_l2=extended)
    image = open_qcow2(path)
    medium = Medium(image, monkeypatch)
    disk = Disk(image)
    disk.write_blocking(0, b"a" * 512)
    medium.broken = True
    with contextlib.suppress(OSError):
        disk.resize(300 * size)  # a page of the map of which a part is known
    for at in (150 * size, 299 * size + 1):
        for _ in range(2):
            with pytest.raises(OSError, match="Input/output error"):
                disk.read_blocking(at, 100)
            with pytest.raises(OSError, match="Input/output error"):
                disk.write_blocking(at, b"b")
            with pytest.raises(OSError, match="Input/output error"):
                disk.write_zeroes_blocking(at, size - 1, deallocate=True)
    medium.broken = False
    assert disk.read_blocking(150 * size, 100) == bytes(100)
    disk.write_blocking(299 * size, b"c" * size)
    disk.resize(400 * size)
    assert disk.read_blocking(0, disk.length) == (b"a" * 512).ljust(299 * size, b"\0") + b"c" * size + bytes(100 * size)
    disk.close()
    assert_clean(path)


def test_a_parent_that_cannot_be_read_holds_up_no_other_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, path = tmp_path / "base.raw", tmp_path / "disk.qcow2"
    base.write_bytes(b"p" * MIB)
    qemu_create(path, MIB, backing_file=str(base), backing_fmt="raw")
    image, parent = open_chain("qcow2", path)
    with open(base, "ab") as unreadable, monkeypatch.context() as patch:
        patch.setattr(type(parent), "layers", [Layer(unreadable.fileno())])
        disk = Disk(image, parent)
    free, freed = image.free, list[HostExtent]()
    monkeypatch.setattr(image, "free", lambda extents: (freed.extend(extents), free(extents)))
    disk.write_blocking(0, b"a" * 65536)  # its place is not needed after all
    disk.write_zeroes_blocking(0, 65536, deallocate=True)
    disk.write_blocking(1 << 16, b"b" * 4096)  # whose block the parent has to fill
    disk.write_blocking(2 << 16, b"c" * 65536)
    for _ in range(2):
        with pytest.raises(OSError, match="Bad file descriptor"):
            disk.flush_blocking()
    assert len(freed) == 1
    with open_qcow2(shutil.copy(path, tmp_path / "crashed.qcow2"), read_only=True) as found:
        assert [found.load(block, 1)[0].entry >> 60 for block in range(3)] == [
            BlockState.ZERO,
            BlockState.HOLE,
            BlockState.DATA,
        ]
    disk.write_blocking(1 << 16, b"B" * 65536)
    disk.flush_blocking()
    disk.close()
    assert_clean(path)


def test_what_is_pending_grows_old_also_while_the_volume_has_news(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "disk.qcow2"
    monkeypatch.setattr(block_io, "OLDEST_PENDING", 0.3)
    qemu_create(path, MIB)
    disk = Disk(open_qcow2(path))
    disk.write_blocking(0, b"x")

    def committed() -> bool:
        os.eventfd_write(disk.volume.notice_fd(), 1)
        return not disk.volume.pending

    assert wait_for(committed)
    disk.close()


def test_a_flat_image_is_written_to_after_an_edit_that_it_refused(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    path.write_bytes(bytes(MIB))
    disk = Disk(*open_chain("raw", path))
    with pytest.raises(UnsupportedFeature):
        disk.name_parent(None)
    disk.write_blocking(5, b"x")
    assert disk.read_blocking(4, 3) == b"\0x\0"
    disk.close()


def test_composed_blocks_are_kept_by_their_bytes(tmp_path: Path) -> None:
    base, path, size = tmp_path / "base.qcow2", tmp_path / "disk.qcow2", 2 * MIB
    qemu_create(base, 24 * size)
    disk = Disk(open_qcow2(base))
    for block in range(24):
        disk.write_blocking(block * size, b"b" * 65536)
    disk.close()
    qemu_create(path, 24 * size, backing_file=str(base), backing_fmt="qcow2", cluster_size=size)
    disk = Disk(*open_chain("qcow2", path))
    tracemalloc.start()
    for block in range(24):
        assert disk.read_blocking(block * size + 65535, 2) == b"b\0"
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 12 * MIB
    disk.close()


def test_an_error_that_is_collected_late_does_not_bring_the_process_down() -> None:
    """In a process of its own, which once died: an error in a cycle held a memoryview that was still lent to C."""
    code = """
import gc
from vstore.dataplane import Volume

def again(error):
    raise error

for call in (Volume.write, Volume.copy_up):
    try:
        try:
            call(Volume(65536, 512), 0, memoryview(bytes(512))[1:])
        except OSError as error:
            again(error)
    except OSError:
        pass
    gc.collect()
"""
    done = run(sys.executable, "-c", code)
    assert (done.returncode, done.stderr) == (0, "")
