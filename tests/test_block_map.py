"""Copy-on-write on the data plane: disks over random qcow2 chains, against a model of their bytes and qemu-img."""

import errno
import random
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from formats.errors import ImageError
from formats.host_file import HostFile
from formats.image import BlockState, Change, Image
from formats.raw import Raw
from tests.formats.qcow2.oracle import assert_clean, open_qcow2, qemu_create
from tests.formats.reference import run
from vstore import block_io, commits
from vstore.dataplane import Volume
from vstore.disk import Disk

MIB = 1 << 20


class Chain:
    """A qcow2 disk on disk, its parents, and the bytes that it should have."""

    def __init__(self, directory: Path, seed: int) -> None:
        self.draw = random.Random(seed)
        self.directory = directory
        self.top = directory / "top.qcow2"
        self.bits = self.draw.randint(9, 21)
        length = min((1 << self.bits) * self.draw.randint(3, 600), 12 * MIB) + self.draw.choice([0, 512])
        self.model = bytearray(length)
        self.parents: list[tuple[Path, str]] = []
        self._make(length)
        self.disk = self._open()

    def _make(self, length: int) -> None:
        kinds = ["plain", "raw parent", "short parent", "qcow2 parents", "compressed parent", "compressed"]
        kind = self.draw.choice(kinds)
        options: dict[str, object] = {"cluster_size": 1 << self.bits}
        if self.bits >= 14 and self.draw.random() < 0.3:
            options["extended_l2"] = "on"
        if "raw" in kind or "short" in kind:
            self._raw_parent(length // 2 // 512 * 512 if "short" in kind else length)
        if "parents" in kind or kind == "compressed parent":
            self._qcow2_parents(length, compress="compressed" in kind)
        if kind == "compressed":
            self._compressed(self.top, length, options)
            return
        if self.parents:
            path, format = self.parents[0]
            options |= {"backing_file": path, "backing_fmt": format}
        qemu_create(self.top, length, **options)

    def _patterned(self, length: int) -> bytes:
        unit = self.draw.choice([4096, 65536])
        pieces = [self.draw.choice([bytes(unit), self.draw.randbytes(unit), b"ab" * (unit // 2)]) for _ in range(16)]
        data = b"".join(self.draw.choice(pieces) for _ in range(-(-length // unit)))
        return data[:length]

    def _raw_parent(self, length: int) -> None:
        path = self.directory / "parent.raw"
        path.write_bytes(self._patterned(length))
        self.model[:length] = path.read_bytes()
        self.parents = [(path, "raw")]

    def _qcow2_parents(self, length: int, *, compress: bool) -> None:
        self._raw_parent(length)
        middle = self.directory / "middle.qcow2"
        if compress:
            self._compressed(middle, length, {"cluster_size": 1 << self.draw.randint(12, 18)})
            self.parents = [(middle, "qcow2")]
            return
        base = self.parents[0][0]
        qemu_create(middle, length, cluster_size=1 << self.draw.randint(12, 18), backing_file=base, backing_fmt="raw")
        for _ in range(5):
            at = self.draw.randrange(0, length, 512)
            count = min(self.draw.choice([512, 65536]), length - at)
            done = run("qemu-io", "-f", "qcow2", "-c", f"write -P 7 {at} {count}", middle)
            assert done.returncode == 0, done.stderr
            self.model[at : at + count] = b"\7" * count
        self.parents.insert(0, (middle, "qcow2"))

    def _compressed(self, path: Path, length: int, options: dict[str, object]) -> None:
        content = self.directory / "content.raw"
        content.write_bytes(self._patterned(length))
        self.model[:] = content.read_bytes()
        text = ",".join(f"{name}={value}" for name, value in options.items())
        made = run("qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", "-o", text, content, path)
        assert made.returncode == 0, made.stderr

    def _open(self) -> Disk:
        parents: list[Image] = []
        for path, format in self.parents:
            file = HostFile.from_path(path, read_only=True)
            parents.append(Raw(file) if format == "raw" else open_qcow2(path, read_only=True))
            if format != "raw":
                file.close()
        return Disk(open_qcow2(self.top), *parents)

    def reopen(self) -> None:
        """Closes it, asks qemu-img about it, and opens it again."""
        self.disk.close()
        assert_clean(self.top)
        model = self.directory / "model.raw"
        model.write_bytes(self.model)
        same = run("qemu-img", "compare", "-f", "qcow2", "-F", "raw", self.top, model)
        assert same.returncode == 0, same.stdout
        self.disk = self._open()

    def step(self, draw: random.Random, low: int, high: int) -> None:
        """One random operation inside [low, high)."""
        at = draw.randrange(low, high, draw.choice([512, 4096]))
        count = min(draw.choice([512, 4096, 4096, 65536, 3 << self.bits]), high - at)
        kind = draw.choice(["write"] * 5 + ["read"] * 3 + ["zero", "discard", "flush"])
        if kind == "write":
            data = draw.randbytes(count)
            self.disk.write_blocking(at, data)
            self.model[at : at + count] = data
        elif kind == "read":
            assert self.disk.read_blocking(at, count) == self.model[at : at + count], (at, count)
        elif kind == "flush":
            self.disk.flush_blocking()
        else:
            self.disk.write_zeroes_blocking(at, count, deallocate=kind == "discard")
            self.model[at : at + count] = bytes(count)

    def resize(self, length: int) -> None:
        self.disk.resize(length)
        del self.model[length:]
        self.model.extend(bytes(length - len(self.model)))

    def check(self) -> None:
        for at in range(0, len(self.model), MIB):
            count = min(MIB, len(self.model) - at)
            assert self.disk.read_blocking(at, count) == self.model[at : at + count]


@pytest.mark.parametrize("seed", range(24))
def test_a_qcow2_disk_over_any_chain_keeps_its_bytes_and_leaves_a_clean_image(tmp_path: Path, seed: int) -> None:
    chain = Chain(tmp_path, seed)
    for _ in range(3):
        for _ in range(60):
            chain.step(chain.draw, 0, len(chain.model))
        chain.check()
        chain.reopen()
    chain.check()
    chain.disk.close()


@pytest.mark.parametrize("seed", range(100, 108))
def test_threads_that_write_side_by_side_in_the_same_blocks_lose_nothing(tmp_path: Path, seed: int) -> None:
    chain = Chain(tmp_path, seed)
    length, errors = len(chain.model), []

    def work(number: int) -> None:
        draw = random.Random(seed * 10 + number)
        try:
            for _ in range(80):
                # stripes of 8 KiB, so that threads share every larger block
                stripe = draw.randrange(max(1, length // 32768)) * 32768 + number * 8192
                if stripe < length:
                    chain.step(draw, stripe, min(stripe + 8192, length))
        except (AssertionError, OSError, ImageError) as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    chain.check()
    chain.reopen()
    chain.check()
    chain.disk.close()


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


@pytest.mark.parametrize("seed", range(200, 212))
def test_a_disk_that_is_resized_with_writes_uncommitted_keeps_its_bytes(tmp_path: Path, seed: int) -> None:
    chain = Chain(tmp_path, seed)
    for _ in range(8):
        for _ in range(15):
            chain.step(chain.draw, 0, len(chain.model))
        chain.resize(chain.draw.randrange(512, 2 * len(chain.model) + 512, 512))
        chain.check()
    chain.reopen()
    chain.check()
    chain.disk.close()


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
