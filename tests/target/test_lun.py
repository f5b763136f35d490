"""Images behind LUNs: opened, locked, refused, and closed on every way out."""

import asyncio
import errno
import os
import subprocess
from functools import partial
from pathlib import Path

import pytest

from formats.registry import open_image
from tests.target.conftest import MIB, Running, request
from tests.target.guest import CHECK_CONDITION, refusal, settle
from vstore.scsi.commands import FormatUnit
from vstore.scsi.operation import FORMAT_FAILED, Operation
from vstore.scsi.sense import AdditionalSense
from vstore.target.chain import images_handed
from vstore.target.errors import ErrorCode, TargetError
from vstore.target.lun import MappedLun
from vstore.target.packet import Descriptors
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


def test_discards_that_shall_keep_clusters_are_refused_where_there_are_none(target: Running, disk: Path) -> None:
    with pytest.raises(TargetError, match="discard=unref") as refused:
        target.map_file(disk, discard="keep")
    assert refused.value.code is ErrorCode.IMAGE_REFUSED
    target.map_file(disk, discard="unref")


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


def test_image_shorter_than_a_block_is_refused_with_the_one_length_that_is_possible(target: Running) -> None:
    tiny = request(0, image=ImageSource(format="memory", length=512), logical_block_length=4096)
    error = refusal(target.client.map_lun, tiny)
    assert error.code is ErrorCode.IMAGE_REFUSED
    assert error.detail == "the image: 512 bytes are not a multiple of the 4096-byte logical block; 4096 bytes would be"


@pytest.mark.parametrize(("alignment", "block", "fits"), [(4096, 512, False), (4096, 4096, True), (512, 512, True)])
async def test_blocks_that_direct_io_cannot_write_alone_are_refused(
    monkeypatch: pytest.MonkeyPatch, disk: Path, alignment: int, block: int, fits: bool
) -> None:
    """Two writes to neighbouring logical blocks would each rewrite the other's bytes as it had read them."""
    monkeypatch.setattr("formats.direct_io.alignment", lambda _: alignment)
    monkeypatch.setattr("formats.host_file._lies_in_memory", lambda _: False)
    before = len(os.listdir("/proc/self/fd"))
    settings = request(0, "disk.raw", logical_block_length=block)
    with Descriptors([os.open(disk, os.O_RDWR | os.O_DIRECT)]) as descriptors:
        if fits:
            await (await MappedLun.open(settings, partial(images_handed, settings, descriptors))).close()
        else:
            with pytest.raises(TargetError) as caught:
                await MappedLun.open(settings, partial(images_handed, settings, descriptors))
            assert caught.value.code is ErrorCode.IMAGE_REFUSED
            assert caught.value.detail == (
                "disk.raw: direct I/O here moves 4096 bytes at once, which the 512-byte logical block is no multiple "
                "of; map it with blocks of 4096 bytes, or open it without direct I/O"
            )
    assert len(os.listdir("/proc/self/fd")) == before


async def test_image_that_the_data_plane_cannot_take_is_an_error_of_the_host(
    monkeypatch: pytest.MonkeyPatch, disk: Path
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr("vstore.disk.Volume", fail)
    before = len(os.listdir("/proc/self/fd"))
    with Descriptors([os.open(disk, os.O_RDWR)]) as descriptors, pytest.raises(TargetError) as caught:
        await MappedLun.open(request(0), partial(images_handed, request(0), descriptors))
    assert (caught.value.code, caught.value.detail) == (ErrorCode.HOST_ERROR, "Cannot allocate memory")
    assert len(os.listdir("/proc/self/fd")) == before


def test_memory_that_is_mapped_read_only_is_told_to_be(target: Running) -> None:
    memory = request(0, image=ImageSource(format="memory", length=MIB), read_only=True)
    assert target.client.map_lun(memory).read_only
    assert target.client.status().luns[0].read_only


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


async def test_a_disk_keeps_its_length_while_its_guest_formats_it() -> None:
    settings = request(0, image=ImageSource(format="memory", length=2 * MIB))
    mapped = await MappedLun.open(settings, lambda: [open_image("memory", length=2 * MIB)])
    formatted = asyncio.Event()
    operation = Operation(AdditionalSense.LOGICAL_UNIT_NOT_READY_FORMAT_IN_PROGRESS, 1, FORMAT_FAILED, FormatUnit())

    async def work() -> None:
        await formatted.wait()

    async def settled() -> None:
        return

    await mapped.unit.operate(operation, work(), immed=True)
    for length in (MIB, 3 * MIB):
        with pytest.raises(TargetError, match="busy with a FORMAT UNIT or SANITIZE of its guest") as caught:
            await mapped.resize(length, settled)
        assert caught.value.code is ErrorCode.BUSY
        assert (mapped.disk.length, mapped.unit.blocks) == (2 * MIB, 2 * MIB // 512)
    ended = asyncio.Event()
    mapped.unit.on_change(ended.set)
    formatted.set()
    await asyncio.wait_for(ended.wait(), 10)
    await mapped.resize(MIB, settled)
    assert mapped.disk.length == MIB
    await mapped.close()
