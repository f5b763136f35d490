"""References between images: what is followed, and every way in which one may lead astray."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from formats.backing import MOST_IMAGES
from formats.errors import CorruptImage, ImageError, ImageInUse, ImageNotFound, InvalidArgument, UnsupportedFeature
from formats.host_file import HostFile
from formats.image import Image, Reference
from formats.registry import create_image, open_chain, open_image
from tests.formats.reference import qemu_io, run
from vstore.disk import Disk

MIB = 1 << 20


@contextmanager
def chain(path: Path, **options: object) -> Iterator[list[Image]]:
    images = open_chain("qcow2", path, **options)  # type: ignore[arg-type]
    try:
        yield images
    finally:
        for image in images:
            image.close()


def overlay(path: Path, backing: str, format: str = "qcow2", length: int = MIB) -> Path:
    create_image("qcow2", path, length, options={"backing_file": backing, "backing_fmt": format})
    return path


def names(images: list[Image]) -> list[str]:
    return [os.path.basename(str(image.info()["filename"])) for image in images]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    (tmp_path / "pool").mkdir()
    create_image("raw", tmp_path / "pool/base.raw", MIB)
    return tmp_path / "pool/base.raw"


def test_a_chain_that_qemu_img_made_is_opened_nearest_parent_first(base: Path) -> None:
    (base.parent / "deep").mkdir()
    for argv in (
        ("-b", "../base.raw", "-F", "raw", base.parent / "deep/mid.qcow2"),
        ("-b", "deep/mid.qcow2", "-F", "qcow2", base.parent / "top.qcow2"),
    ):
        assert run("qemu-img", "create", "-q", "-f", "qcow2", *argv).returncode == 0
    with chain(base.parent / "top.qcow2") as images:
        assert names(images) == ["top.qcow2", "mid.qcow2", "base.raw"]
        assert [image.read_only for image in images] == [False, True, True]
        with pytest.raises(ImageInUse, match="forbids others"):
            open_image("raw", base)
    with chain(base.parent / "top.qcow2", read_only=True) as images:
        assert all(image.read_only for image in images)


def test_a_relative_reference_means_the_same_from_anywhere(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    overlay(base.parent / "top.qcow2", "base.raw", "raw")
    monkeypatch.chdir(base.parent)
    with chain(Path("top.qcow2")) as images:
        assert len(images) == 2
    monkeypatch.chdir("/")
    with chain(base.parent / "top.qcow2") as images:
        assert len(images) == 2


def test_overlays_share_a_parent(base: Path) -> None:
    for name in ("one", "two"):
        overlay(base.parent / name, "base.raw", "raw")
    with chain(base.parent / "one"), chain(base.parent / "two"), pytest.raises(ImageInUse, match="forbids others"):
        open_image("raw", base)


def test_a_parent_outside_is_followed_only_into_a_directory_that_was_allowed(base: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    for name, backing in (("relative", "../pool/base.raw"), ("absolute", str(base))):
        top = overlay(tmp_path / "mine" / name, backing, "raw")
        with pytest.raises(InvalidArgument, match=rf"{backing}.* outside .*{tmp_path}/mine\b.*allow its directory"):
            open_chain("qcow2", top)
        with chain(top, beneath=[tmp_path / "pool"]) as images:
            assert names(images) == [name, "base.raw"]
    with pytest.raises(InvalidArgument, match="'/nowhere' is no directory"):
        open_chain("qcow2", tmp_path / "mine/relative", beneath=["/nowhere"])


def test_a_symbolic_link_is_followed_inside_and_never_out(base: Path, tmp_path: Path) -> None:
    (base.parent / "inside").symlink_to("base.raw")
    (base.parent / "outside").symlink_to("../secret")
    (base.parent / "absolute").symlink_to(tmp_path / "secret")
    (base.parent / "directory").symlink_to("..")
    shutil.copy(base, tmp_path / "secret")
    with chain(overlay(base.parent / "good", "inside", "raw")) as images:
        assert len(images) == 2
    for name in ("outside", "absolute", "directory/secret", "/proc/self/root/etc/hostname"):
        top = overlay(base.parent / f"bad-{name.replace('/', '-')}", name, "raw")
        with pytest.raises(InvalidArgument, match="lies outside"):
            open_chain("qcow2", top)


def test_a_parent_without_a_format_is_refused_with_the_cure(base: Path) -> None:
    top = overlay(base.parent / "top.qcow2", "base.raw", "raw")
    data = bytearray(top.read_bytes())
    at = data.index(bytes.fromhex("e2792aca"))
    data[at : at + 4] = b"none"  # an extension that nobody knows is passed over
    top.write_bytes(data)
    with pytest.raises(
        UnsupportedFeature, match=r"top.qcow2 does not say .*rebase -f FORMAT -u -b base.raw -F PARENT-FORMAT"
    ):
        open_chain("qcow2", top)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("nbd:localhost:10809", UnsupportedFeature, "the protocol 'nbd'"),
        ("json:{}", UnsupportedFeature, "the protocol 'json'"),
        ("a:b", UnsupportedFeature, "written with “./”"),
        ("missing", ImageNotFound, "'missing', the backing file of .*top"),
        (".", ImageError, "directory"),
        ("fifo", ImageError, "FIFO"),
    ],
)
def test_a_parent_that_is_no_file_is_refused(base: Path, name: str, error: type[ImageError], message: str) -> None:
    os.mkfifo(base.parent / "fifo")
    top = overlay(base.parent / "top", "x" * len(name), "raw")
    top.write_bytes(top.read_bytes().replace(b"x" * len(name), name.encode()))
    with pytest.raises(error, match=message):
        open_chain("qcow2", top)
    open_image("qcow2", top).close()  # and what was opened is open and locked no more


def test_a_file_with_a_colon_is_meant_with_a_slash_before_it(base: Path) -> None:
    base.rename(base.parent / "a:b")
    with chain(overlay(base.parent / "top", "./a:b", "raw")) as images:
        assert names(images) == ["top", "a:b"]


def test_a_format_that_is_not_read_is_refused_with_those_that_are(base: Path) -> None:
    with pytest.raises(InvalidArgument, match="backing_fmt is 'memory'; it must be one of raw, qcow2, luks"):
        overlay(base.parent / "top", "base.raw", "memory")
    assert run("qemu-img", "create", "-q", "-f", "vmdk", base.parent / "base.vmdk", "1M").returncode == 0
    top = base.parent / "top"
    argv = ["-f", "qcow2", "-b", "base.vmdk", "-F", "vmdk", top]
    assert run("qemu-img", "create", "-q", *map(str, argv)).returncode == 0
    with pytest.raises(UnsupportedFeature, match=r"'base.vmdk' is 'vmdk'; those that are read are raw, qcow2, luks"):
        open_chain("qcow2", top)


def test_a_chain_that_bites_its_tail_is_refused(base: Path) -> None:
    a, b = (overlay(base.parent / name, other) for name, other in (("a", "b"), ("b", "a")))
    for top in (a, b):
        with pytest.raises(CorruptImage, match=f"comes back to the file .*{top.name}"):
            open_chain("qcow2", top)
    itself = overlay(base.parent / "itself", "hard")
    os.link(itself, base.parent / "hard")
    with pytest.raises(CorruptImage, match="comes back"):
        open_chain("qcow2", itself)


def test_a_chain_has_an_end_and_all_up_to_it_is_opened(tmp_path: Path) -> None:
    create_image("qcow2", tmp_path / "0", MIB, options={"cluster_size": 512})
    options = {"cluster_size": 512, "backing_fmt": "qcow2"}
    create_image("qcow2", tmp_path / "1", MIB, options={**options, "backing_file": "0" * 12})
    blank = (tmp_path / "1").read_bytes()
    for number in range(1, MOST_IMAGES + 1):
        name = f"{number - 1}".encode()
        (tmp_path / f"{number}").write_bytes(blank.replace(b"0" * 12, b"./" * 4 + name.rjust(4, b"/")))
    with chain(tmp_path / f"{MOST_IMAGES - 1}") as images:
        assert len(images) == MOST_IMAGES
    with pytest.raises(UnsupportedFeature, match=f"more than {MOST_IMAGES - 1} parents"):
        open_chain("qcow2", tmp_path / f"{MOST_IMAGES}")


def test_a_data_file_is_followed_by_the_same_rules(tmp_path: Path) -> None:
    (tmp_path / "pool").mkdir()
    top = tmp_path / "pool/top"
    create_image("qcow2", top, MIB, options={"data_file": "top.data"})
    with chain(top) as images:
        assert len(images[0].layers) == 2
        with pytest.raises(ImageInUse):
            open_image("raw", tmp_path / "pool/top.data")
    shutil.move(tmp_path / "pool/top.data", tmp_path / "top.data")
    with pytest.raises(ImageNotFound, match=r"'top.data', the data file of .*pool/top"):
        open_chain("qcow2", top)
    (tmp_path / "pool/top.data").symlink_to("../top.data")
    with pytest.raises(InvalidArgument, match="lies outside"):
        open_chain("qcow2", top)


def test_a_data_file_that_is_the_image_itself_is_refused(tmp_path: Path) -> None:
    create_image("qcow2", tmp_path / "top", MIB, options={"data_file": "tops"})
    (tmp_path / "tops").unlink()
    os.link(tmp_path / "top", tmp_path / "tops")
    with pytest.raises(CorruptImage, match="comes back to the file"):
        open_chain("qcow2", tmp_path / "top")


def test_an_opener_of_the_callers_own_decides_alone(base: Path) -> None:
    top = overlay(base.parent / "top", "x", "raw")
    asked: list[tuple[Reference, bool]] = []

    def opener(reference: Reference, read_only: bool) -> HostFile:
        asked.append((reference, read_only))
        return HostFile.from_path(base, read_only=read_only)

    with chain(top, opener=opener) as images:
        assert names(images) == ["top", "base.raw"]
    assert asked == [(Reference("x", "raw"), True)]


def test_a_disk_over_a_chain_reads_what_qemu_wrote_to_each_image(base: Path) -> None:
    qemu_io("raw", base, "write -P 1 0 256k")
    mid, top = overlay(base.parent / "mid", "base.raw", "raw"), overlay(base.parent / "top", "mid")
    qemu_io("qcow2", mid, "write -P 2 64k 128k")
    qemu_io("qcow2", top, "write -P 3 128k 1000")
    disk = Disk(*open_chain("qcow2", top))
    try:
        expected = b"\1" * 65536 + b"\2" * 65536 + b"\3" * 1000 + b"\2" * 64536 + b"\1" * 65536 + bytes(65536)
        assert disk.read_blocking(0, len(expected)) == expected
    finally:
        disk.close()
