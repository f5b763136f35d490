"""The memory format."""

import os
from pathlib import Path

import pytest

from formats.errors import InvalidArgument
from formats.image import Image, LayerFlags
from formats.registry import open_image
from tests.formats.contract import ImageContract


class TestMemory(ImageContract):
    format = "memory"

    def create(self, directory: Path, length: int) -> None:  # noqa: ARG002
        return None

    def open(self, path: Path | None, length: int) -> Image:  # noqa: ARG002
        return open_image("memory", length=length)


def test_a_memory_image_takes_memory_only_for_what_is_written() -> None:
    with open_image("memory", length=1 << 40) as image:
        assert image.info()["actual-size"] == 0
        os.pwrite(image.layers[0].descriptor, b"x", 1 << 39)
        assert 0 < os.fstat(image.layers[0].descriptor).st_blocks * 512 <= 2 << 20
        assert image.layers[0].flags == LayerFlags.MEMORY | LayerFlags.INSTANT


def test_closing_a_memory_image_gives_its_descriptor_back() -> None:
    before = len(os.listdir("/proc/self/fd"))
    image = open_image("memory", length=512)
    assert len(os.listdir("/proc/self/fd")) == before + 1
    image.close()
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("length", [0, 511, 513, -512, 1 << 57])
def test_a_length_that_no_disk_can_have_is_refused(length: int) -> None:
    with pytest.raises(InvalidArgument, match="multiple of 512"):
        open_image("memory", length=length)
