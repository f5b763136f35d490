"""What a test's guest does with its disk."""

from collections.abc import Callable

import pytest

from vstore.client import VstoreDevice
from vstore.target.errors import TargetError

GOOD, CHECK_CONDITION = 0x00, 0x02
TEST_UNIT_READY = bytes(6)
READ_ALL = bytes([0x28, 0, 0, 0, 0, 0, 0, 0, 128, 0])  # READ (10) of 64 KiB


def settle(device: VstoreDevice) -> None:
    """Takes the unit attentions that a new nexus starts with."""
    while device.command(TEST_UNIT_READY).status == CHECK_CONDITION:
        pass


def write_10(device: VstoreDevice, lba: int, data: bytes) -> None:
    blocks = len(data) // 512
    cdb = bytes([0x2A, 0, *lba.to_bytes(4, "big"), 0, *blocks.to_bytes(2, "big"), 0])
    assert device.command(cdb, data_out=data).status == GOOD


def read_10(device: VstoreDevice, lba: int, blocks: int = 1) -> bytes:
    cdb = bytes([0x28, 0, *lba.to_bytes(4, "big"), 0, *blocks.to_bytes(2, "big"), 0])
    result = device.command(cdb, data_in_length=512 * blocks)
    assert result.status == GOOD
    return result.data_in


def capacity(device: VstoreDevice) -> int:
    """READ CAPACITY (16), in bytes."""
    data = device.command(bytes([0x9E, 0x10, *bytes(11), 32, 0, 0]), data_in_length=32).data_in
    return (int.from_bytes(data[:8], "big") + 1) * int.from_bytes(data[8:12], "big")


def refusal(call: Callable[..., object], *arguments: object) -> TargetError:
    with pytest.raises(TargetError) as caught:
        call(*arguments)
    return caught.value
