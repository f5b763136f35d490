"""Images behind LUNs: opened, locked, refused, and closed on every way out."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.target.conftest import MIB, Running, request
from tests.target.guest import CHECK_CONDITION, refusal, settle
from vstore.target.errors import ErrorCode, TargetError
from vstore.target.verbs import (
    ImageSource,
    MapLun,
    Mapped,
)


def test_mapping_answers_what_the_image_is(target: Running) -> None:
    source = ImageSource(format="memory", length=MIB)
    mapped = target.client.map_lun(MapLun(lun=0, image=source, serial="M"))
    assert mapped == Mapped(length=MIB, read_only=False, thin=True)


def test_read_only_lun_refuses_writes_and_leaves_the_file(target: Running, disk: Path) -> None:
    target.map_file(disk, read_only=True)
    target.configure()
    with target.device() as device:
        settle(device)
        result = device.command(bytes([0x2A, 0, 0, 0, 0, 0, 0, 0, 1, 0]), data_out=b"x" * 512)
    assert (result.status, result.sense[2] & 0xF) == (CHECK_CONDITION, 0x7)  # DATA PROTECT
    assert not any(disk.read_bytes())


def test_image_stays_locked_against_qemu_while_mapped(target: Running, disk: Path) -> None:
    target.map_file(disk)
    done = subprocess.run(
        ["qemu-io", "-f", "raw", "-c", "write 0 512", disk], check=False, capture_output=True, text=True
    )
    assert done.returncode != 0
    assert "lock" in done.stderr


def test_image_that_qemu_holds_is_refused_as_locked(target: Running, disk: Path) -> None:
    holder = subprocess.Popen(
        ["qemu-io", "-f", "raw", disk], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert holder.stdin
    assert holder.stdout
    with holder:
        holder.stdin.write(b"read 0 512\n")
        holder.stdin.flush()
        holder.stdout.readline()
        error = refusal(target.map_file, disk)
        holder.stdin.close()
        holder.wait(timeout=10)
    assert error.code is ErrorCode.IMAGE_LOCKED
    assert str(disk) in error.detail


def test_image_off_the_block_size_is_refused_with_both_numbers(target: Running, tmp_path: Path) -> None:
    odd = tmp_path / "odd.raw"
    odd.write_bytes(bytes(4096 + 512))
    with odd.open("r+b") as file, pytest.raises(TargetError) as caught:
        target.client.map_lun(request(0, "odd.raw", logical_block_length=4096), file.fileno())
    assert caught.value.code is ErrorCode.IMAGE_REFUSED
    assert caught.value.detail == (
        "odd.raw: 4608 bytes are not a multiple of the 4096-byte logical block; 4096 or 8192 bytes would be"
    )


def test_refused_images_leave_no_descriptor_behind(target: Running, disk: Path, tmp_path: Path) -> None:
    target.configure()
    target.map_file(disk)
    target.client.status()
    before = target.descriptors()
    short = tmp_path / "short.raw"
    short.write_bytes(b"x")
    odd = tmp_path / "odd.raw"
    odd.write_bytes(bytes(1000))
    for path in (short, odd):
        assert refusal(target.map_file, path, 1).code is ErrorCode.IMAGE_REFUSED
    assert refusal(target.map_file, disk, 0).code is ErrorCode.LUN_EXISTS
    with odd.open("r+b") as file:
        memory = request(1, image=ImageSource(format="memory", length=MIB))
        assert refusal(target.client.map_lun, memory, file.fileno()).code is ErrorCode.IMAGE_REFUSED
        write_only = os.open(odd, os.O_WRONLY)
        assert refusal(target.client.map_lun, request(1), write_only).code is ErrorCode.IMAGE_REFUSED
        os.close(write_only)
    assert target.descriptors() == before
