"""Several queues, targets, LUNs and block lengths at once; reset, power loss, and a second machine on one socket."""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.guest.backend import Daemon, Export
from tests.guest.disks import attribute, find_disk, generic
from tests.guest.guest import Guest
from tests.guest.outside import make_ext4, make_image, read_ext4

MIB = 1 << 20
TARGET = "wide"
QUEUES = 3
READ_ONLY_FILE = "written by the host\n"

pytestmark = pytest.mark.usefixtures("quiet_kernel")


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with Daemon(tmp_path_factory.mktemp("wide")) as running:
        running.create_target(TARGET, queues=QUEUES)
        for name, address, settings in (
            ("plain", "0", {}),
            ("large-blocks", "1", {"logical_block_length_bytes": 4096}),
            ("frozen", "2", {"read_only": True}),
            ("other", "1:0", {}),
            ("far", "255:16383", {}),
        ):
            path = running.create_image(name, 64)
            if name == "frozen":
                fill_by_host(path)
            running.map_lun(TARGET, address, name, serial=name, **settings)
        yield running


@pytest.fixture(scope="module")
def guest(daemon: Daemon) -> Iterator[Guest]:
    with Guest(daemon.directory, [daemon.controller(TARGET, queues=QUEUES)], cpus=QUEUES) as running:
        yield running.boot()


def fill_by_host(path: Path) -> None:
    """An ext4 made on the host, with one file."""
    tree = path.parent / "tree"
    tree.mkdir()
    (tree / "file").write_text(READ_ONLY_FILE)
    make_ext4(path, tree)


def on_each_cpu(guest: Guest, command: Callable[[int], str]) -> None:
    """Run a command on every processor at once; all must succeed."""
    jobs = [f"taskset -c {cpu} {command(cpu)} || touch /run/failed" for cpu in range(QUEUES)]
    guest.check("( " + " ) & ( ".join(jobs) + " ) & wait; [ ! -e /run/failed ]")


def request_interrupts(guest: Guest) -> list[int]:
    """How often each request queue has interrupted, summed over the processors."""
    lines = (line.split() for line in guest.check("cat /proc/interrupts").splitlines() if line.endswith("-request"))
    return [sum(int(word) for word in line[1 : QUEUES + 1]) for line in lines]


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("serial", "address"),
    [
        ("plain", "0:0"),
        ("large-blocks", "0:1"),
        ("frozen", "0:2"),
        ("other", "1:0"),
        ("far", f"255:{0x4000 | 16383}"),
    ],  # Linux shows SAM-5 4.7.7.3 flat addresses as they are,
)
def test_each_lun_is_where_it_was_mapped(guest: Guest, serial: str, address: str) -> None:
    disk = find_disk(guest, serial)
    link = guest.check(f"readlink /sys/block/{disk.removeprefix('/dev/')}/device").strip()
    assert link.endswith(f"/0:0:{address}")  # host:channel:target:lun


def test_a_reset_guest_finds_all_its_disks_and_data_again(guest: Guest) -> None:
    guest.check(f"echo before >/tmp/text && dd if=/tmp/text of={find_disk(guest, 'other')} conv=fsync,notrunc")
    guest.reset()  # early: the tests below then show that a machine that was reset lacks nothing
    serials = ("plain", "large-blocks", "frozen", "other", "far")
    disks = {serial: find_disk(guest, serial) for serial in serials}
    assert guest.check(f"head -n 1 {disks['other']}") == "before\n"
    guest.check(f"dd if={disks['plain']} of=/dev/null bs=1M count=16 iflag=direct")


def test_every_request_queue_carries_commands(guest: Guest) -> None:
    disk = find_disk(guest, "plain")
    assert len(guest.check(f"ls /sys/block/{disk.removeprefix('/dev/')}/mq").split()) == QUEUES
    guest.check(f"dd if=/dev/urandom of=/tmp/data bs=1M count={QUEUES}")
    piece = "dd bs=64k count=16"  # each processor has its own queue and writes one MiB; its neighbour reads it back
    on_each_cpu(guest, lambda cpu: f"{piece} if=/tmp/data of={disk} skip={cpu * 16} seek={cpu * 16} oflag=direct")
    on_each_cpu(guest, lambda cpu: f"{piece} if={disk} of=/tmp/part{cpu} skip={(cpu + 1) % QUEUES * 16} iflag=direct")
    guest.check("cat /tmp/part2 /tmp/part0 /tmp/part1 | cmp - /tmp/data")
    assert len(interrupts := request_interrupts(guest)) == QUEUES
    assert all(interrupts)


def test_large_blocks_hold_a_filesystem(guest: Guest, daemon: Daemon) -> None:
    disk = find_disk(guest, "large-blocks")
    assert attribute(guest, disk, "queue/logical_block_size") == "4096"
    guest.check(f"mkfs.ext4 -q {disk} && mount {disk} /mnt && seq 100000 >/mnt/numbers && umount /mnt", timeout=60)
    guest.check(f"fsck.ext4 -fn {disk}")
    read = read_ext4(daemon.image_path("large-blocks"), "/numbers")
    assert read == "".join(f"{n}\n" for n in range(1, 100_001)).encode()


def test_a_read_only_disk_is_read_and_never_written(guest: Guest, daemon: Daemon) -> None:
    disk = find_disk(guest, "frozen")
    before = sha256(daemon.image_path("frozen"))
    assert attribute(guest, disk, "ro") == "1"
    assert guest.check(f"mount -o ro {disk} /mnt && cat /mnt/file && umount /mnt") == READ_ONLY_FILE
    assert guest.run(f"dd if=/dev/zero of={disk} count=1 conv=fsync").status == 1
    refused = guest.run(f"sg_write_same --16 --lba=0 --num=1 --xferlen=512 {generic(guest, disk)}")
    assert refused.status == 7  # SG_LIB_CAT_DATA_PROTECT
    assert guest.disk_trouble() == []
    assert sha256(daemon.image_path("frozen")) == before


def test_two_targets_keep_their_data_apart(guest: Guest, daemon: Daemon) -> None:
    for serial in ("other", "far"):
        guest.check(f"echo {serial} >/tmp/name && dd if=/tmp/name of={find_disk(guest, serial)} conv=fsync,notrunc")
    for serial in ("other", "far"):
        assert daemon.image_path(serial).read_bytes().startswith(f"{serial}\n".encode())


def test_a_second_machine_takes_over_the_socket_of_one_that_lost_power(tmp_path: Path) -> None:
    image = make_image(tmp_path / "disk.raw", 64)
    with Export(image, "--serial", "SHARED") as export:
        with Guest(tmp_path / "first", [export.controller()]) as first:
            disk = find_disk(first.boot(), "SHARED")
            first.check(f"echo durable >/tmp/text && dd if=/tmp/text of={disk} conv=fsync,notrunc")
            first.check(f"( while dd if={disk} of=/dev/null bs=64k iflag=direct; do :; done ) >/dev/null 2>&1 &")
            first.quit()
        with Guest(tmp_path / "second", [export.controller()]) as second:
            disk = find_disk(second.boot(), "SHARED")
            assert second.check(f"head -n 1 {disk}") == "durable\n"
            second.check(f"echo second >/tmp/text && dd if=/tmp/text of={disk} conv=fsync,notrunc")
            assert second.disk_trouble() == []
            second.shutdown()
    assert image.read_bytes().startswith(b"second\n")
