"""`vstore file bitmap`: what it does to an image is what qemu-img sees, and what it cannot do it says in one line."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from api.cli import main
from tests.formats.qcow2.oracle import assert_clean, open_qcow2, qemu_create
from tests.formats.reference import qemu_io, run

LENGTH = 8 << 20
Bitmap = Callable[..., tuple[int, str]]


@pytest.fixture
def bitmap(capsys: pytest.CaptureFixture[str]) -> Bitmap:
    """Runs the verb: exit code, and all that it printed."""

    def call(verb: str, path: Path, *arguments: str) -> tuple[int, str]:
        code = main(["file", "bitmap", verb, str(path), *arguments, "--format", "qcow2"])
        told = capsys.readouterr()
        return code, told.out + told.err

    return call


def told(path: Path) -> list[dict[str, object]]:
    data = json.loads(run("qemu-img", "info", "--output=json", path).stdout)["format-specific"]["data"]
    return list(data.get("bitmaps", []))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    qemu_create(tmp_path / "disk", LENGTH)
    return tmp_path / "disk"


def test_bitmaps_are_added_switched_listed_and_removed(path: Path, bitmap: Bitmap) -> None:
    assert bitmap("add", path, "one") == (0, "")
    assert bitmap("add", path, "two", "--granularity", "4K", "--disabled") == (0, "")
    _, listed = bitmap("list", path, "--output", "json")
    assert json.loads(listed) == told(path)
    assert [(row["name"], row["flags"]) for row in told(path)] == [("one", ["auto"]), ("two", [])]
    assert bitmap("disable", path, "one") == bitmap("enable", path, "two") == (0, "")
    assert [row["flags"] for row in told(path)] == [[], ["auto"]]
    assert "two" in bitmap("list", path)[1]
    assert bitmap("remove", path, "one") == bitmap("remove", path, "two") == (0, "")
    assert told(path) == []
    assert_clean(path)


def test_bitmaps_are_cleared_and_merged_also_from_another_image(path: Path, tmp_path: Path, bitmap: Bitmap) -> None:
    for name in ("changes", "kept"):
        assert bitmap("add", path, name) == (0, "")
    qemu_io("qcow2", path, "write 1M 1")
    other = tmp_path / "other"
    qemu_create(other, LENGTH)
    assert bitmap("add", other, "copy", "--disabled") == (0, "")
    source = ("--source-file", str(path), "--source-format", "qcow2")
    assert bitmap("merge", other, "copy", "changes", *source) == (0, "")
    assert bitmap("clear", path, "kept") == (0, "")
    found = {name: dirty(where, name) for where, name in ((path, "changes"), (path, "kept"), (other, "copy"))}
    assert found == {"changes": [(1 << 20, 65536)], "kept": [], "copy": [(1 << 20, 65536)]}


def dirty(path: Path, name: str) -> list[tuple[int, int]]:
    with open_qcow2(path, read_only=True) as image:
        return list(image.bitmaps.find(name).dirty())


def test_what_cannot_be_done_is_said_in_one_line(path: Path, bitmap: Bitmap) -> None:
    code, said = bitmap("remove", path, "none")
    assert code != 0
    assert "bitmap remove: " in said
    assert "has no bitmap 'none'" in said
    assert bitmap("merge", path, "one", "two", "--source-file", "x")[0] == 64
