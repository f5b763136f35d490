"""What the driver hears unasked, and what it is told when it could not hear."""

import struct
from collections.abc import AsyncIterator

import pytest

from tests.vhost_user.conftest import Rig, rig
from tests.vhost_user.driver import address, until
from vstore.dataplane import NoticeKind
from vstore.scsi.identity import Identity
from vstore.scsi.logical_unit import LogicalUnit
from vstore.scsi.medium import MemoryMedium
from vstore.vhost_user.event_queue import MOST_WAITING
from vstore.vhost_user.messages import Feature

TRANSPORT_RESET, PARAM_CHANGE = 1, 3
RESCAN, REMOVED = 1, 2
MISSED = 0x80000000


@pytest.fixture
async def device_rig() -> AsyncIterator[Rig]:
    async with rig() as made:
        made.endpoint.connected()
        made.endpoint.negotiated(Feature.HOTPLUG | Feature.CHANGE)
        yield made
        made.endpoint.disconnected()


def map_unit(device_rig: Rig, lun: int, target: int = 0) -> None:
    device_rig.endpoint.map_lun(target, lun, LogicalUnit(MemoryMedium(1 << 20), Identity(f"{lun}")), None)


def events(device_rig: Rig) -> list[tuple[int, bytes, int]]:
    return [struct.unpack("<I8sI", event) for event in device_rig.device.events]


async def test_a_new_unit_is_told_as_a_rescan(device_rig: Rig) -> None:
    device_rig.device.event_room = 1
    map_unit(device_rig, lun=300, target=7)
    assert events(device_rig) == [(TRANSPORT_RESET, address(target=7, lun=300), RESCAN)]


async def test_a_unit_that_goes_is_told_as_removed(device_rig: Rig) -> None:
    device_rig.device.event_room = 1
    await device_rig.endpoint.unmap_lun(0, 0)
    assert events(device_rig) == [(TRANSPORT_RESET, address(), REMOVED)]


async def test_another_capacity_is_told_by_its_additional_sense_code(device_rig: Rig) -> None:
    device_rig.device.event_room = 1
    device_rig.medium.data.extend(bytes(1 << 20))
    device_rig.endpoint.capacity_changed(0, 0)
    assert events(device_rig) == [(PARAM_CHANGE, address(), 0x092A)]


@pytest.mark.parametrize("features", [Feature(0), Feature.CHANGE, Feature.HOTPLUG])
async def test_a_driver_hears_only_what_it_asked_for(device_rig: Rig, features: Feature) -> None:
    device_rig.endpoint.negotiated(features)
    device_rig.device.event_room = 9
    map_unit(device_rig, lun=1)
    device_rig.endpoint.capacity_changed(0, 0)
    kinds = [kind for kind, _, _ in events(device_rig)]
    wanted = [TRANSPORT_RESET] * (Feature.HOTPLUG in features) + [PARAM_CHANGE] * (Feature.CHANGE in features)
    assert kinds == wanted


async def test_events_wait_for_the_drivers_buffers(device_rig: Rig) -> None:
    map_unit(device_rig, lun=1)
    map_unit(device_rig, lun=2)
    device_rig.device.event_room = 1
    device_rig.device.notify(NoticeKind.EVENTS, 1)
    await until(lambda: len(device_rig.device.events) == 1)
    device_rig.device.event_room = 5
    device_rig.device.notify(NoticeKind.EVENTS, 1)
    await until(lambda: len(device_rig.device.events) == 2)
    assert [lun for _, lun, _ in events(device_rig)] == [address(lun=1), address(lun=2)]


async def test_the_same_event_does_not_wait_twice(device_rig: Rig) -> None:
    for _ in range(5):
        device_rig.endpoint.capacity_changed(0, 0)
    device_rig.device.event_room = 9
    device_rig.device.notify(NoticeKind.EVENTS, 1)
    await until(lambda: device_rig.device.events)
    assert len(device_rig.device.events) == 1


async def test_events_that_were_lost_are_told_as_missed_once(device_rig: Rig) -> None:
    for lun in range(1, MOST_WAITING + 10):
        map_unit(device_rig, lun)
    device_rig.device.event_room = 1000
    device_rig.device.notify(NoticeKind.EVENTS, 1)
    await until(lambda: len(device_rig.device.events) == MOST_WAITING)
    kinds = [kind for kind, _, _ in events(device_rig)]
    assert kinds == [TRANSPORT_RESET | MISSED] + [TRANSPORT_RESET] * (MOST_WAITING - 1)


async def test_an_event_queue_that_broke_holds_up_nothing(device_rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: bytes) -> bool:
        raise OSError(71, "the driver lies")

    monkeypatch.setattr(device_rig.device, "event_send", broken)
    map_unit(device_rig, lun=1)
    assert 1 in device_rig.endpoint.targets[0].luns


async def test_a_driver_that_begins_anew_hears_nothing_old(device_rig: Rig) -> None:
    map_unit(device_rig, lun=1)
    device_rig.endpoint.reset()
    device_rig.device.event_room = 9
    device_rig.device.notify(NoticeKind.EVENTS, 1)
    map_unit(device_rig, lun=2)
    await until(lambda: device_rig.device.events)
    assert [lun for _, lun, _ in events(device_rig)] == [address(lun=2)]
