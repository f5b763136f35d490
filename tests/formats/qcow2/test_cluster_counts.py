"""Counts of clusters by the million: the same as one by one, and in a check of an image."""

import random
from pathlib import Path

import pytest

from formats.host_file import HostFile
from formats.qcow2 import check as checking
from formats.qcow2 import cluster_counts
from formats.qcow2.cluster_counts import Counts
from tests.formats.qcow2.oracle import qemu_create

SIZE = 4096
PLACES = {"rows": 1, "loose": 1024, "far apart": 1 << 20}


@pytest.mark.parametrize("apart", PLACES.values(), ids=PLACES)
def test_many_at_once_are_counted_as_they_are_one_by_one(apart: int) -> None:
    draw = random.Random(apart)
    clusters = [draw.randrange(1 << 16) * apart for _ in range(cluster_counts._LONG)]
    many, few = Counts(), Counts()
    for counts in (many, few):
        counts.add(5 * apart, 3)
    many.add_each(clusters)
    for at in range(0, len(clusters), 1000):
        few.add_each(clusters[at : at + 1000])
    asked = range(0, (1 << 16) * apart, apart)
    assert [many.get(cluster) for cluster in asked] == [few.get(cluster) for cluster in asked]
    assert many.end == few.end
    assert sorted(many.not_once(asked)) == [cluster for cluster in asked if few.get(cluster) != 1]


def word(value: int) -> bytes:
    return value.to_bytes(8, "big")


def test_many_refcount_blocks_are_judged_as_few_are(tmp_path: Path) -> None:
    """A long table, whose words are right, doubled, behind the end, askew, with reserved bits, or on the header."""
    path, entries = tmp_path / "disk.qcow2", 1 << 17
    qemu_create(path, 2 << 20, cluster_size=SIZE)
    blocks = [n * SIZE + (1 << 30) for n in range(entries)]
    blocks[0], blocks[7], blocks[11], blocks[12] = 2 * SIZE, blocks[8], 1 << 50, 0
    blocks[13], blocks[15], blocks[17] = blocks[13] + 512, blocks[15] | 1, 3 * SIZE
    with path.open("r+b") as file:
        file.seek(1 << 29)
        file.write(b"".join(map(word, blocks)))
        file.truncate(blocks[-1] + SIZE)
        file.seek(48)
        file.write(word(1 << 29) + (entries * 8 // SIZE).to_bytes(4, "big"))
    told = []
    for long in (cluster_counts._LONG, entries * 2):  # with numpy, and without
        with pytest.MonkeyPatch.context() as patched, HostFile.from_path(path, read_only=True) as image:
            patched.setattr(checking, "_LONG", long)
            patched.setattr(cluster_counts, "_LONG", long)
            report = checking.check(image)
        told.append((report.corruptions, report.leaks, report.image_end_offset, report.findings[:20]))
    assert told[0] == told[1]
    assert any("which no refcount block can lie at" in sentence for sentence in told[0][3])
