"""The end of the file after a clean close: beside what QEMU leaves for the same writes, and by qemu-img check."""

import os
import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from formats.registry import create_image, open_chain
from tests.formats.qcow2.oracle import assert_clean
from tests.formats.reference import run
from vstore.disk import Disk

MIB = 1 << 20
LENGTH = 1 << 30
KINDS: dict[str, dict[str, object]] = {
    "plain": {"cluster_size": 65536},
    "short clusters": {"cluster_size": 4096},
    "extended": {"cluster_size": 131072, "extended_l2": True},
    "lazy": {"cluster_size": 65536, "lazy_refcounts": True},
}
WRITES = {
    "one": [(0, 4096)],
    "scattered": [(place * 37 * MIB, 65536) for place in range(20)],
    "in a row": [(0, MIB), (MIB, MIB), (700 * MIB, MIB)],
}


def written(path: Path, writes: Sequence[tuple[int, int]]) -> None:
    disk = Disk(*open_chain("qcow2", path))
    for at, count in writes:
        disk.write_blocking(at, random.Random(at).randbytes(count))
        disk.flush_blocking()
    disk.close()


@pytest.mark.parametrize("writes", WRITES.values(), ids=WRITES)
@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_the_file_ends_about_where_it_would_after_qemu(
    tmp_path: Path, options: dict[str, object], writes: Sequence[tuple[int, int]]
) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for path in (ours, theirs):
        create_image("qcow2", path, LENGTH, options=options)
    written(ours, writes)
    for at, count in writes:
        assert run("qemu-io", "-f", "qcow2", "-c", f"write {at} {count}", theirs).returncode == 0
    assert_clean(ours)
    assert os.stat(ours).st_size <= os.stat(theirs).st_size + 16 * int(str(options["cluster_size"]))


def test_what_was_moved_reads_as_it_was(tmp_path: Path) -> None:
    path, model = tmp_path / "disk", bytearray(64 * MIB)
    create_image("qcow2", path, len(model), options={"cluster_size": 4096})
    for session in range(3):
        disk, draw = Disk(*open_chain("qcow2", path)), random.Random(session)
        for _ in range(20):
            at = draw.randrange(0, len(model) - 9000)
            data = draw.randbytes(9000)
            disk.write_blocking(at, data)
            model[at : at + len(data)] = data
        if session == 1:
            disk.snapshot("kept")
        disk.close()
        assert_clean(path)
        assert session or os.stat(path).st_size < 2 * MIB  # what a snapshot shares stays where it is
    (tmp_path / "model").write_bytes(model)
    compared = run("qemu-img", "compare", "-f", "qcow2", "-F", "raw", path, tmp_path / "model")
    assert compared.returncode == 0, compared.stdout


@pytest.mark.parametrize("preallocation", ["metadata", "falloc", "full"])
def test_a_preallocated_file_is_never_made_shorter(tmp_path: Path, preallocation: str) -> None:
    path = tmp_path / "disk"
    create_image("qcow2", path, 16 * MIB, preallocation=preallocation)
    before = os.stat(path).st_size
    written(path, [(0, MIB), (5 * MIB, 512)])
    assert os.stat(path).st_size >= before
    assert_clean(path)
