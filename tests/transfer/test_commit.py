from pathlib import Path

import pytest

from formats.errors import InvalidArgument
from formats.registry import open_chain, open_image
from tests.transfer.chains import CLUSTER, assert_clean, assert_same, chain_of, create, qemu, write
from tests.transfer.test_rebase import flattened
from vstore.transfer.commit import commit


def commit_top(top: Path, parent: Path, *, keep: bool = False) -> None:
    overlay = open_image("qcow2", top)
    commit([overlay, *open_chain("qcow2", parent)], keep=keep)


@pytest.mark.parametrize("options", ["", "extended_l2=on"])
@pytest.mark.parametrize("parent_clusters", [30, 60])
def test_the_parent_becomes_what_the_overlay_was(tmp_path: Path, parent_clusters: int, options: str) -> None:
    lengths = (40 * CLUSTER, parent_clusters * CLUSTER + 512, 50 * CLUSTER)
    _, parent, top = chain_of(tmp_path, lengths, ("", options, options))
    before = flattened(top)
    theirs = tmp_path / "theirs.raw"
    commit_top(top, parent)
    qemu("convert", "-f", "qcow2", "-O", "raw", parent, theirs)
    with before.open("rb") as one, theirs.open("rb") as two:
        assert one.read() == two.read(50 * CLUSTER)
    assert_same(top, "qcow2", before, "raw")
    assert_clean(top)
    assert_clean(parent)


def test_the_overlay_is_empty_afterwards_or_keeps_what_it_has(tmp_path: Path) -> None:
    _, parent, top = chain_of(tmp_path, (40 * CLUSTER,) * 3)
    commit_top(top, parent, keep=True)
    with open_image("qcow2", top, read_only=True) as overlay:
        assert len(overlay.load(0, 40)) > 1
    commit_top(top, parent)
    with open_image("qcow2", top, read_only=True) as overlay:
        assert len(overlay.load(0, 40)) == 1


def test_an_overlay_is_committed_into_a_raw_parent(tmp_path: Path) -> None:
    base = create(tmp_path / "base.raw", "raw", 20 * CLUSTER)
    write(base, "raw", "write -P 7 0 1M")
    top = create(tmp_path / "top.qcow2", "qcow2", 20 * CLUSTER, (base, "raw"))
    write(top, "qcow2", "write -P 1 100k 3k", "write -z 512k 64k")
    before = tmp_path / "before.raw"
    qemu("convert", "-f", "qcow2", "-O", "raw", top, before)
    overlay = open_image("qcow2", top)
    commit([overlay, *open_chain("raw", base)])
    assert_same(base, "raw", before, "raw")


def test_an_image_without_a_parent_is_refused(tmp_path: Path) -> None:
    path = create(tmp_path / "alone.qcow2", "qcow2", CLUSTER)
    with pytest.raises(InvalidArgument, match="no parent"):
        commit([open_image("qcow2", path)])
