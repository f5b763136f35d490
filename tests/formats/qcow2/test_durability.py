"""What a commit costs in barriers, what a failing disk leaves behind, and crashes while tables grow."""

import errno
import random
from pathlib import Path

import pytest

from formats.host_file import HostFile
from formats.image import BlockState, Change, entry
from formats.qcow2.check import check
from formats.qcow2.create import Options, create
from formats.qcow2.image import Qcow2
from formats.qcow2.structures import Incompatible
from tests.formats.qcow2.oracle import assert_clean, open_qcow2, qemu_create
from tests.formats.qcow2.recorder import Recording
from tests.formats.qcow2.volume import AllocatingVolume
from tests.formats.reference import Reference, assert_equal_for_qemu, qemu_io, run


def data(image: Qcow2, block: int) -> Change:
    (extent,) = image.reserve(1)
    return Change(block, entry(BlockState.DATA, 0, extent.offset))


def barriers(recording: Recording, image: Qcow2, changes: list[Change]) -> int:
    before = len(recording.steps)
    image.commit(changes)
    return sum(step.kind == "barrier" for step in recording.steps[before:])


def test_a_batch_costs_two_barriers_one_without_changes_and_one_more_for_a_new_refcount_block(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    qemu_create(path, 1 << 30, cluster_size=4096)
    recording = Recording()
    with Qcow2(recording.watch(path)) as image:
        assert barriers(recording, image, []) == 1
        assert barriers(recording, image, [data(image, 0)]) == 2  # with a new L2 table
        assert barriers(recording, image, [data(image, block) for block in range(1, 1000)]) == 2
        assert barriers(recording, image, [Change(5, entry(BlockState.ZERO))]) == 2
        assert barriers(recording, image, []) == 1
        assert barriers(recording, image, [data(image, block) for block in range(2000, 4000)]) == 3
    assert_clean(path)


def test_a_commit_writes_pages_and_not_clusters(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    qemu_create(path, 1 << 30)
    recording = Recording()
    with Qcow2(recording.watch(path)) as image:
        image.commit([data(image, 0)])
        change = data(image, 100)
        before = len(recording.steps)
        image.commit([change])
        assert sum(len(step.data) for step in recording.steps[before:]) == 2 * 4096


class FailingFile(HostFile):
    """Fails its n-th write or barrier from now on, once."""

    countdown = -1

    def _fail(self) -> None:
        self.countdown -= 1
        if self.countdown == 0:
            raise OSError(errno.EIO, "the disk is tired")

    def pwrite(self, offset: int, data: bytes) -> None:
        self._fail()
        super().pwrite(offset, data)

    def fdatasync(self) -> None:
        self._fail()
        super().fdatasync()


@pytest.mark.parametrize("at", range(1, 9))
def test_a_batch_that_failed_is_committed_by_trying_again(tmp_path: Path, at: int) -> None:
    path = tmp_path / "disk.qcow2"
    qemu_create(path, 8 << 20, cluster_size=512)
    qemu_io("qcow2", path, "write -P 3 0 1M")
    assert run("qemu-img", "snapshot", "-c", "one", path).returncode == 0
    file = FailingFile.from_path(path)
    image = Qcow2(file)
    extents = image.reserve(300)
    places = [extent.offset + n * 512 for extent in extents for n in range(extent.blocks)]
    changes = [Change(block * 7, entry(BlockState.DATA, 0, place)) for block, place in enumerate(places[:200])]
    for place in places:
        file.pwrite(place, b"\7" * 512)
    file.countdown = at
    failed = False
    for _ in range(2):
        try:
            image.commit(changes)
            break
        except OSError as error:
            failed = True
            assert error.errno == errno.EIO  # noqa: PT017
    assert failed
    image.close()
    assert_clean(path)
    volume = AllocatingVolume(open_qcow2(path, read_only=True))
    assert [volume.read(block * 7 * 512, 512) for block in range(200)] == [b"\7" * 512] * 200
    volume.image.close()


def test_crashes_while_the_refcount_table_and_the_l1_table_grow(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    with HostFile.create(path) as file:
        create(file, 2 << 20, options=Options(cluster_size=512, refcount_bits=64))
    recording = Recording()
    with Qcow2(recording.watch(path)) as image:
        table = image.header.start.refcount_table_offset
        for first in range(0, 4096, 512):
            image.commit([data(image, block) for block in range(first, first + 512)])
        image.resize(8 << 20)
        image.commit([data(image, block) for block in range(8000, 8100)])
        image.resize(1 << 20)
        assert image.header.start.refcount_table_offset != table
    assert_clean(path)
    for _, files in recording.states(random.Random(1), 60):
        path.write_bytes(files[path.name])
        checked = run("qemu-img", "check", "-f", "qcow2", path)
        assert checked.returncode in (0, 3), checked.stdout + checked.stderr


def test_an_image_that_qemu_left_dirty_is_recounted_when_it_is_opened(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    qemu_create(path, 8 << 20, lazy_refcounts="on")
    run("qemu-io", "-f", "qcow2", "-c", "write -P 5 0 3M", "-c", "flush", "-c", "abort", path)
    with open_qcow2(path, read_only=True) as image:
        assert image.header.incompatible & Incompatible.DIRTY
    model = Reference(tmp_path / "model", 8 << 20)
    model.write(0, b"\5" * (3 << 20))
    volume = AllocatingVolume(open_qcow2(path))
    assert not volume.image.header.incompatible & Incompatible.DIRTY
    assert volume.image.header.lazy_refcounts
    volume.write(5 << 20, b"x" * 70000)
    model.write(5 << 20, b"x" * 70000)
    volume.close()
    assert_clean(path)
    assert_equal_for_qemu("qcow2", path, model)


def test_extensions_and_bits_that_are_not_known_are_kept_or_cleared_as_the_format_says(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    qemu_create(path, 1 << 20)
    content = path.read_bytes()
    names = content.index((0x6803F857).to_bytes(4, "big"))
    strange = (0x12345678).to_bytes(4, "big")
    with path.open("r+b") as file:
        file.seek(names)
        file.write(strange)  # an extension of a kind that nobody knows
        file.seek(80)
        file.write((1 << 50).to_bytes(8, "big") + (1 << 51).to_bytes(8, "big"))  # compatible, autoclear
    with open_qcow2(path) as image:
        image.resize(300 << 30)
        image.snapshots.take("one")
    after = path.read_bytes()
    assert strange in after[:65536]
    assert after[80:88] == (1 << 50).to_bytes(8, "big")
    assert after[88:96] == bytes(8)


def test_a_new_refcount_block_is_counted_before_the_table_names_it(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    qemu_create(path, 256 << 10, cluster_size=512, refcount_bits=64)
    recording = Recording()
    with Qcow2(recording.watch(path)) as image:
        for _ in range(20):
            image.reserve(11)  # with 64 counts a block, blocks are laid at all places under others
            image.commit([])
    for step in range(len(recording.steps) + 1):
        path.write_bytes(recording.state(step)[path.name])
        with HostFile.from_path(path, read_only=True) as file:
            assert not check(file).corruptions, step
