"""The doors of formats: open_image, create_image, probe."""

import os
from pathlib import Path

import pytest

from formats.errors import InvalidArgument, InvalidImage
from formats.host_file import HostFile
from formats.image import Image
from formats.registry import FORMATS, create_image, open_image, probe
from tests.formats.reference import run


def test_a_row_knows_a_format_by_its_own_name_and_opens_it_in_one_way() -> None:
    for name, row in FORMATS.items():
        assert row.name == name
        assert row.description
        assert (row.open is None) != (row.make is None)
        assert row.create is None or row.open is not None


def test_an_unknown_format_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InvalidArgument, match="'vhs' is not an image format; there are raw, memory, null"):
        open_image("vhs", "disk")
    with pytest.raises(InvalidArgument, match="'vhs' is not an image format"):
        create_image("vhs", "disk", 512)


def test_a_format_in_a_file_needs_its_path_and_one_without_needs_a_length(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="raw images lie in a file"):
        open_image("raw")
    with pytest.raises(InvalidArgument, match="raw images lie in a file"):
        open_image("raw", tmp_path / "disk", length=512)
    for name in ("memory", "null"):
        with pytest.raises(InvalidArgument, match=f"{name} images have no file: give a length"):
            open_image(name, tmp_path / "disk", length=512)
        with pytest.raises(InvalidArgument, match=f"{name} images have no file: give a length"):
            open_image(name)
        with pytest.raises(InvalidArgument, match=f"{name} images have no file to create"):
            create_image(name, tmp_path / "disk", 512)


def test_an_opened_file_is_the_images_to_close_and_closed_when_it_is_no_image(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(bytes(4096))
    file = HostFile.from_path(tmp_path / "disk")
    open_image("raw", file).close()
    assert file.descriptor == -1
    (tmp_path / "disk").write_bytes(b"short")
    file = HostFile.from_path(tmp_path / "disk")
    with pytest.raises(InvalidImage):
        open_image("raw", file)
    assert file.descriptor == -1


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["-f", "raw"], "raw"),
        (["-f", "qcow2"], "qcow2"),
        (["-f", "vmdk"], "vmdk"),
        (["-f", "vmdk", "-o", "subformat=monolithicFlat"], "vmdk"),
        (["-f", "vdi"], "vdi"),
        (["-f", "vhdx"], "vhdx"),
        (["-f", "vpc"], "vhd"),
        (["-f", "vpc", "-o", "subformat=fixed"], "vhd"),
        (["-f", "parallels"], "parallels"),
        (["-f", "qed"], "qed"),
        (["-f", "luks", "--object", "secret,id=s,data=x", "-o", "key-secret=s,iter-time=10"], "luks"),
    ],
)
def test_probe_tells_what_qemu_img_made(tmp_path: Path, options: list[str], told: str) -> None:
    made = run("qemu-img", "create", *options, tmp_path / "disk", "8M")
    assert made.returncode == 0, made.stderr
    with HostFile.from_path(tmp_path / "disk", read_only=True) as file:
        assert probe(file) == told


def test_probe_tells_raw_of_a_file_shorter_than_any_signature(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(b"Q")
    with HostFile.from_path(tmp_path / "disk") as file:
        assert probe(file) == "raw"


def test_what_a_guest_writes_into_a_raw_disk_never_changes_how_it_is_opened(tmp_path: Path) -> None:
    assert run("qemu-img", "create", "-f", "qcow2", tmp_path / "disk", "1G").returncode == 0
    with open_image("raw", tmp_path / "disk") as image:
        assert isinstance(image, Image)
        assert image.format == "raw"
        assert image.geometry.length == os.stat(tmp_path / "disk").st_size
