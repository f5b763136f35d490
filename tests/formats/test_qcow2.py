"""qcow2 keeps the contract of every format, in each of its variants, and that of overlays over every format."""

from pathlib import Path
from typing import ClassVar

import pytest

from formats.image import Image
from formats.registry import create_image, open_chain
from tests.formats.contract import FileImageContract, OverlayContract

MIB = 1 << 20


class Variant(FileImageContract):
    """`options` as create_image takes them."""

    format = "qcow2"
    length = 20 * MIB + 3 * 512
    options: ClassVar[dict[str, object]] = {}

    def create(self, directory: Path, length: int) -> Path:
        path = directory / "disk.qcow2"
        create_image("qcow2", path, length, options=self.options)
        return path

    def open(self, path: Path | None, length: int) -> Image:  # noqa: ARG002
        assert path is not None
        return open_chain("qcow2", path)[0]


class TestVersion3(Variant):
    length = 2 << 30 | 3 * 512


class TestVersion2(Variant):
    options: ClassVar[dict[str, object]] = {"compat": "0.10"}


class TestShortestClusters(Variant):
    length = 3 * MIB + 3 * 512
    kept = 80 << 10  # tables lie between the data
    options: ClassVar[dict[str, object]] = {"cluster_size": 512}


class TestLongestClusters(Variant):
    options: ClassVar[dict[str, object]] = {"cluster_size": "2M"}


class TestSubClusters(Variant):
    options: ClassVar[dict[str, object]] = {"cluster_size": "128k", "extended_l2": True}


class TestDataFile(Variant):
    options: ClassVar[dict[str, object]] = {"data_file": "disk.data"}

    @pytest.fixture(autouse=True)
    def in_its_directory(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)  # where QEMU looks for data files


class TestOverlay(OverlayContract):
    format = "qcow2"
    variants: ClassVar[list[dict[str, object]]] = [
        {},
        {"cluster_size": 512},
        {"cluster_size": "2M"},
        {"cluster_size": "128k", "extended_l2": True},
        {"compat": "0.10", "cluster_size": 4096},
    ]
