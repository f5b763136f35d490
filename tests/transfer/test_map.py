from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from formats.backing import MOST_IMAGES
from formats.image import BlockState, Geometry, Image, Layer, Run, entry
from formats.memory import Memory
from formats.registry import open_chain
from tests.transfer.chains import CLUSTER, chain_of, create, told, write
from vstore.transfer.map import map_rows

KEYS = ("start", "length", "depth", "present", "zero", "data", "offset")


def mapped(path: Path, format: str) -> list[dict[str, object]]:
    """Our rows, with the keys that qemu-img 7.2 has."""
    images = open_chain(format, path, read_only=True)
    rows = [row.as_json() for row in map_rows(images)]
    for image in images:
        image.close()
    return [{key: row[key] for key in KEYS if key in row} for row in rows]


def plain(rows: Any) -> list[dict[str, Any]]:
    """Without the places of zeros, which only qemu-img tells, and joined where that alone had set them apart."""
    kept: list[dict[str, Any]] = []
    for row in rows:
        bare = row if row["data"] else {key: value for key, value in row.items() if key != "offset"}
        if kept and not bare["data"] and {**kept[-1], "start": 0, "length": 0} == {**bare, "start": 0, "length": 0}:
            kept[-1]["length"] += bare["length"]
        else:
            kept.append(dict(bare))
    return kept


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("options", ["", "extended_l2=on", "cluster_size=512", "compat=0.10"])
def test_a_chain_is_told_row_by_row_as_qemu_img_does(tmp_path: Path, options: str, seed: int) -> None:
    lengths = (40 * CLUSTER, 30 * CLUSTER + 1536, 50 * CLUSTER)
    path = chain_of(tmp_path, lengths, (options, "", options), seed=seed)[-1]
    assert plain(mapped(path, "qcow2")) == plain(told("map", "-f", "qcow2", path))


def test_a_raw_image_is_told_with_its_holes(tmp_path: Path) -> None:
    path = create(tmp_path / "disk.raw", "raw", 5 << 20)
    write(path, "raw", "write -P 1 64k 64k", "write -P 2 3M 1M")
    assert mapped(path, "raw") == told("map", "-f", "raw", path)


def test_an_overlay_on_raw_shows_where_the_raw_image_ends(tmp_path: Path) -> None:
    base = create(tmp_path / "base.raw", "raw", (1 << 20) + 512)
    write(base, "raw", "write -P 1 0 64k")
    path = create(tmp_path / "top.qcow2", "qcow2", 4 << 20, (base, "raw"))
    write(path, "qcow2", "write -P 3 960k 64k", "write -z 2M 64k")
    assert mapped(path, "qcow2") == told("map", "-f", "qcow2", path)


def test_compressed_blocks_are_data_without_a_place(tmp_path: Path) -> None:
    base = create(tmp_path / "base.qcow2", "qcow2", 1 << 20)
    write(base, "qcow2", "write -c -P 1 0 64k", "write -P 2 64k 64k")
    rows = mapped(base, "qcow2")
    assert rows == told("map", "-f", "qcow2", base)
    assert "offset" not in rows[0]


def test_a_part_of_the_disk_can_be_asked_for(tmp_path: Path) -> None:
    path = chain_of(tmp_path, (20 * CLUSTER, 20 * CLUSTER))[-1]
    start, length = 3 * CLUSTER + 512, 9 * CLUSTER
    images = open_chain("qcow2", path, read_only=True)
    rows = [row.as_json() for row in map_rows(images, start, length)]
    ours = [{key: row[key] for key in KEYS if key in row} for row in rows]
    assert ours == told("map", "-f", "qcow2", "-s", start, "-l", length, path)
    for image in images:
        image.close()


class Empty(Image):
    """An overlay that has nothing."""

    format = "empty"
    layers: Sequence[Layer] = ()

    def load(self, first: int, count: int) -> Sequence[Run]:
        return [Run(first, count, entry(BlockState.HOLE))]

    def info(self) -> dict[str, object]:
        return {}


def test_a_chain_of_the_most_images_is_told_as_any_other() -> None:
    length = 1 << 20
    overlays = [Empty(Geometry(length, CLUSTER)) for _ in range(MOST_IMAGES - 1)]
    with Memory(length) as base:
        (row,) = map_rows([*overlays, base])
    assert (row.depth, row.length, row.present) == (MOST_IMAGES - 1, length, True)
