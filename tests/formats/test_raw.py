"""The raw format: files and block devices."""

import json
import os
from pathlib import Path

import pytest

from formats import direct_io, host_file
from formats.errors import (
    HostRefusal,
    ImageExists,
    ImageInUse,
    InvalidArgument,
    InvalidImage,
    ReadOnlyImage,
    UnsupportedFeature,
)
from formats.host_file import HostFile
from formats.image import BlockState, LayerFlags, entry
from formats.raw import Raw
from formats.registry import create_image, open_image
from tests.formats.contract import FileImageContract
from tests.formats.loop_device import loop_device, needs_root
from tests.formats.reference import Reference, assert_equal_for_qemu, run
from vstore.disk import Disk

MIB = 1 << 20


class TestRaw(FileImageContract):
    format = "raw"


class TestRawOnDirectIo(FileImageContract):
    """The same through O_DIRECT, with whatever alignment the file system of the tests asks for."""

    format = "raw"
    unit = 4096
    length = (2 << 30) + 3 * unit

    def open(self, path: Path | None, length: int) -> Raw:  # noqa: ARG002
        assert path is not None
        image = open_image("raw", path, direct=True)
        assert isinstance(image, Raw)
        assert image.file.direct or image.file.instant
        return image


@pytest.mark.parametrize("length", [513, 1000, 4095, (1 << 30) + 1])
def test_a_file_of_odd_length_is_a_disk_of_that_length_and_keeps_its_tail(tmp_path: Path, length: int) -> None:
    path = tmp_path / "odd"
    path.write_bytes(b"")
    os.truncate(path, length)
    with path.open("r+b") as file:
        os.pwrite(file.fileno(), b"tail", length - 4)
    disk = Disk(open_image("raw", path))
    assert disk.length == length
    assert disk.read_blocking(length - 5, 5) == b"\0tail"
    disk.write_blocking(length - 2, b"IL")
    disk.write_blocking(0, b"head")
    disk.close()
    assert path.stat().st_size == length
    with path.open("rb") as file:
        assert os.pread(file.fileno(), 9, length - 5) == b"\0taIL"


def test_a_length_that_direct_io_cannot_keep_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct_io, "alignment", lambda _: 4096)
    monkeypatch.setattr(host_file, "_lies_in_memory", lambda _: False)
    create_image("raw", tmp_path / "disk", MIB + 512)
    with pytest.raises(UnsupportedFeature, match=f"{MIB + 512} bytes .* not a multiple of the 4096"):
        open_image("raw", tmp_path / "disk", direct=True)
    with open_image("raw", tmp_path / "disk") as image:
        image.resize(MIB)
    with open_image("raw", tmp_path / "disk", direct=True) as image, pytest.raises(UnsupportedFeature, match="4096"):
        image.resize(2 * MIB + 512)
    assert (tmp_path / "disk").stat().st_size == MIB


@pytest.mark.parametrize("length", [0, 1, 511])
def test_a_file_too_short_for_one_block_is_no_disk(tmp_path: Path, length: int) -> None:
    (tmp_path / "short").write_bytes(bytes(length))
    with pytest.raises(InvalidImage, match=f"has {length} bytes; a disk has at least 512"):
        open_image("raw", tmp_path / "short")


@pytest.mark.parametrize(("preallocation", "allocated"), [("off", 0), ("falloc", 3 * MIB), ("full", 3 * MIB)])
def test_a_created_image_has_length_and_space_as_asked(tmp_path: Path, preallocation: str, allocated: int) -> None:
    path = tmp_path / "disk"
    create_image("raw", path, 3 * MIB, preallocation=preallocation)
    status = path.stat()
    assert status.st_size == 3 * MIB
    assert allocated <= status.st_blocks * 512 <= allocated + 8192
    assert status.st_mode & 0o777 == 0o600
    assert path.read_bytes() == bytes(3 * MIB)


