import asyncio
import json
import os
import stat
from base64 import b64encode
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from formats.registry import create_image, open_chain
from vstore.scsi.atomic_writes import Intent
from vstore.scsi.commands import (
    Inquiry,
    ModeSelect6,
    ModeSense6,
    ReportIdentifyingInformation,
    SetIdentifyingInformation,
    WriteAtomic16,
)
from vstore.scsi.task import BytesOut, ITNexus, Response, Status, Task, TaskAttribute
from vstore.target.errors import TargetError
from vstore.target.export import _state, state_beside
from vstore.target.lun import MappedLun
from vstore.target.verbs import ImageSource, MapLun

SETTINGS = MapLun(lun=0, image=ImageSource(format="raw"), serial="kept")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    create_image("raw", tmp_path / "disk", 1 << 20)
    return tmp_path / "disk"


async def mapped(image: Path) -> MappedLun:
    return await MappedLun.open(SETTINGS, lambda: open_chain("raw", image), state_beside(image))


def bytes_of(image: Path) -> bytes:
    return image.read_bytes()


async def sent(lun: MappedLun, cdb: bytes, data_out: bytes = b"") -> bytes:
    nexus = ITNexus("test")
    lun.unit.add_nexus(nexus)
    lun.unit.attentions.take(nexus)
    task = Task(nexus, 0, 1, TaskAttribute.SIMPLE, cdb, BytesOut(data_out), 4096)
    work: Coroutine[Any, Any, Response] = lun.unit.execute(task)
    response = await work
    assert response.status is Status.GOOD, response.sense.hex()
    return response.data_in


async def test_a_name_and_saved_modes_outlive_the_process(image: Path) -> None:
    lun = await mapped(image)
    await sent(lun, SetIdentifyingInformation.build(parameter_list_length=3), b"one")
    page = bytes(4) + bytes.fromhex("0812") + bytes(18)  # caching, without WCE
    await sent(lun, ModeSelect6.build(pf=1, sp=1, parameter_list_length=len(page)), page)
    await lun.close()
    lun = await mapped(image)
    assert await sent(lun, ReportIdentifyingInformation.build(allocation_length=64)) == b"\0\0\0\3one"
    asked = ModeSense6.build(dbd=1, page_code=8, allocation_length=64)
    assert (await sent(lun, asked))[4:7].hex(" ") == "88 12 00"
    await lun.close()


async def test_an_atomic_write_that_a_loss_of_power_broke_off_is_completed_before_the_disk_is_served(
    image: Path,
) -> None:
    lun = await mapped(image)
    await sent(lun, WriteAtomic16.build(lba=8, transfer_length=2), b"\x11" * 1024)
    limits = await sent(lun, Inquiry.build(evpd=1, page_code=0xB0, allocation_length=64))
    assert int.from_bytes(limits[44:48]) == 256
    intent = Intent.of(4096, b"\x11" * 1024, b"\x22" * 1024)
    told = [{"offset": 4096, "new": b64encode(intent.new).decode(), "old": intent.old}]
    await asyncio.to_thread(lun.unit.atomic_writes._section.save_blocking, json.dumps(told).encode())  # type: ignore[union-attr]
    await lun.close()
    with image.open("r+b") as file:
        file.seek(4608)
        file.write(b"\x22" * 512)
    lun = await mapped(image)
    await lun.close()
    assert bytes_of(image)[4096:5120] == b"\x22" * 1024


async def test_nothing_is_left_beside_an_image_of_which_nothing_was_kept(image: Path) -> None:
    lun = await mapped(image)
    await lun.close()
    assert [path.name for path in image.parent.iterdir()] == ["disk"]


async def test_the_file_is_its_owners_alone(image: Path) -> None:
    lun = await mapped(image)
    await sent(lun, SetIdentifyingInformation.build(parameter_list_length=1), b"x")
    await lun.close()
    assert image.with_name("disk.vstore-state").stat().st_mode & 0o777 == 0o600


async def test_a_link_in_place_of_the_file_is_not_followed(image: Path) -> None:
    os.symlink("/etc/passwd", f"{image}.vstore-state")
    with pytest.raises(TargetError, match="symbolic link"):
        await mapped(image)


def test_nothing_is_promised_beside_a_device_whose_directory_is_empty_after_a_boot(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _state(image)
    device = os.stat_result([stat.S_IFBLK | 0o600, *os.stat(image)[1:]])
    monkeypatch.setattr(os, "stat", lambda _: device)
    assert _state(image) is None


def test_a_disk_that_is_only_read_keeps_nothing_which_another_could_lose(image: Path) -> None:
    assert _state(image, read_only=True) is None


def test_two_names_of_one_image_have_one_state(image: Path) -> None:
    link = image.with_name("link")
    link.symlink_to(image)
    opener = _state(link)
    assert opener
    descriptor = opener(True)
    assert descriptor is not None
    os.close(descriptor)
    assert sorted(path.name for path in image.parent.iterdir()) == ["disk", "disk.vstore-state", "link"]
