"""Dirty bitmaps of a LUN in use, over the control channel, while the guest's commands come through rings."""

import json
from pathlib import Path

import pytest

from formats.registry import create_image, open_image
from tests.formats.reference import run
from tests.target.conftest import MIB, Running
from tests.target.guest import settle, write_10
from vstore.target.errors import ErrorCode, TargetError
from vstore.target.verbs import BitmapLun, ImageSource


def test_a_bitmap_has_what_the_guest_wrote_after_it_was_added(target: Running, tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    create_image("qcow2", path, 64 * MIB)
    target.map_file(path, image=ImageSource(format="qcow2", name="disk"))
    target.configure()
    with target.device() as device:
        settle(device)
        write_10(device, 0, b"\1" * 4096)
        (made,) = target.client.change_bitmap(BitmapLun(lun=0, action="add", name="b", granularity=65536))
        write_10(device, 4096, b"\2" * 4096)
    assert (made.name, made.granularity, made.enabled, made.consistent) == ("b", 65536, True, True)
    assert target.client.bitmaps(0) == (made,)
    with pytest.raises(TargetError, match="no bitmap") as refused:
        target.client.change_bitmap(BitmapLun(lun=0, action="clear", name="c"))
    assert refused.value.code is ErrorCode.IMAGE_REFUSED
    target.client.stop()
    told = json.loads(run("qemu-img", "info", "--output=json", path).stdout)["format-specific"]["data"]["bitmaps"]
    assert told == [{"name": "b", "granularity": 65536, "flags": ["auto"]}]
    with open_image("qcow2", path, read_only=True) as image:
        assert list(image.bitmaps.usable("b").dirty()) == [(2 * MIB, 65536)]  # type: ignore[attr-defined]
