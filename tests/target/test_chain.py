"""Chains of images that are handed to a target process: in order, with data files, shared, and a thousand deep."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from formats.registry import create_image
from tests.formats.reference import qemu_io, run
from tests.target.conftest import MIB, Running, request
from tests.target.guest import read_10, refusal, settle, write_10
from vstore.target.errors import ErrorCode
from vstore.target.verbs import ImageSource, MapLun, ParentSource


@contextmanager
def opened(*paths: Path, read_only: bool = False) -> Iterator[list[int]]:
    """The first for writing, the others to read."""
    descriptors = [
        os.open(path, os.O_CLOEXEC | (os.O_RDONLY if number or read_only else os.O_RDWR))
        for number, path in enumerate(paths)
    ]
    try:
        yield descriptors
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    create_image("raw", tmp_path / "base", MIB)
    qemu_io("raw", tmp_path / "base", "write -P 1 0 64k")
    return tmp_path / "base"


def overlay(path: Path, backing: Path, format: str = "raw", **options: object) -> Path:
    names = {"backing_file": backing.name, "backing_fmt": format, "cluster_size": 4096}
    create_image("qcow2", path, MIB, options={**names, **options})
    return path


def over(lun: int, *parents: ParentSource, data_file: bool = False, **settings: object) -> MapLun:
    source = ImageSource(format="qcow2", name="top", parents=parents, data_file=data_file)
    return request(lun, image=source, **settings)


RAW = ParentSource(format="raw", name="base")
QCOW2 = ParentSource(format="qcow2", name="mid")


def test_a_chain_is_read_through_and_only_its_top_is_written(target: Running, base: Path) -> None:
    mid = overlay(base.parent / "mid", base)
    qemu_io("qcow2", mid, "write -P 2 4k 4k")
    top, before = overlay(base.parent / "top", mid, "qcow2"), base.read_bytes()
    with opened(top, mid, base) as descriptors:
        target.client.map_lun(over(0, QCOW2, RAW), *descriptors)
    target.configure()
    with target.device() as device:
        settle(device)
        assert read_10(device, 0, 24) == b"\1" * 4096 + b"\2" * 4096 + b"\1" * 4096
        write_10(device, 3, b"new!" * 128)
    assert target.client.status().luns[0].settings == over(0, QCOW2, RAW)
    target.client.stop()
    assert base.read_bytes() == before
    assert run("qemu-img", "check", top).returncode == 0
    expected = b"\1" * 1536 + b"new!" * 128 + b"\1" * 2048
    qemu_io("qcow2", top, "read -P 1 0 1536", "read -P 0x6e 1536 1", "read -P 2 4k 4k", "read -P 1 8k 56k")
    raw = base.parent / "flat"
    assert run("qemu-img", "convert", "-O", "raw", top, raw).returncode == 0
    assert raw.read_bytes()[:4096] == expected


def test_targets_share_a_parent_and_nobody_may_write_to_it(target: Running, base: Path) -> None:
    for lun in range(3):
        top = overlay(base.parent / f"top{lun}", base)
        with opened(top, base) as descriptors:
            target.client.map_lun(over(lun, RAW), *descriptors)
    assert "lock" in run("qemu-io", "-f", "raw", "-c", "write 0 512", base).stderr
    with opened(base) as descriptors:
        error = refusal(target.client.map_lun, request(9), *descriptors)
    assert error.code is ErrorCode.IMAGE_LOCKED


def test_data_files_come_behind_their_images(target: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where QEMU looks for data files
    create_image("qcow2", tmp_path / "mid", MIB, options={"data_file": "mid.data"})
    qemu_io("qcow2", tmp_path / "mid", "write -P 7 0 128k")
    create_image(
        "qcow2", tmp_path / "top", MIB, options={"data_file": "d", "backing_file": "mid", "backing_fmt": "qcow2"}
    )
    paths = [tmp_path / name for name in ("top", "d", "mid", "mid.data")]
    flags = [os.O_RDWR, os.O_RDWR, os.O_RDONLY, os.O_RDONLY]
    descriptors = [os.open(path, flag) for path, flag in zip(paths, flags, strict=True)]
    target.client.map_lun(over(0, replace(QCOW2, data_file=True), data_file=True), *descriptors)
    for descriptor in descriptors:
        os.close(descriptor)
    target.configure()
    with target.device() as device:
        settle(device)
        assert read_10(device, 0, 2) == b"\7" * 1024
    target.client.stop()
    assert run("qemu-img", "check", tmp_path / "top").returncode == 0


def test_a_read_only_chain_leaves_every_file_as_it_is(target: Running, base: Path) -> None:
    top = overlay(base.parent / "top", base)
    before = top.read_bytes(), base.read_bytes()
    with opened(top, base, read_only=True) as descriptors:
        assert target.client.map_lun(over(0, RAW, read_only=True), *descriptors).read_only
    target.configure()
    with target.device() as device:
        settle(device)
        assert read_10(device, 0) == b"\1" * 512
    target.client.stop()
    assert (top.read_bytes(), base.read_bytes()) == before


def test_a_chain_a_thousand_deep_is_served_and_its_status_comes_back(target: Running, tmp_path: Path) -> None:
    base, depth = tmp_path / "0", 1000
    create_image("qcow2", base, MIB, options={"cluster_size": 512})
    qemu_io("qcow2", base, "write -P 5 0 4k")
    blank = overlay(tmp_path / "1", base, "qcow2", cluster_size=512)
    descriptors = [os.open(blank, os.O_RDWR), *(os.open(blank, os.O_RDONLY) for _ in range(depth - 2))]
    descriptors.append(os.open(base, os.O_RDONLY))
    for number in range(1, depth - 1):  # files of their own, or each would be locked by the one before
        own = os.memfd_create(str(number))
        os.write(own, blank.read_bytes())
        os.dup2(own, descriptors[number])
        os.close(own)
    parents = [ParentSource(format="qcow2", name="p" * 100)] * (depth - 1)
    target.client.map_lun(over(0, *parents), *descriptors)
    for descriptor in descriptors:
        os.close(descriptor)
    target.configure()
    with target.device() as device:
        settle(device)
        assert read_10(device, 0, 8) == b"\5" * 4096
    assert target.client.status().luns[0].settings == over(0, *parents)
    before = len(target.descriptors())
    target.client.unmap_lun(0)
    assert before - len(target.descriptors()) >= depth


WRONG: list[tuple[MapLun, list[str], ErrorCode, str]] = [
    (over(0, RAW), ["top"], ErrorCode.INVALID_REQUEST, "top: 1 descriptors came for a chain of 2 files"),
    (over(0, RAW), ["top", "base", "base"], ErrorCode.INVALID_REQUEST, "3 descriptors came for a chain of 2"),
    (over(0), ["top"], ErrorCode.IMAGE_REFUSED, "an overlay on 'base', which was not handed over"),
    (
        request(0, image=ImageSource(format="raw", name="base", parents=(RAW,))),
        ["base", "top"],
        ErrorCode.IMAGE_REFUSED,
        "base is no overlay, but a parent of it was handed over",
    ),
    (
        over(0, replace(RAW, file="other")),
        ["top", "base"],
        ErrorCode.IMAGE_REFUSED,
        "top says that its parent is 'base', but 'other' was handed over",
    ),
    (over(0, QCOW2), ["top", "base"], ErrorCode.IMAGE_REFUSED, "mid is not a qcow2 image"),
    (over(0, RAW, data_file=True), ["top", "extra", "base"], ErrorCode.IMAGE_REFUSED, "top has no data file"),
    (over(0, ParentSource(format="vhs")), ["top", "base"], ErrorCode.IMAGE_REFUSED, "'vhs' is not an image"),
]


@pytest.mark.parametrize("case", WRONG)
def test_a_chain_that_does_not_fit_is_refused_and_all_of_it_closed(
    target: Running, base: Path, case: tuple[MapLun, list[str], ErrorCode, str]
) -> None:
    asked, names, code, sentence = case
    overlay(base.parent / "top", base)
    create_image("raw", base.parent / "extra", MIB)
    before = target.descriptors()
    descriptors = [os.open(base.parent / name, os.O_RDWR) for name in names]
    error = refusal(target.client.map_lun, asked, *descriptors)
    for descriptor in descriptors:
        os.close(descriptor)
    assert (error.code, sentence in error.detail) == (code, True), error.detail
    assert target.descriptors() == before
