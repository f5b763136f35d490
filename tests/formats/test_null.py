"""The null format."""

import pytest

from formats.errors import InvalidArgument
from formats.image import BlockState, LayerFlags, entry
from formats.registry import open_image
from vstore.disk import Disk


def test_a_null_image_has_one_layer_without_a_file() -> None:
    image = open_image("null", length=3 << 30)
    assert [(layer.descriptor, layer.flags) for layer in image.layers] == [(-1, LayerFlags.NULL | LayerFlags.INSTANT)]
    assert image.load(1, 2)[0].entry == entry(BlockState.DATA, 0, 1 << 30)
    assert not image.deallocates


def test_reads_and_writes_of_a_null_disk_succeed_and_keep_nothing() -> None:
    disk = Disk(open_image("null", length=1 << 40))
    disk.write_blocking(12345, b"something")
    assert len(disk.read_blocking(12345, 9)) == 9
    disk.write_zeroes_blocking(0, 1 << 20, deallocate=True)
    disk.flush_blocking()
    disk.resize(1 << 41)
    disk.write_blocking((1 << 41) - 512, bytes(512))
    disk.close()


def test_a_null_image_needs_a_length_that_a_disk_can_have() -> None:
    with pytest.raises(InvalidArgument, match="multiple of 512"):
        open_image("null", length=100)
