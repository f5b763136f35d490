"""One image behind several targets, with real processes: what the machines reserve outlives the process that dies."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.store.world import MIB, World
from vstore.client import VstoreDevice
from vstore.store import Store
from vstore.store.errors import InUse, InvalidArgument
from vstore.target.spawn import spawn

TUR, READ, WRITE = bytes(6), bytes.fromhex("28000000000000000100"), bytes.fromhex("2a000000000000000100")
GOOD, CHECK, CONFLICT = 0x00, 0x02, 0x18
EA_RO = 6


class RealWorld(World):
    def spawn(self, control: str, log: Path) -> subprocess.Popen[bytes]:
        child = spawn(control, log)
        self.children.append(child)
        return child


@pytest.fixture
def world() -> Iterator[RealWorld]:
    made = RealWorld()
    yield made
    for store in list(made.stores):
        made.close_store(store, stop_targets=True)
    made.close()


@pytest.fixture
def store(world: RealWorld) -> Store:
    return world.open()


@pytest.fixture
def pair(store: Store) -> Store:
    """Targets vm0 and vm1 of one process, and vm2 of another; an image that the first two share."""
    store.create_image("default", "data", virtual_size_bytes=MIB)
    store.create_target("vm0")
    store.create_target("vm1", beside="vm0")
    store.create_target("vm2")
    for target in ("vm0", "vm1"):
        store.map_lun(target, "0", image="data", shared=True)
    return store


def machine(store: Store, target: str) -> VstoreDevice:
    """Connected, and told of what waited."""
    deadline = time.monotonic() + 20
    while True:
        try:
            device = VstoreDevice(store.show_target(target).socket, timeout=10)
            break
        except Exception:  # whatever a socket that is not served yet says
            assert time.monotonic() < deadline
            time.sleep(0.1)
    while device.command(TUR).status == CHECK:
        pass
    return device


def out(device: VstoreDevice, action: int, key: int, action_key: int = 0, flags: int = 0) -> int:
    data = key.to_bytes(8) + action_key.to_bytes(8) + bytes([0, 0, 0, 0, flags, 0, 0, 0])
    return device.command(bytes([0x5F, action, EA_RO, 0, 0, 0, 0, 0, 24, 0]), data).status


def state_file(store: Store) -> Path:
    (found,) = store.pool("default").directory.glob("*.vstore-state")
    return found


def test_targets_beside_each_other_have_one_process_and_ports_of_their_own(pair: Store) -> None:
    one, other, apart = (pair.show_target(name) for name in ("vm0", "vm1", "vm2"))
    assert one.process.pid == other.process.pid != apart.process.pid
    assert [(each.beside, each.port) for each in (one, other, apart)] == [(None, 1), ("vm0", 2), (None, 1)]
    assert one.socket != other.socket


def test_what_one_machine_writes_the_other_reads(pair: Store) -> None:
    with machine(pair, "vm0") as one, machine(pair, "vm1") as other:
        assert one.command(WRITE, b"\x5a" * 512).status == GOOD
        assert other.command(READ, data_in_length=512).data_in == b"\x5a" * 512


def test_reservations_outlive_kill_minus_nine(pair: Store) -> None:
    with machine(pair, "vm0") as one, machine(pair, "vm1") as other:
        assert out(one, 0, 0, 1, flags=1) == GOOD
        assert out(one, 1, 1) == GOOD
        assert other.command(READ, data_in_length=512).status == CONFLICT
    pid = pair.show_target("vm0").process.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    until(lambda: {pair.show_target(name).process.pid for name in ("vm0", "vm1")}.isdisjoint({pid, None}))
    until(lambda: not any(pair.show_target(name).process.problem for name in ("vm0", "vm1")))
    with machine(pair, "vm0") as one, machine(pair, "vm1") as other:
        assert other.command(READ, data_in_length=512).status == CONFLICT
        assert one.command(READ, data_in_length=512).status == GOOD
        assert out(other, 0, 0, 2, flags=1) == GOOD
        assert out(other, 4, 2, 1) == GOOD
        while one.command(TUR).status == CHECK:
            pass
        assert one.command(READ, data_in_length=512).status == CONFLICT


def test_what_was_kept_goes_with_the_image(pair: Store) -> None:
    with machine(pair, "vm0") as one:
        assert out(one, 0, 0, 1, flags=1) == GOOD
    assert state_file(pair).stat().st_size
    pair.unmap_lun("vm0", "0")
    with machine(pair, "vm1") as other:
        assert other.command(READ, data_in_length=512).status == GOOD
    pair.unmap_lun("vm1", "0")
    assert state_file(pair).stat().st_size
    pair.delete_image("default", "data")
    assert not list(pair.pool("default").directory.iterdir())


def test_where_nothing_was_kept_nothing_stays(pair: Store) -> None:
    assert state_file(pair).stat().st_size == 0
    pair.unmap_lun("vm0", "0")
    assert state_file(pair).stat().st_size == 0
    pair.unmap_lun("vm1", "0")
    assert not list(pair.pool("default").directory.glob("*.vstore-state"))


@pytest.mark.parametrize(
    ("attempt", "says"),
    [
        (lambda store: store.map_lun("vm2", "0", image="data", shared=True), "served by another process"),
        (lambda store: store.map_lun("vm1", "1", image="data", shared=True), "a shared image once"),
        (lambda store: store.map_lun("vm2", "0", image="data"), "shared True"),
        (lambda store: store.map_lun("vm2", "0", image="data", read_only=True), "shared True"),
        (lambda store: store.map_lun("vm1", "1", image="data", shared=True, direct=True), "direct False"),
        (lambda store: store.delete_target("vm1"), "unmap it first"),
    ],
)
def test_what_cannot_be_shared_is_refused(pair: Store, attempt: Callable[[Store], object], says: str) -> None:
    with pytest.raises(InUse, match=says):
        attempt(pair)


def test_a_second_writer_without_the_flag_is_refused(store: Store) -> None:
    store.create_image("default", "data", virtual_size_bytes=MIB)
    store.create_target("vm0")
    store.create_target("vm1", beside="vm0")
    store.map_lun("vm0", "0", image="data")
    for shared in (False, True):
        with pytest.raises(InUse):
            store.map_lun("vm1", "0", image="data", shared=shared)


def test_a_target_is_served_only_by_one_that_has_a_process(pair: Store) -> None:
    for name, beside in (("vm3", "vm1"), ("vm3", "vm3"), ("vm3", "nobody")):
        with pytest.raises(InvalidArgument):
            pair.create_target(name, beside=beside)
    pair.unmap_lun("vm0", "0")
    with pytest.raises(InUse, match="vm1"):
        pair.delete_target("vm0")
    pair.unmap_lun("vm1", "0")
    pair.delete_target("vm1")
    assert pair.create_target("vm4", beside="vm0")[0].port == 2
    pair.delete_target("vm4")
    pair.delete_target("vm0")


def test_asking_again_changes_nothing(pair: Store) -> None:
    assert pair.create_target("vm1", beside="vm0")[1] is False
    assert pair.map_lun("vm1", "0", image="data", shared=True)[1] is False


def test_a_new_daemon_takes_both_over(world: RealWorld, pair: Store) -> None:
    pids = [pair.show_target(name).process.pid for name in ("vm0", "vm1")]
    with machine(pair, "vm1") as other:
        world.close_store(pair, stop_targets=False)
        again = world.open()
        until(lambda: all(again.show_target(name).process.pid for name in ("vm0", "vm1")))
        assert [again.show_target(name).process.pid for name in ("vm0", "vm1")] == pids
        assert other.command(READ, data_in_length=512).status == GOOD
        again.unmap_lun("vm0", "0")
        told = other.command(READ, data_in_length=512).sense
        assert (told[2], told[12], told[13]) == (6, 0x3F, 0x03)  # one port less: INQUIRY DATA HAS CHANGED
        assert other.command(READ, data_in_length=512).status == GOOD
    world.close_store(again, stop_targets=True)
    world.open()


def test_a_disk_that_grows_is_told_to_all(pair: Store) -> None:
    with machine(pair, "vm1") as other:
        pair.update_image("default", "data", virtual_size_bytes=2 * MIB)
        told = other.command(TUR)
        assert (told.status, told.sense[12:14]) == (CHECK, b"\x2a\x09")


def until(condition: Callable[[], object], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.05)
