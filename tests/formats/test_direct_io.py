"""I/O of any alignment on files that are open with O_DIRECT."""

import os
import random
from pathlib import Path

import pytest

from formats import direct_io
from formats.host_file import HostFile
from formats.registry import create_image
from tests.formats.loop_device import loop_device, needs_root
from tests.formats.reference import Reference


@pytest.mark.parametrize("unit", [512, 4096])
def test_any_range_is_read_and_written_as_without_direct_io(tmp_path: Path, unit: int) -> None:
    reference = Reference(tmp_path / "reference", 30_000)
    (tmp_path / "direct").write_bytes(bytes(30_000))
    draw = random.Random(unit)
    with HostFile.from_path(tmp_path / "direct", direct=True) as file:
        unit = max(unit, file.direct_alignment)
        for _ in range(200):
            offset, length = draw.randrange(40_000), draw.randrange(9_000)
            if draw.random() < 0.5:
                data = draw.randbytes(length)
                direct_io.write(file.descriptor, offset, data, unit)
                reference.write(offset, data) if data else None
            assert direct_io.read(file.descriptor, offset, length, unit) == reference.read(offset, length)
            assert file.length == reference.length


def test_a_host_file_opened_direct_takes_any_range(tmp_path: Path) -> None:
    (tmp_path / "direct").write_bytes(bytes(10_000))
    with HostFile.from_path(tmp_path / "direct", direct=True) as file:
        assert file.direct != file.instant
        file.pwrite(4090, b"across a page")
        assert file.pread(4089, 15) == b"\0across a page\0"
        assert file.pread(9_990, 100) == bytes(10)
        assert file.length == 10_000


def test_the_alignment_found_is_one_that_works(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(b"x" * 65536)
    create_image("raw", tmp_path / "hole", 65536)
    for name in ("data", "hole"):
        descriptor = os.open(tmp_path / name, os.O_RDWR | os.O_DIRECT)
        unit = direct_io.alignment(descriptor)
        assert unit in (512, 1024, 2048, 4096)
        assert direct_io._reads(descriptor, 0, unit)
        os.close(descriptor)


@needs_root
@pytest.mark.parametrize("sector", [512, 4096])
def test_a_block_device_says_its_own_alignment(tmp_path: Path, sector: int) -> None:
    create_image("raw", tmp_path / "under", 1 << 20)
    with loop_device(tmp_path / "under", sector) as device, HostFile.from_path(device, direct=True) as file:
        assert file.direct_alignment == sector
        file.pwrite(1000, b"y" * 5000)
        assert file.pread(999, 5002) == b"\0" + b"y" * 5000 + b"\0"
        file.zero_range(4096, 4096)
        assert file.pread(4000, 8192) == b"y" * 96 + bytes(8096)
