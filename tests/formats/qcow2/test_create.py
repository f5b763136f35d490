"""Images that we make: what qemu-img says of them, and that they are what it would have made."""

import json
from pathlib import Path

import pytest

from formats.errors import InvalidArgument, UnsupportedFeature
from formats.host_file import HostFile
from formats.image import Reference
from formats.qcow2.create import Options, create, options_named
from tests.formats.qcow2.oracle import assert_clean, assert_same_map, qemu_create
from tests.formats.qcow2.volume import AllocatingVolume
from tests.formats.reference import qemu_io, run

GIB = 1 << 30


def make(path: Path, length: int, preallocation: str = "off", **options: object) -> Path:
    def opener(reference: Reference) -> HostFile:
        return HostFile.from_path(path.parent / reference.name)

    with HostFile.create(path) as file:
        create(file, length, preallocation, Options(**options), opener=opener)  # type: ignore[arg-type]
    return path


def info(path: Path) -> dict[str, object]:
    told: dict[str, object] = json.loads(run("qemu-img", "info", "-f", "qcow2", "--output=json", path).stdout)
    return {key: value for key, value in told.items() if key not in ("filename", "actual-size")}


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16, 32, 64])
@pytest.mark.parametrize("cluster_size", [512, 4096, 65536, 2 << 20])
def test_every_geometry_is_clean_for_qemu(tmp_path: Path, bits: int, cluster_size: int) -> None:
    path = make(tmp_path / "disk", 10 * GIB + 512, cluster_size=cluster_size, refcount_bits=bits)
    assert_clean(path)
    qemu_io("qcow2", path, "write -P 7 10G 512")
    assert_clean(path)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({}, {}),
        ({"version": 2}, {"compat": "0.10"}),
        ({"lazy_refcounts": True, "refcount_bits": 1}, {"lazy_refcounts": "on", "refcount_bits": 1}),
        ({"extended_l2": True, "cluster_size": 131072}, {"extended_l2": "on", "cluster_size": 131072}),
        ({"compression_type": "zstd"}, {"compression_type": "zstd"}),
        ({"backing": Reference("/base", "raw")}, {"backing_file": "/base", "backing_fmt": "raw"}),
    ],
)
def test_qemu_img_info_tells_the_same_as_of_its_own(
    tmp_path: Path, ours: dict[str, object], theirs: dict[str, object]
) -> None:
    made = make(tmp_path / "ours", GIB, **ours)
    text = ",".join(f"{name}={value}" for name, value in theirs.items())
    result = run(
        "qemu-img", "create", "-u", "-f", "qcow2", *(["-o", text] if text else []), tmp_path / "theirs", str(GIB)
    )
    assert result.returncode == 0, result.stderr
    assert info(made) == info(tmp_path / "theirs")


@pytest.mark.parametrize("preallocation", ["off", "metadata", "falloc", "full"])
@pytest.mark.parametrize("options", [{}, {"extended_l2": True}, {"cluster_size": 4096, "refcount_bits": 64}])
def test_preallocation_takes_what_qemus_takes(tmp_path: Path, preallocation: str, options: dict[str, object]) -> None:
    path = make(tmp_path / "ours", 20 << 20, preallocation, **options)
    assert_clean(path)
    assert_same_map(path)
    text = {name: "on" if value is True else value for name, value in options.items()}
    qemu_create(tmp_path / "theirs", 20 << 20, preallocation=preallocation, **text)
    ours, theirs = ((tmp_path / name).stat().st_blocks * 512 for name in ("ours", "theirs"))
    assert abs(ours - theirs) < 400 << 10


def test_a_data_file_gets_the_disks_length_and_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(b"")
    path = make(tmp_path / "disk", 1 << 20, data_file=Reference(str(tmp_path / "data")), data_file_raw=True)
    assert (tmp_path / "data").stat().st_size == 1 << 20
    qemu_io("qcow2", path, "write -P 5 100 5000")
    assert (tmp_path / "data").read_bytes()[99:5101] == b"\0" + b"\5" * 5000 + b"\0"
    assert_clean(path)


@pytest.mark.parametrize(
    ("options", "wrong"),
    [
        ({"version": 4}, "version 4"),
        ({"cluster_size": 1000}, "cluster_size 1000"),
        ({"cluster_size": 4 << 20}, "cluster_size 4194304"),
        ({"cluster_size": 8192, "extended_l2": True}, "power of two from 16384"),
        ({"refcount_bits": 3}, "refcount_bits 3"),
        ({"compression_type": "lzma"}, "'lzma'"),
        ({"version": 2, "lazy_refcounts": True}, "options of version 3"),
        ({"data_file_raw": True}, "data_file_raw without"),
    ],
)
def test_what_cannot_be_made_is_told(tmp_path: Path, options: dict[str, object], wrong: str) -> None:
    with pytest.raises(InvalidArgument, match=wrong):
        make(tmp_path / "disk", 1 << 20, **options)


def test_a_disk_too_long_for_its_clusters_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedFeature, match="use longer clusters"):
        make(tmp_path / "disk", 1 << 40, cluster_size=512)


def test_growing_and_shrinking_keep_what_stays_and_show_zeros_for_what_is_new(tmp_path: Path) -> None:
    from tests.formats.qcow2.oracle import open_qcow2

    path = make(tmp_path / "disk", 1 << 20, cluster_size=512)
    volume = AllocatingVolume(open_qcow2(path))
    volume.write(0, b"x" * (1 << 20))
    volume.resize(5000 << 20)
    volume.write(4000 << 20, b"y" * 1000)
    assert volume.read((1 << 20) - 512, 1024) == b"x" * 512 + bytes(512)
    volume.resize((1 << 19) + 512)
    volume.resize(1 << 20)
    assert volume.read(1 << 19, 1024) == b"x" * 512 + bytes(512)
    volume.close()
    assert_clean(path)


def test_a_parent_shows_through_all_of_an_overlay_whose_l1_table_has_many_clusters(tmp_path: Path) -> None:
    (tmp_path / "base").write_bytes(b"b" * (8 << 20))
    path = make(tmp_path / "disk", 8 << 20, cluster_size=512, backing=Reference("base", "raw"))
    same = run("qemu-img", "compare", "-f", "qcow2", "-F", "raw", path, tmp_path / "base")
    assert same.returncode == 0, same.stdout
    assert path.stat().st_size < 32 << 10


def test_an_overlay_of_which_nothing_is_said_has_sub_blocks() -> None:
    parent = {"backing_file": "base", "backing_fmt": "raw"}
    assert options_named(parent).extended_l2
    assert options_named(parent).cluster_size == 131072
    assert not options_named({**parent, "cluster_size": 65536}).extended_l2
    assert options_named({**parent, "compat": 2}).cluster_size == 65536
    assert not options_named({}).extended_l2
