"""Images that were made once and are kept, so that they stay readable whatever qemu is installed."""

from pathlib import Path

import pytest

from formats.host_file import HostFile
from formats.qcow2.check import check
from tests.formats.qcow2.oracle import open_qcow2
from tests.formats.qcow2.volume import AllocatingVolume

IMAGES = Path(__file__).parents[3] / "fixtures" / "images"

CONTENTS = {  # length, and what fixtures/images/qcow2.sh wrote: byte, offset, length
    "qcow2-version-2": (65536, [(1, 0, 1024), (2, 20480, 3072), (3, 21504, 512)]),
    "qcow2-extended-l2": (262144, [(1, 512, 512), (2, 40960, 32768), (0, 65536, 16384), (4, 102400, 700)]),
    "qcow2-zstd": (32768, [(5, 0, 8192), (6, 9216, 10240)]),
}


def content(name: str) -> bytes:
    length, writes = CONTENTS[name]
    whole = bytearray(length)
    for byte, offset, count in writes:
        whole[offset : offset + count] = bytes([byte]) * count
    return bytes(whole)


@pytest.mark.parametrize("name", CONTENTS)
def test_a_kept_image_has_the_bytes_that_were_written(name: str) -> None:
    path = IMAGES / f"{name}.qcow2"
    volume = AllocatingVolume(open_qcow2(path, read_only=True))
    assert volume.read(0, volume.length) == content(name)
    volume.image.close()
    with HostFile.from_path(path, read_only=True) as file:
        report = check(file)
    assert (report.corruptions, report.leaks) == (0, 0)


def test_the_kept_snapshot_has_the_bytes_of_before() -> None:
    with open_qcow2(IMAGES / "qcow2-version-2.qcow2", read_only=True) as image:
        view = image.open_snapshot("before")
        volume = AllocatingVolume(view, files=image)  # type: ignore[arg-type]
        assert volume.read(20480, 3072) == b"\2" * 3072


def test_the_kept_bitmap_has_the_granules_of_the_last_write() -> None:
    with open_qcow2(IMAGES / "qcow2-extended-l2.qcow2", read_only=True) as image:
        bitmap = image.bitmaps.find("changes")
        assert [bit for bit in range(bitmap.bits) if bitmap.get(bit)] == [200, 201]
