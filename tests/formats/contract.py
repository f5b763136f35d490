"""The contract that every format keeps; a format's test inherits it and names the format.

ImageContract           what any disk does: bytes come back, wherever the cuts lie
  FileImageContract     and survives a reopening, and qemu's tools read the same, and write what we then read
OverlayContract         and over a parent of any format and length it shows what qemu's tools see
"""

import errno
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

from formats.image import Image
from formats.registry import create_image, open_chain, open_image
from tests.formats.reference import Reference, assert_equal_for_qemu, qemu_io
from vstore.disk import Disk

MIB, GIB = 1 << 20, 1 << 30


def pattern(length: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(length)


class ImageContract:
    """Tests read and write through Disk, so they hold the format and the data plane together to one model."""

    format: ClassVar[str]
    length: ClassVar[int] = 2 * GIB + 3 * 512
    """Not a multiple of the block: the last one is partial."""
    unit: ClassVar[int] = 512
    """What lengths are multiples of."""
    deallocates: ClassVar[bool] = True
    kept: ClassVar[int] = 8192
    """Bytes of a discarded mebibyte whose space may stay: what shares the host's pages with something else."""

    def create(self, directory: Path, length: int) -> Path | None:
        """Makes the image where the format has a file, and says where."""
        raise NotImplementedError

    def open(self, path: Path | None, length: int) -> Image:
        raise NotImplementedError

    @pytest.fixture
    def path(self, tmp_path: Path) -> Path | None:
        return self.create(tmp_path, self.length)

    @pytest.fixture
    def disk(self, path: Path | None) -> Iterator[Disk]:
        disk = Disk(self.open(path, self.length))
        yield disk
        disk.close()

    @pytest.fixture
    def reference(self, tmp_path: Path) -> Reference:
        return Reference(tmp_path / "reference", self.length)

    def boundaries(self, disk: Disk) -> list[int]:
        """Where a range may be cut: sectors, pages, the format's blocks, and the two ends."""
        block = disk.image.geometry.block_size
        inner = {512, 4096, 65536, *range(block, disk.length, block)}
        return sorted(at for at in inner if at < disk.length)[:8]

    def test_a_new_image_reads_as_zeros(self, disk: Disk) -> None:
        assert disk.length == self.length
        for at in [4096, *self.boundaries(disk), disk.length]:
            assert disk.read_blocking(max(0, at - 4096), 4096) == bytes(4096)

    def test_every_block_is_mapped_and_none_beyond_the_end(self, disk: Disk) -> None:
        blocks = disk.image.geometry.blocks
        runs = disk.image.load(0, blocks)
        assert [run.first for run in runs] == [0, *(run.first + run.count for run in runs[:-1])]
        assert runs[-1].first + runs[-1].count == blocks
        assert (blocks - 1) * disk.image.geometry.block_size < disk.length <= blocks * disk.image.geometry.block_size

    def test_blocks_written_out_of_order_are_read_in_order(self, disk: Disk) -> None:
        block = disk.image.geometry.block_size
        starts = list(range(0, disk.length, block))[:16]
        random.Random(1).shuffle(starts)
        for start in starts:
            disk.write_blocking(start, pattern(512, start))
        for start in sorted(starts):
            assert disk.read_blocking(start, 512) == pattern(512, start)

    def test_a_range_across_each_boundary_comes_back_at_odd_offsets(self, disk: Disk, reference: Reference) -> None:
        for at in self.boundaries(disk):
            offset = at - 333
            data = pattern(min(1777, disk.length - offset), at)
            disk.write_blocking(offset, data)
            reference.write(offset, data)
            around = (max(0, offset - 700), min(3333, disk.length - max(0, offset - 700)))
            assert disk.read_blocking(*around) == reference.read(*around)

    def test_the_last_byte_can_be_written_and_nothing_behind_it(self, disk: Disk) -> None:
        disk.write_blocking(disk.length - 1, b"z")
        assert disk.read_blocking(disk.length - 3, 3) == b"\0\0z"
        for offset, length in [(disk.length - 1, 2), (disk.length, 1), (disk.length + 512, 512), (1 << 62, 512)]:
            assert refused(disk.read_blocking, offset, length) == errno.EINVAL
            assert refused(disk.write_blocking, offset, bytes(length)) == errno.EINVAL
            assert refused(disk.write_zeroes_blocking, offset, length, deallocate=True) == errno.EINVAL
        assert disk.read_blocking(disk.length - 1, 1) == b"z"

    @pytest.mark.parametrize("deallocate", [False, True])
    def test_a_zeroed_range_reads_as_zeros_and_its_neighbours_stay(self, disk: Disk, deallocate: bool) -> None:
        for at in self.boundaries(disk):
            start = max(0, at - 70000)
            data = pattern(min(140000, disk.length - start), at)
            disk.write_blocking(start, data)
            disk.write_zeroes_blocking(start + 100, len(data) - 300, deallocate=deallocate)
            expected = data[:100] + bytes(len(data) - 300) + data[-200:]
            assert disk.read_blocking(start, len(data)) == expected

    def test_a_discarded_range_gives_its_space_back(self, disk: Disk) -> None:
        assert disk.deallocates == self.deallocates
        data = pattern(1 << 20, 5)
        disk.write_blocking(1 << 20, data)
        disk.flush_blocking()
        full = _allocated(disk)
        disk.write_zeroes_blocking(1 << 20, 1 << 20, deallocate=True)
        disk.flush_blocking()
        assert not self.deallocates or full - _allocated(disk) >= (1 << 20) - self.kept

    @pytest.mark.parametrize("seed", [1, 2, 3])
    def test_random_changes_leave_what_the_model_says(self, disk: Disk, reference: Reference, seed: int) -> None:
        touched = change_randomly(disk, reference, seed, self.boundaries(disk))
        for offset, length in touched:
            assert disk.read_blocking(offset, length) == reference.read(offset, length)

    def test_growing_keeps_the_old_bytes_and_adds_zeros(self, disk: Disk) -> None:
        data = pattern(4096, 7)
        disk.write_blocking(self.length - 4096, data)
        longer = self.length + max(8192, disk.image.geometry.block_size) + 5 * self.unit
        disk.resize(longer)
        assert disk.length == longer
        assert disk.read_blocking(self.length - 4096, 8192) == data + bytes(4096)
        disk.write_blocking(longer - 512, data[:512])
        assert disk.read_blocking(longer - 1024, 1024) == bytes(512) + data[:512]
        assert refused(disk.read_blocking, longer, 1) == errno.EINVAL

    def test_shrinking_cuts_off_and_growing_again_does_not_bring_it_back(self, disk: Disk) -> None:
        shorter = max(512, disk.image.geometry.block_size // 2) + self.unit
        data = pattern(1 << 16, 8)
        disk.write_blocking(shorter - 512, data)
        disk.resize(shorter)
        assert disk.length == shorter
        assert disk.read_blocking(shorter - 512, 512) == data[:512]
        assert refused(disk.read_blocking, shorter, 1) == errno.EINVAL
        disk.resize(self.length)
        assert disk.read_blocking(shorter - 512, 1024) == data[:512] + bytes(512)

    def test_info_tells_format_and_length(self, disk: Disk) -> None:
        info = disk.image.info()
        assert info["format"] == self.format
        assert info["virtual-size"] == self.length

    def test_closing_twice_does_nothing_more(self, path: Path | None) -> None:
        image = self.open(path, self.length)
        image.close()
        image.close()


class FileImageContract(ImageContract):
    """For formats that lie in a file; qemu's tools must know the format under the same name."""

    def create(self, directory: Path, length: int) -> Path:
        path = directory / f"disk.{self.format}"
        create_image(self.format, path, length)
        return path

    def open(self, path: Path | None, length: int) -> Image:  # noqa: ARG002
        assert path is not None
        return open_image(self.format, path)

    @pytest.mark.parametrize("seed", [4, 5])
    def test_what_was_written_is_there_after_reopening(self, path: Path, reference: Reference, seed: int) -> None:
        disk = Disk(self.open(path, self.length))
        touched = change_randomly(disk, reference, seed, self.boundaries(disk))
        disk.close()
        disk = Disk(*open_chain(self.format, path, read_only=True))
        for offset, length in touched:
            assert disk.read_blocking(offset, length) == reference.read(offset, length)
        disk.close()

    @pytest.mark.parametrize("seed", [6, 7])
    def test_qemu_reads_what_was_written(self, path: Path, reference: Reference, seed: int) -> None:
        disk = Disk(self.open(path, self.length))
        change_randomly(disk, reference, seed, self.boundaries(disk))
        disk.close()
        assert_equal_for_qemu(self.format, path, reference)

    def test_what_qemu_wrote_is_read_and_back_again(self, path: Path, reference: Reference) -> None:
        qemu_io(self.format, path, "write -P 0xab 1000k 300k", "write -P 0xcd 7 1001", "write -z 1100k 8k")
        for offset, length, byte in [(1000 << 10, 300 << 10, 0xAB), (7, 1001, 0xCD), (1100 << 10, 8 << 10, 0)]:
            reference.write(offset, bytes([byte]) * length)
        disk = Disk(self.open(path, self.length))
        assert disk.read_blocking(0, 2 << 20) == reference.read(0, 2 << 20)
        disk.write_blocking(1023 << 10, b"x" * 5000)
        disk.close()
        reference.write(1023 << 10, b"x" * 5000)
        assert_equal_for_qemu(self.format, path, reference)

    def test_an_image_resized_both_ways_is_the_same_for_qemu(self, path: Path, reference: Reference) -> None:
        disk = Disk(self.open(path, self.length))
        for length in (self.length + (3 << 20), 1 << 20, (5 << 20) + self.unit):
            change_randomly(disk, reference, length, [4096, disk.length // 1024 * 512])
            disk.resize(length)
            reference.resize(length)
        disk.close()
        assert_equal_for_qemu(self.format, path, reference)

    def test_a_read_only_image_refuses_every_change_and_stays_as_it_is(self, path: Path, reference: Reference) -> None:
        disk = Disk(self.open(path, self.length))
        change_randomly(disk, reference, 8, self.boundaries(disk))
        disk.close()
        disk = Disk(*open_chain(self.format, path, read_only=True))
        assert disk.read_only
        assert refused(disk.write_blocking, 0, b"x") == errno.EROFS
        assert refused(disk.write_zeroes_blocking, 0, 512, deallocate=True) == errno.EROFS
        disk.flush_blocking()
        disk.close()
        assert_equal_for_qemu(self.format, path, reference)


def refused(call: Callable[..., object], *arguments: object, **options: object) -> int | None:
    """The errno with which `call` fails."""
    with pytest.raises(OSError, match=r"^\[Errno") as caught:
        call(*arguments, **options)
    return caught.value.errno


def _allocated(disk: Disk) -> int:
    """Bytes of space of all files of the image."""
    descriptors = [layer.descriptor for layer in disk.image.layers]
    return sum(os.fstat(descriptor).st_blocks * 512 for descriptor in descriptors if descriptor >= 0)


def change_randomly(disk: Disk, reference: Reference, seed: int, at: list[int]) -> list[tuple[int, int]]:
    """Does the same 150 random changes, most of them near `at`, to both; returns the ranges that were touched."""
    draw = random.Random(seed)
    touched: list[tuple[int, int]] = []
    for _ in range(150):
        offset = max(0, draw.choice([*at, disk.length]) + draw.randint(-100_000, 20_000))
        offset = min(offset, disk.length - 1) & draw.choice([~0, ~511, ~4095])
        length = min(draw.choice([1, 512, 777, 4096, 65536, draw.randint(1, 150_000)]), disk.length - offset)
        touched.append((offset, length))
        if draw.random() < 0.6:
            data = draw.randbytes(length)
            disk.write_blocking(offset, data)
            reference.write(offset, data)
        else:
            disk.write_zeroes_blocking(offset, length, deallocate=draw.random() < 0.5)
            reference.zero(offset, length)
        if draw.random() < 0.05:
            disk.flush_blocking()
    return touched


@dataclass(frozen=True)
class Parent:
    """What an overlay may lie on: a format with its options, and a length."""

    format: str
    length: int
    options: tuple[tuple[str, object], ...] = ()

    def make(self, path: Path, draw: random.Random) -> bytes:
        """The image, half of it random bytes; what it holds."""
        create_image(self.format, path, self.length, options=dict(self.options))
        model = bytearray(self.length)
        disk = Disk(open_image(self.format, path))
        for _ in range(12):
            offset = draw.randrange(self.length)
            data = draw.randbytes(min(draw.choice([1, 512, 5000, 70_000]), self.length - offset))
            disk.write_blocking(offset, data)
            model[offset : offset + len(data)] = data
        disk.close()
        return bytes(model)


OVERLAY_LENGTH = MIB + 3 * 512
PARENTS = [
    Parent("raw", OVERLAY_LENGTH),
    Parent("raw", 300 * 1024 + 512),  # ends inside a block of any size but 512
    Parent("raw", 2 * MIB),  # longer than what lies on it
    Parent("qcow2", OVERLAY_LENGTH, (("cluster_size", 512),)),
    Parent("qcow2", 700 * 1024 + 1536, (("cluster_size", "2M"),)),
    Parent("qcow2", 512, ()),
    Parent("qcow2", 2 * MIB, (("extended_l2", True),)),
]


class OverlayContract:
    """For formats that can lie on a parent: over any format, of any length. `variants`: options of the overlay."""

    format: ClassVar[str]
    variants: ClassVar[list[dict[str, object]]] = [{}]

    def test_an_overlay_reads_and_writes_as_its_model_and_leaves_its_parents_alone(self, tmp_path: Path) -> None:
        for number, variant in enumerate(self.variants):
            for place, parent in enumerate(PARENTS):
                if (number + place) % 3:  # a third of all pairs has every variant and every parent
                    continue
                folder = tmp_path / f"{number}-{place}"
                folder.mkdir()
                self._try(folder, variant, parent, random.Random(number * 100 + place))

    def _try(self, folder: Path, variant: dict[str, object], parent: Parent, draw: random.Random) -> None:
        shown = parent.make(folder / "base", draw)[:OVERLAY_LENGTH].ljust(OVERLAY_LENGTH, b"\0")
        before = (folder / "base").read_bytes()
        options = {**variant, "backing_file": "base", "backing_fmt": parent.format}
        create_image(self.format, folder / "top", OVERLAY_LENGTH, options=options)
        reference = Reference(folder / "model", OVERLAY_LENGTH)
        reference.write(0, shown)
        disk = Disk(*open_chain(self.format, folder / "top"))
        try:
            self._change(disk, reference, draw, [65536, parent.length, OVERLAY_LENGTH // 2])
            assert disk.read_blocking(0, OVERLAY_LENGTH) == reference.read(0, OVERLAY_LENGTH)
        finally:
            disk.close()
        assert (folder / "base").read_bytes() == before
        assert_equal_for_qemu(self.format, folder / "top", reference)
        qemu_io(self.format, folder / "top", "write -P 9 333k 5k")
        reference.write(333 << 10, b"\x09" * 5120)
        disk = Disk(*open_chain(self.format, folder / "top", read_only=True))
        assert disk.read_blocking(0, OVERLAY_LENGTH) == reference.read(0, OVERLAY_LENGTH)
        disk.close()

    def _change(self, disk: Disk, reference: Reference, draw: random.Random, at: list[int]) -> None:
        """Out of order, across every boundary, the last byte among it."""
        disk.write_blocking(OVERLAY_LENGTH - 1, b"z")
        reference.write(OVERLAY_LENGTH - 1, b"z")
        block = disk.image.geometry.block_size
        starts = [at_block - 333 for at_block in range(block, OVERLAY_LENGTH, max(block, 65536))]
        for start in draw.sample(starts, len(starts)):
            disk.write_blocking(start, pattern(777, start))
            reference.write(start, pattern(777, start))
        change_randomly(disk, reference, draw.randrange(1 << 30), [place for place in at if place < OVERLAY_LENGTH])
