"""A virtio-scsi driver for tests of the endpoint: requests laid out by struct, answers taken apart the same way."""

import asyncio
import struct
from collections.abc import Callable
from dataclasses import dataclass

from tests.vhost_user.conftest import Rig
from tests.vhost_user.fake_device import FakeRequest

TEST_UNIT_READY = bytes(6)
REQUEST_QUEUE = 2


def address(target: int = 0, lun: int = 0) -> bytes:
    return bytes((1, target, 0x40 | lun >> 8, lun & 0xFF, 0, 0, 0, 0))


def command(cdb: bytes, *, lun: bytes | None = None, tag: int = 0, attribute: int = 0) -> bytes:
    return struct.pack("<8sQBBB32s", address() if lun is None else lun, tag, attribute, 0, 0, cdb)


def read10(lba: int, blocks: int) -> bytes:
    return struct.pack(">BBIBHB", 0x28, 0, lba, 0, blocks, 0)


def write10(lba: int, blocks: int) -> bytes:
    return struct.pack(">BBIBHB", 0x2A, 0, lba, 0, blocks, 0)


def management(function: int, *, lun: bytes | None = None, tag: int = 0) -> bytes:
    return struct.pack("<II8sQ", 0, function, address() if lun is None else lun, tag)


@dataclass
class Answer:
    """struct virtio_scsi_cmd_resp."""

    residual: int
    status: int
    code: int
    sense: bytes

    @property
    def additional(self) -> tuple[int, int, int]:
        """Sense key, ASC and ASCQ of fixed format sense data."""
        return self.sense[2] & 0xF, self.sense[12], self.sense[13]


def answer(request: FakeRequest) -> Answer:
    assert request.response is not None, "not answered"
    length, residual, qualifier, status, code, sense = struct.unpack("<IIHBB96s", request.response)
    assert not any(sense[length:])
    assert qualifier == 0
    return Answer(residual, status, code, sense[:length])


async def until(true: Callable[[], object], *, limit: int = 2000) -> None:
    for _ in range(limit):
        if true():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("it never became true")


async def answered(request: FakeRequest) -> FakeRequest:
    await until(lambda: request.response is not None)
    return request


async def ask(
    rig: Rig, cdb: bytes, *, data_out: bytes = b"", room: int = 0, lun: bytes | None = None, tag: int = 0
) -> FakeRequest:
    """One command, answered."""
    return await answered(rig.device.fetch(REQUEST_QUEUE, command(cdb, lun=lun, tag=tag), data_out, room))


async def manage(rig: Rig, function: int, *, lun: bytes | None = None, tag: int = 0) -> int:
    """One task management function; the code of its answer."""
    request = await answered(rig.device.fetch(0, management(function, lun=lun, tag=tag), response=1))
    assert request.response is not None
    return request.response[0]


async def clear_attention(rig: Rig, lun: bytes | None = None) -> None:
    while answer(await ask(rig, TEST_UNIT_READY, lun=lun)).status:
        pass