def test_what_info_tells_is_what_qemu_img_tells(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    create_image("raw", path, 5 * MIB, preallocation="falloc")
    told = json.loads(run("qemu-img", "info", "--output=json", "-f", "raw", path).stdout)
    with open_image("raw", path, read_only=True) as image:
        info = image.info()
    assert info == {key: told[key] for key in info}


def test_creating_never_overwrites_anything(tmp_path: Path) -> None:
    (tmp_path / "there").write_bytes(b"precious")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name in ("there", "dangling"):
        with pytest.raises(ImageExists, match=name):
            create_image("raw", tmp_path / name, MIB)
    assert (tmp_path / "there").read_bytes() == b"precious"
    assert not (tmp_path / "nowhere").exists()


def test_a_creation_that_fails_half_way_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(HostFile, "fallocate", full)
    with pytest.raises(HostRefusal, match=rf"cannot create .*disk with {MIB} bytes: No space left"):
        create_image("raw", tmp_path / "disk", MIB, preallocation="falloc")
    for length, preallocation in [(1000, "off"), (MIB, "metadata")]:
        with pytest.raises(InvalidArgument):
            create_image("raw", tmp_path / "disk", length, preallocation=preallocation)
    assert list(tmp_path.iterdir()) == []


def test_a_pool_directory_takes_only_plain_names(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    create_image("raw", "inside", MIB, directory=descriptor)
    with pytest.raises(InvalidArgument, match="cannot name an image"):
        create_image("raw", "../outside", MIB, directory=descriptor)
    os.close(descriptor)
    assert [entry.name for entry in tmp_path.iterdir()] == ["inside"]


def test_the_map_is_one_run_whatever_part_is_asked_for(tmp_path: Path) -> None:
    create_image("raw", tmp_path / "disk", 5 << 30)
    with open_image("raw", tmp_path / "disk") as image:
        (run,) = image.load(2, 3)
    assert (run.first, run.count, run.entry) == (2, 3, entry(BlockState.DATA, 0, 2 << 30))


def test_a_read_only_image_is_not_resized(tmp_path: Path) -> None:
    create_image("raw", tmp_path / "disk", MIB)
    with open_image("raw", tmp_path / "disk", read_only=True) as image, pytest.raises(ReadOnlyImage):
        image.resize(2 * MIB)
    assert (tmp_path / "disk").stat().st_size == MIB


def test_a_resize_that_the_host_refuses_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create_image("raw", tmp_path / "disk", 4 * MIB)
    disk = Disk(open_image("raw", tmp_path / "disk"))
    disk.write_blocking(4 * MIB - 5, b"tail!")

    def refuse(*_: object) -> None:
        raise OSError(27, "File too large")

    monkeypatch.setattr(HostFile, "truncate", refuse)
    for length in (2 * MIB, 8 * MIB):
        with pytest.raises(HostRefusal, match=f"{length} bytes long: File too large"):
            disk.resize(length)
        assert disk.length == 4 * MIB
        assert disk.read_blocking(4 * MIB - 5, 5) == b"tail!"
    disk.close()


@needs_root
@pytest.mark.parametrize("sector", [512, 4096])
@pytest.mark.parametrize("direct", [False, True])
def test_a_block_device_is_a_disk(tmp_path: Path, sector: int, direct: bool) -> None:
    under = tmp_path / "under"
    create_image("raw", under, 8 * MIB)
    reference = Reference(tmp_path / "reference", 8 * MIB)
    with loop_device(under, sector) as device:
        disk = Disk(open_image("raw", device, direct=direct))
        flags = LayerFlags.BLOCK_DEVICE | (LayerFlags.DIRECT if direct else LayerFlags.NONE)
        assert disk.image.layers[0].flags == flags
        assert disk.image.layers[0].alignment == (sector if direct else 1)
        assert disk.length == 8 * MIB
        for offset, data in [(0, b"first"), (MIB - 700, b"odd" * 600), (8 * MIB - 3, b"end")]:
            disk.write_blocking(offset, data)
            reference.write(offset, data)
            assert disk.read_blocking(offset, len(data)) == data
        disk.write_zeroes_blocking(MIB - 600, 500, deallocate=False)
        reference.zero(MIB - 600, 500)
        disk.close()
    assert_equal_for_qemu("raw", under, reference)


@needs_root
def test_a_discard_on_a_block_device_reads_as_zeros_and_gives_space_back(tmp_path: Path) -> None:
    under = tmp_path / "under"
    create_image("raw", under, 8 * MIB, preallocation="full")
    with loop_device(under, 512) as device:
        disk = Disk(open_image("raw", device))
        assert disk.deallocates
        disk.write_blocking(0, b"x" * 6 * MIB)
        disk.flush_blocking()
        disk.write_zeroes_blocking(MIB, 4 * MIB, deallocate=True)
        disk.flush_blocking()
        assert disk.read_blocking(MIB - 1, 4 * MIB + 2) == b"x" + bytes(4 * MIB) + b"x"
        disk.close()
    assert under.stat().st_blocks * 512 <= 4 * MIB + 8192


@needs_root
def test_a_block_device_takes_only_the_length_that_it_has(tmp_path: Path) -> None:
    under = tmp_path / "under"
    create_image("raw", under, 8 * MIB)
    with loop_device(under, 512) as device:
        disk = Disk(open_image("raw", device))
        for length in (4 * MIB, 16 * MIB):
            with pytest.raises(UnsupportedFeature, match=f"of {8 * MIB} bytes and cannot be made {length}"):
                disk.resize(length)
        assert disk.length == 8 * MIB
        os.truncate(under, 16 * MIB)
        assert run("losetup", "--set-capacity", device).returncode == 0
        disk.resize(16 * MIB)
        disk.write_blocking(16 * MIB - 4, b"last")
        disk.close()
    assert under.read_bytes()[-4:] == b"last"


@needs_root
def test_a_block_device_that_the_kernel_uses_is_not_opened_writable(tmp_path: Path) -> None:
    create_image("raw", tmp_path / "under", 8 * MIB)
    with loop_device(tmp_path / "under", 512) as device:
        claimed = os.open(device, os.O_RDONLY | os.O_EXCL)  # as a mount holds it
        with pytest.raises(ImageInUse, match="busy"):
            open_image("raw", device)
        open_image("raw", device, read_only=True).close()
        os.close(claimed)
        open_image("raw", device).close()


@needs_root
def test_an_existing_block_device_is_never_created_over(tmp_path: Path) -> None:
    create_image("raw", tmp_path / "under", 8 * MIB)
    with loop_device(tmp_path / "under", 512) as device, pytest.raises(ImageExists):
        create_image("raw", device, MIB)
