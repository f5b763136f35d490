"""A target process does what its verbs say, and tells what it is."""

import errno
import json
import os
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest

from tests.target.conftest import MIB, Running, request, until
from tests.target.guest import (
    capacity,
    read_10,
    refusal,
    settle,
    write_10,
)
from vstore.dataplane import Volume
from vstore.target.client import TargetClient
from vstore.target.declaration import plain
from vstore.target.errors import ErrorCode, TargetError
from vstore.target.packet import Descriptors, encode
from vstore.target.process import TargetProcess
from vstore.target.verbs import (
    LARGEST_LENGTH,
    MOST_LUNS_PER_ANSWER,
    MOST_PARENTS,
    PROTOCOL,
    Configure,
    Empty,
    ImageSource,
    LunStatus,
    MapLun,
    ParentSource,
    Status,
    StatusRequest,
    VringStatus,
)


def test_guest_writes_through_to_the_file(target: Running, disk: Path) -> None:
    target.map_file(disk)
    target.configure()
    with target.device() as device:
        settle(device)
        write_10(device, 3, b"\x5a" * 1024)
        assert read_10(device, 4) == b"\x5a" * 512
    assert disk.read_bytes()[3 * 512 : 5 * 512] == b"\x5a" * 1024


def test_lun_mapped_after_configure_is_there_as_well(target: Running, disk: Path) -> None:
    target.configure()
    target.map_file(disk, lun=7)
    with target.device(lun=7) as device:
        settle(device)
        assert capacity(device) == 8 * MIB


def test_status_tells_configuration_luns_and_counters(target: Running, disk: Path) -> None:
    assert target.client.status().state == "new"
    target.configure(request_queues=2)
    target.map_file(disk)
    with target.device() as device:
        settle(device)
        read_10(device, 0, 8)
        target.event()
        status = target.client.status()
    assert status.state == "connected"
    assert status.pid == target.process.pid
    assert status.configuration == Configure(name="vm0", socket=target.socket, request_queues=2)
    assert [vring.vring for vring in status.vrings] == [0, 1, 2, 3]
    assert status.vrings[2].started
    assert not status.vrings[2].broken
    assert status.vrings[2].completed >= 2
    assert status.vrings[2].bytes_read >= 8 * 512
    assert [lun.settings for lun in status.luns] == [request(0, str(disk))]
    assert (status.luns[0].length, status.luns[0].read_only, status.luns[0].thin) == (8 * MIB, False, True)


def test_status_of_many_luns_comes_in_pages(target: Running) -> None:
    target.configure(request_queues=64)
    source = ImageSource(format="null", length=MIB, name="n" * 512)
    for lun in range(70):
        target.client.map_lun(request(lun, image=source))
    status = target.client.status()
    assert [lun.settings.lun for lun in status.luns] == list(range(70))
    assert len(status.vrings) == 66
    assert status.next_lun is None


def test_the_longest_status_fits_into_a_packet() -> None:
    most = 2**64 - 1
    vrings = VringStatus(
        **{field.name: most for field in fields(VringStatus)} | {"started": False, "enabled": False, "broken": False}
    )
    wide = "\U0001f4be"  # four bytes, the most of all characters
    parent = ParentSource(format="f" * 32, name=wide * 256, file=wide * 128, data_file=False)
    lun = LunStatus(
        settings=MapLun(
            target=255,
            lun=16383,
            image=ImageSource(
                format="f" * 32, length=LARGEST_LENGTH, name=wide * 512, parents=(parent,) * MOST_PARENTS
            ),
            vendor='"' * 8,
            product='"' * 16,
            serial='"' * 36,
            uuid="0" * 36,
        ),
        length=most,
        read_only=False,
        thin=False,
        in_flight=most,
    )
    status = Status(
        protocol=PROTOCOL,
        version="v" * 64,
        pid=2**31,
        state="connected",
        configuration=Configure(name=wide * 64, socket=wide * 4096, poll_us=1_000_000),
        vrings=(vrings,) * 66,
        luns=(lun,) * MOST_LUNS_PER_ANSWER,
        next_lun=2**22,
    )
    assert json.loads(encode({"id": 2**63 - 1, "ok": plain(status)}))["ok"]["luns"][0]["settings"]["lun"] == 16383


