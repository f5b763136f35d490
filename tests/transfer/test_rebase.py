from pathlib import Path

import pytest

from formats.image import Reference
from formats.registry import open_chain, open_image
from tests.transfer.chains import CLUSTER, assert_clean, assert_same, chain_of, create, qemu, scribble, told
from vstore.transfer.rebase import rebase, rename_parent

LENGTHS = (40 * CLUSTER, 30 * CLUSTER + 1536, 50 * CLUSTER)


def flattened(path: Path) -> Path:
    """What its disk is now, as raw."""
    copy = path.with_suffix(".raw")
    qemu("convert", "-f", "qcow2", "-O", "raw", path, copy)
    return copy


def rebase_to(top: Path, parent: Path | None) -> None:
    parents = [] if parent is None else open_chain("qcow2", parent, read_only=True)
    rebase(open_chain("qcow2", top), parents, None if parent is None else Reference(parent.name, "qcow2"))
    for image in parents:
        image.close()


@pytest.mark.parametrize("options", ["", "extended_l2=on", "compat=0.10"])
@pytest.mark.parametrize("to", ["nothing", "its grandparent", "a longer stranger", "a shorter stranger"])
def test_the_disk_stays_what_it_was(tmp_path: Path, to: str, options: str) -> None:
    bottom, _, top = chain_of(tmp_path, LENGTHS, ("", "", options))
    before = flattened(top)
    parent = {"nothing": None, "its grandparent": bottom}.get(to, tmp_path / "stranger.qcow2")
    if to.endswith("stranger"):
        length = (60 if "longer" in to else 10) * CLUSTER
        scribble(create(tmp_path / "stranger.qcow2", "qcow2", length), "qcow2", length, 77)
    rebase_to(top, parent)
    assert_same(top, "qcow2", before, "raw")
    assert_clean(top)
    info = told("info", "-f", "qcow2", top)
    assert info.get("backing-filename") == (None if parent is None else parent.name)
    assert info.get("backing-filename-format") == (None if parent is None else "qcow2")


def test_what_is_the_same_in_both_parents_is_not_copied(tmp_path: Path) -> None:
    bottom, _, top = chain_of(tmp_path, LENGTHS)
    twin = tmp_path / "twin.qcow2"
    rebase_to(top, bottom)
    size = top.stat().st_blocks
    qemu("convert", "-f", "qcow2", "-O", "qcow2", bottom, twin)
    rebase_to(top, twin)
    assert top.stat().st_blocks == size


def test_a_parent_is_renamed_without_a_look_at_it(tmp_path: Path) -> None:
    _, middle, top = chain_of(tmp_path, LENGTHS)
    moved = middle.rename(tmp_path / "moved.qcow2")
    with open_image("qcow2", top) as overlay:
        rename_parent(overlay, Reference("moved.qcow2", "qcow2"))
    before = flattened(moved)
    rebase_to(top, None)
    assert before.exists()
    assert_clean(top)
