"""Growing and shrinking over parents, snapshots and data files, against qemu-img's own resize."""

import errno
import random
from pathlib import Path

import pytest

from formats.errors import UnsupportedFeature
from formats.host_file import HostFile
from formats.image import BlockState
from formats.qcow2.image import Qcow2
from tests.formats.qcow2.oracle import assert_clean, open_qcow2, qemu_create
from tests.formats.qcow2.volume import AllocatingVolume
from tests.formats.reference import Reference, assert_equal_for_qemu, qemu_io, run

MIB = 1 << 20


@pytest.mark.parametrize("options", [{}, {"cluster_size": 512}, {"cluster_size": 16384, "extended_l2": "on"}], ids=str)
def test_a_longer_parent_does_not_show_through_what_is_new(tmp_path: Path, options: dict[str, object]) -> None:
    (tmp_path / "base").write_bytes(b"p" * (4 * MIB))
    path = tmp_path / "disk.qcow2"
    qemu_create(path, MIB + 512, backing_file=tmp_path / "base", backing_fmt="raw", **options)
    model = Reference(tmp_path / "model", MIB + 512)
    model.write(0, b"p" * (MIB + 512))
    volume = AllocatingVolume(open_qcow2(path), lambda _, length: b"p" * length)
    for length in (3 * MIB, MIB // 2 + 512, 6 * MIB, 2 * MIB):
        volume.write(100_000, length.to_bytes(4, "big"))
        model.write(100_000, length.to_bytes(4, "big"))
        volume.resize(length)
        model.resize(length)
        assert volume.read(0, length) == model.read(0, length)
    volume.close()
    assert_clean(path)
    assert_equal_for_qemu("qcow2", path, model)


@pytest.mark.parametrize("seed", range(6))
def test_we_and_qemu_resize_in_turn(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    path, model = tmp_path / "disk.qcow2", Reference(tmp_path / "model", MIB)
    qemu_create(path, MIB, cluster_size=1 << draw.randint(9, 17), refcount_bits=draw.choice([1, 16, 64]))
    for turn in range(6):
        length = draw.randrange(1, 40 * MIB // 512) * 512
        if turn % 2:
            shrink = ["--shrink"] if length < model.length else []
            resized = run("qemu-img", "resize", "-q", "-f", "qcow2", *shrink, path, str(length))
            assert resized.returncode == 0, resized.stderr
        else:
            volume = AllocatingVolume(open_qcow2(path))
            volume.resize(length)
            volume.close()
        model.resize(length)
        qemu_io("qcow2", path, f"write -P {turn + 1} {length // 1024 * 512} 512")
        model.write(length // 1024 * 512, bytes([turn + 1]) * 512)
        assert_clean(path)
        assert_equal_for_qemu("qcow2", path, model)


@pytest.mark.parametrize("shrinks", ["qemu", "vstore"])
@pytest.mark.parametrize(
    "kind", ["plain", "snapshot", "compressed", "extended_l2", "extended_l2 snapshot", "data_file", "data_file_raw"]
)
def test_what_was_cut_off_does_not_come_back(
    tmp_path: Path, kind: str, shrinks: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where QEMU looks for data files
    path, model = tmp_path / "disk.qcow2", Reference(tmp_path / "model", MIB)
    model.write(0, b"\7" * (100 << 10))
    _filled(path, kind)
    shorter, between, longer = 100 << 10, (100 << 10) + 4096, MIB
    if shrinks == "qemu":
        assert run("qemu-img", "resize", "-q", "-f", "qcow2", "--shrink", path, str(shorter)).returncode == 0
    for length in (shorter, between, longer):
        with open_qcow2(path) as image:
            image.resize(length)
    assert_clean(path)
    assert_equal_for_qemu("qcow2", path, model)
    if "snapshot" in kind:
        assert run("qemu-img", "snapshot", "-a", "before", path).returncode == 0
        qemu_io("qcow2", path, "read -P 7 0 1M")


def _filled(path: Path, kind: str) -> None:
    """One mebibyte of sevens, which is the whole disk."""
    options: dict[str, object] = {"extended_l2": "on"} if "extended_l2" in kind else {}
    if "data_file" in kind:
        options = {"data_file": f"{path}.data", "data_file_raw": "on" if "raw" in kind else "off"}
    qemu_create(path, MIB, **options)
    qemu_io("qcow2", path, "write -P 7 0 1M", *(["discard 64k 2k"] if "extended" in kind else []))
    if "extended" in kind:
        qemu_io("qcow2", path, "discard 102k 2k", "write -P 7 0 1M")
    if kind == "compressed":
        qemu_io("qcow2", path, "write -z -u 0 1M", *(f"write -c -P 7 {at}k 64k" for at in range(0, 1024, 64)))
    if "snapshot" in kind:
        assert run("qemu-img", "snapshot", "-c", "before", path).returncode == 0


def test_version_2_with_snapshots_keeps_its_length(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    qemu_create(path, MIB, compat="0.10")
    with open_qcow2(path) as image:
        image.snapshots.take("one")
        with pytest.raises(UnsupportedFeature, match="snapshots of version 2"):
            image.resize(2 * MIB)


def test_a_raw_data_file_grows_with_its_image(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    qemu_create(path, MIB, data_file=tmp_path / "data", data_file_raw="on")
    volume = AllocatingVolume(open_qcow2(path))
    volume.write(0, b"x" * 1000)
    volume.resize(3 * MIB)
    volume.write(3 * MIB - 512, b"y" * 512)
    volume.zero(0, 65536)
    volume.close()
    assert_clean(path)
    assert (tmp_path / "data").read_bytes() == bytes(3 * MIB - 512) + b"y" * 512


def test_metadata_passes_through_direct_io(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    qemu_create(path, MIB, cluster_size=512)
    model = Reference(tmp_path / "model", MIB)
    volume = AllocatingVolume(Qcow2(HostFile.from_path(path, direct=True)))
    assert BlockState(volume.image.load(0, 1)[0].entry >> 60) == BlockState.HOLE
    for block in random.Random(2).sample(range(2048), 300):
        volume.write(block * 512, b"%512d" % block)
        model.write(block * 512, b"%512d" % block)
    volume.close()
    assert_clean(path)
    assert_equal_for_qemu("qcow2", path, model)


def test_a_resize_whose_header_was_refused_loses_nothing_that_comes_after(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    qemu_create(path, MIB, cluster_size=512)
    image = Qcow2(HostFile.from_path(path), track_writes=True)
    volume, write = AllocatingVolume(image), image.file.pwrite

    def refused(offset: int, data: bytes) -> None:
        if offset == 0:
            raise OSError(errno.ENOSPC, "injected")
        write(offset, data)

    image.file.pwrite = refused  # type: ignore[method-assign]
    with pytest.raises(OSError, match="injected"):
        image.resize(8 * MIB)
    image.file.pwrite = write  # type: ignore[method-assign]
    assert image.header.start.size == image.geometry.length == MIB
    volume.write(5000, b"before")
    image.bitmaps.add("which writes the header")
    volume.write(MIB - 10, b"after")
    volume.close()
    qemu_io("qcow2", path, "read -P 0x62 5000 1")
    with open_qcow2(path, read_only=True) as again:
        assert again.header.start.size == MIB
    model = Reference(tmp_path / "model", MIB)
    model.write(5000, b"before")
    model.write(MIB - 10, b"after")
    assert_equal_for_qemu("qcow2", path, model)