def test_file_name_that_is_no_text_comes_back_as_it_was(target: Running, tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"d\xff.raw")
    path.write_bytes(bytes(MIB))
    target.map_file(path)
    assert target.client.status().luns[0].settings.image.name == str(path)


async def test_status_answers_also_after_the_end(tmp_path: Path) -> None:
    process = TargetProcess()
    await process.configure(Configure(name="vm0", socket=str(tmp_path / "s")), Descriptors())
    await process.map_lun(request(0, image=ImageSource(format="null", length=MIB)), Descriptors())
    await process.end()
    status = await process.status(StatusRequest(), Descriptors())
    assert (status.state, status.luns, status.vrings) == ("stopping", (), ())


IMPOSSIBLE: list[tuple[Callable[[TargetClient], object], ErrorCode, str]] = [
    (lambda c: c.unmap_lun(3), ErrorCode.NO_SUCH_LUN, "LUN 0:3 has no image; those that have one: 0:0"),
    (lambda c: c.resize_lun(3, MIB), ErrorCode.NO_SUCH_LUN, "LUN 0:3 has no image"),
    (lambda c: c.resize_lun(0, 1000), ErrorCode.IMAGE_REFUSED, "1000 bytes are not a multiple of the 512-byte"),
    (lambda c: c.map_lun(request(0)), ErrorCode.LUN_EXISTS, "LUN 0:0 has an image; unmap it first"),
    (lambda c: c.map_lun(request(1)), ErrorCode.IMAGE_REFUSED, "raw images lie in a file"),
    (lambda c: c.map_lun(request(1, image=ImageSource(format="qcow9"))), ErrorCode.IMAGE_REFUSED, "'qcow9' is not"),
    (lambda c: c.configure(Configure(name="x", socket="/")), ErrorCode.ALREADY_CONFIGURED, "name is 'vm0' since"),
]


def test_impossible_verbs_are_refused_by_name(target: Running, disk: Path) -> None:
    target.configure()
    target.map_file(disk)
    for verb, code, sentence in IMPOSSIBLE:
        error = refusal(verb, target.client)
        assert (error.code, sentence in error.detail) == (code, True), error.detail


def test_configure_again_with_the_same_settings_is_no_change(target: Running) -> None:
    target.configure()
    target.configure()


def test_configure_that_fails_can_be_tried_again(target: Running, tmp_path: Path) -> None:
    bad = Configure(name="vm0", socket=str(tmp_path / "none" / "s"))
    assert refusal(target.client.configure, bad).code is ErrorCode.HOST_ERROR
    target.configure()
    target.device().close()


def test_descriptors_come_and_go_with_luns_and_frontends(target: Running, disk: Path) -> None:
    target.configure()
    with target.device():
        pass
    until(lambda: target.client.status().state == "listening")
    before = target.descriptors()
    for _ in range(3):
        target.map_file(disk)
        with target.device() as device:
            settle(device)
            write_10(device, 0, b"x" * 512)
            device.command(bytes([0x35, *bytes(9)]))
        target.client.unmap_lun(0)
    until(lambda: target.client.status().state == "listening")
    until(lambda: target.descriptors() == before)


async def test_failing_last_flush_is_told_and_everything_closed_all_the_same(
    disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed = []

    def fail(self: Volume) -> None:
        flushed.append(self)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    before = set(os.listdir("/proc/self/fd"))
    process = TargetProcess()
    await process.map_lun(request(0, "disk.raw"), Descriptors([os.open(disk, os.O_RDWR)]))
    await process.configure(Configure(name="vm0", socket=str(disk.with_suffix(".sock"))), Descriptors())
    monkeypatch.setattr(Volume, "flush", fail)
    with pytest.raises(
        TargetError, match=r"disk\.raw: the last flush failed, so writes since the one before may be lost"
    ):
        await process.stop(Empty(), Descriptors())
    assert len(flushed) == 1
    assert process.stopped.is_set()
    assert set(os.listdir("/proc/self/fd")) == before
    assert os.listdir(disk.parent) == [disk.name]
    with pytest.raises(TargetError, match="stopping"):
        await process.configure(Configure(name="vm0", socket="x"), Descriptors())
