"""Guest memory: regions that come and go, one by one or by tables, while rings run."""

import os

import pytest

from tests.vhost_user.conftest import Rig
from tests.vhost_user.driver import until
from tests.vhost_user.frontend import Frontend, alive

GIB = 1 << 30


async def test_memory_comes_and_goes_region_by_region(device_rig: Rig, frontend: Frontend) -> None:
    await frontend.negotiate()
    assert await frontend.add_memory() == 0
    assert await frontend.add_memory(GIB, user=GIB, offset=0x200000) == 0
    assert await frontend.tell("REM_MEM_REG", 0, 0, 0x200000, 0x7F0000000000, 99) == 0
    assert list(device_rig.device.regions) == [(GIB, 0x200000, GIB)]


async def test_removing_memory_may_carry_a_descriptor_which_is_closed(frontend: Frontend) -> None:
    await frontend.negotiate()
    await frontend.add_memory()
    before = len(os.listdir("/proc/self/fd"))
    numbers = (0, 0, 0x200000, 0x7F0000000000, 0)
    assert await frontend.tell("REM_MEM_REG", *numbers, descriptors=[frontend.memory]) == 0
    assert len(os.listdir("/proc/self/fd")) == before - 1


@pytest.mark.parametrize(
    ("guest", "size", "user", "offset"),
    [
        (0, 0x200000, GIB, 0),
        (0x1FF000, 0x1000, GIB, 0),
        (GIB, 0x1000, 0x7F00001FF000, 0),
        ((1 << 64) - 0x1000, 0x2000, GIB, 0),
        (GIB, GIB, GIB, 0),
        (GIB, 0x1000, GIB, 0x400000),
    ],
    ids=["same guest address", "overlap by guest", "overlap by user", "wraps", "file too short", "behind the file"],
)
async def test_a_region_that_cannot_be_is_refused(
    frontend: Frontend, guest: int, size: int, user: int, offset: int
) -> None:
    await frontend.negotiate()
    assert await frontend.add_memory() == 0
    assert await frontend.add_memory(guest, size, user, offset) == 1


async def test_a_new_table_leaves_alone_what_both_tables_have(device_rig: Rig, frontend: Frontend) -> None:
    await frontend.negotiate()
    kept = (0, 0x200000, 0x7F0000000000, 0)
    memory = frontend.memory
    assert await frontend.tell("SET_MEM_TABLE", 1, 0, *kept, descriptors=[memory]) == 0
    frontend.start_ring(2)
    await frontend.settled()
    device_rig.device.calls.clear()
    assert await frontend.tell("SET_MEM_TABLE", 1, 0, *kept, descriptors=[memory]) == 0
    assert await frontend.tell("SET_MEM_TABLE", 2, 0, *kept, GIB, 4096, GIB, 0, descriptors=[memory] * 2) == 0
    assert [call[0] for call in device_rig.device.calls] == ["memory_add"], "no ring was stopped for it"


async def test_a_region_of_another_file_replaces_the_old_one(device_rig: Rig, frontend: Frontend) -> None:
    await frontend.negotiate()
    region = (0, 0x200000, 0x7F0000000000, 0)
    assert await frontend.tell("SET_MEM_TABLE", 1, 0, *region, descriptors=[frontend.memory]) == 0
    other = os.memfd_create("other")
    os.truncate(other, 0x200000)
    device_rig.device.calls.clear()
    assert await frontend.tell("SET_MEM_TABLE", 1, 0, *region, descriptors=[other]) == 0
    os.close(other)
    assert [call[0] for call in device_rig.device.calls] == ["memory_remove", "memory_add"]


@pytest.mark.parametrize("count", [1, 3])
async def test_a_table_with_a_wrong_number_of_descriptors_is_refused(frontend: Frontend, count: int) -> None:
    await frontend.negotiate()
    regions = (0, 4096, 0, 0, GIB, 4096, GIB, 0)
    assert await frontend.tell("SET_MEM_TABLE", 2, 0, *regions, descriptors=[frontend.memory] * count) == 1


async def test_a_table_that_names_a_region_twice_is_refused(frontend: Frontend) -> None:
    await frontend.negotiate()
    regions = (0, 4096, 0, 0) * 2
    assert await frontend.tell("SET_MEM_TABLE", 2, 0, *regions, descriptors=[frontend.memory] * 2) == 1


async def test_rings_stand_still_while_memory_goes_and_run_on_afterwards(device_rig: Rig, frontend: Frontend) -> None:
    device = device_rig.device
    await frontend.negotiate()
    await frontend.add_memory()
    await frontend.add_memory(GIB, user=GIB)
    frontend.start_ring(2)
    await frontend.settled()
    device.rings[2].in_flight = 1
    device.calls.clear()
    frontend.send("REM_MEM_REG", 0, GIB, 0x200000, GIB, 0, need_reply=True)
    await until(lambda: not device.rings[2].started)
    assert (GIB, 0x200000, GIB) in device.regions, "a request may still point there"
    device.finish(2)
    assert (await frontend.receive())[1] == bytes(8)
    assert device.rings[2].started
    assert [call[0] for call in device.calls] == ["vring_stop", "memory_remove", "vring_start"]


async def test_a_broken_ring_is_not_revived_by_a_change_of_memory(device_rig: Rig, frontend: Frontend) -> None:
    await frontend.negotiate()
    await frontend.add_memory()
    await frontend.add_memory(GIB, user=GIB)
    frontend.start_ring(2)
    await frontend.settled()
    device_rig.device.vring_break(2)
    assert await frontend.tell("REM_MEM_REG", 0, GIB, 0x200000, GIB, 0) == 0
    assert not device_rig.device.rings[2].started


async def test_memory_that_a_ring_lies_in_can_go_and_costs_only_that_ring(device_rig: Rig, frontend: Frontend) -> None:
    await frontend.negotiate()
    await frontend.add_memory()
    frontend.start_ring(2)
    assert await frontend.tell("REM_MEM_REG", 0, 0, 0x200000, 0x7F0000000000, 0) == 0
    assert not device_rig.device.rings[2].started
    assert await alive(frontend)


async def test_a_broken_ring_does_not_come_back_because_memory_changed(device_rig: Rig, frontend: Frontend) -> None:
    await frontend.negotiate()
    await frontend.add_memory()
    kept = (0, 0x200000, 0x7F0000000000, 0)
    assert await frontend.tell("SET_MEM_TABLE", 2, 0, *kept, GIB, 4096, GIB, 0, descriptors=[frontend.memory] * 2) == 0
    for vring in (2, 3):
        frontend.start_ring(vring)
    await frontend.settled()
    device_rig.device.vring_break(2)
    assert await frontend.tell("SET_MEM_TABLE", 1, 0, *kept, descriptors=[frontend.memory]) == 0
    assert [device_rig.device.rings[vring].started for vring in (2, 3)] == [False, True]
    frontend.send("SET_VRING_KICK", 2 | 0x100)
    await frontend.settled()
    assert device_rig.device.rings[2].started
