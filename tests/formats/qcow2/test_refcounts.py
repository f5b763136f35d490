"""Refcounts: where a longer refcount table cannot be written, the image goes on with the one it has."""

import errno
from pathlib import Path

import pytest

from formats.host_file import HostFile
from formats.image import SECTOR, BlockState, Change, entry
from formats.qcow2.create import Options, create
from formats.qcow2.image import Qcow2
from tests.formats.qcow2.oracle import assert_clean

TABLE = 1024  # bytes of the first longer one


def _write(image: Qcow2, first: int, count: int) -> None:
    changes: list[Change] = []
    for extent in image.reserve(count):
        for offset in range(extent.offset, extent.offset + extent.blocks * SECTOR, SECTOR):
            block = first + len(changes)
            image.file.pwrite(offset, block.to_bytes(8, "big").ljust(SECTOR, b"x"))
            changes.append(Change(block, entry(BlockState.DATA, 0, offset)))
    image.commit(changes)


@pytest.mark.parametrize("refused", ["the table", "the header"])
def test_a_table_that_could_not_grow_grows_later(tmp_path: Path, refused: str) -> None:
    with HostFile.create(tmp_path / "disk") as file:
        create(file, 4 << 20, options=Options(cluster_size=512, refcount_bits=64))
    image = Qcow2(HostFile.from_path(tmp_path / "disk"))
    failures, write = 0, image.file.pwrite

    def full(offset: int, data: bytes) -> None:
        nonlocal failures
        at_header = offset == 0
        if failures < 2 and (at_header if refused == "the header" else len(data) == TABLE):
            failures += 1
            raise OSError(errno.ENOSPC, "injected")
        write(offset, data)

    image.file.pwrite = full  # type: ignore[method-assign]
    done = refusals = 0
    while done < 6000:
        try:
            _write(image, done, 200)
            done += 200
        except OSError:
            refusals += 1
    image.close()
    assert failures == refusals == 2
    assert_clean(tmp_path / "disk")
    with Qcow2(HostFile.from_path(tmp_path / "disk", read_only=True)) as again:
        for run in again.load(0, done):
            for n in range(run.count):
                place = (run.entry & (1 << 48) - 1) * SECTOR + n * SECTOR
                assert again.file.pread(place, 8) == (run.first + n).to_bytes(8, "big")


@pytest.mark.parametrize("bits", [1, 16, 64])
def test_the_last_cluster_in_use_is_found_across_pages_and_missing_blocks(tmp_path: Path, bits: int) -> None:
    with HostFile.create(tmp_path / "disk") as file:
        create(file, 64 << 20, options=Options(cluster_size=512, refcount_bits=bits))
    with Qcow2(HostFile.from_path(tmp_path / "disk")) as image:
        assert image.writer is not None
        counts, ends = image.writer.refcounts, [20_000]
        image.writer.allocator.take(3)
        while (end := counts.used_end(0, ends[-1])) > 0:
            assert counts.get(end - 1)
            assert not any(counts.get(cluster) for cluster in range(end, ends[-1]))
            ends.append(end - 1)
        assert len(ends) > 3
        assert counts.used_end(7, 7) == 7
        assert counts.used_end(15_000, 20_000) == 15_000
