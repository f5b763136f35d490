"""The doors of formats: open_image, create_image, probe."""

import json
import os
from pathlib import Path

import pytest

from formats.errors import ImageError, ImageExists, InvalidArgument, InvalidImage, UnsupportedFeature
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
    with pytest.raises(InvalidArgument, match="'vhs' is not an image format; there are raw, qcow2, luks, memory, null"):
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


def test_a_qcow2_image_is_made_with_the_options_of_qemu_img(tmp_path: Path) -> None:
    options = {"cluster_size": "128k", "extended_l2": "on", "compression_type": "zstd", "lazy_refcounts": True}
    create_image("qcow2", tmp_path / "disk", 1 << 20, options=options)
    told = json.loads(run("qemu-img", "info", "--output=json", tmp_path / "disk").stdout)
    assert (told["format"], told["virtual-size"], told["cluster-size"]) == ("qcow2", 1 << 20, 131072)
    data = told["format-specific"]["data"]
    assert (data["extended-l2"], data["compression-type"], data["lazy-refcounts"]) == (True, "zstd", True)
    create_image("qcow2", tmp_path / "old", 1 << 20, options={"compat": "0.10"})
    old = json.loads(run("qemu-img", "info", "--output=json", tmp_path / "old").stdout)
    assert old["format-specific"]["data"]["compat"] == "0.10"


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"clutser_size": 1}, InvalidArgument, "qcow2 images have no option 'clutser_size'; there are compat, cluster"),
        ({"cluster_size": "3k"}, InvalidArgument, "cluster_size 3072; it must be a power of two"),
        ({"compat": "1.0"}, InvalidArgument, "compat is '1.0'; it must be one of 0.10, 1.1"),
        ({"backing_file": "base"}, InvalidArgument, "backing_file needs backing_fmt"),
        ({"backing_fmt": "raw"}, InvalidArgument, "backing_file, which is missing"),
        ({"backing_file": "nbd:x", "backing_fmt": "raw"}, UnsupportedFeature, "the protocol 'nbd'"),
        ({"data_file": "there"}, ImageExists, "there"),
        ({"data_file": "new", "cluster_size": 1}, InvalidArgument, "cluster_size 1"),
        ({"data_file_raw": "on"}, InvalidArgument, "data_file_raw without data_file"),
    ],
)
def test_an_image_that_cannot_be_made_leaves_nothing_behind(
    tmp_path: Path, options: dict[str, object], error: type[ImageError], message: str
) -> None:
    (tmp_path / "there").write_bytes(b"mine")
    with pytest.raises(error, match=message):
        create_image("qcow2", tmp_path / "disk", 1 << 20, options=options)
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
    assert (tmp_path / "there").read_bytes() == b"mine"


def test_a_data_file_of_a_pool_has_a_plain_name(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path, os.O_RDONLY)
    with pytest.raises(InvalidArgument, match="cannot name an image"):
        create_image("qcow2", "disk", 1 << 20, directory=descriptor, options={"data_file": "../out"})
    create_image("qcow2", "disk", 1 << 20, directory=descriptor, options={"data_file": "disk.data"})
    os.close(descriptor)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "disk.data"]
    assert (tmp_path / "disk.data").stat().st_size == 1 << 20


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
