"""LUNs that come, grow and go over the REST API while the guest runs; nobody in the guest asks for a rescan."""

from collections.abc import Iterator

import pytest

from tests.guest.backend import Daemon
from tests.guest.disks import find_disk, has_disk
from tests.guest.guest import Guest

MIB = 1 << 20
TARGET = "vm0"
LAST_SECTORS = "bs=512 count=8 skip={sector} iflag=direct"

pytestmark = pytest.mark.usefixtures("quiet_kernel")


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with Daemon(tmp_path_factory.mktemp("hot")) as running:
        running.create_target(TARGET)
        running.create_image("first", 32)
        running.map_lun(TARGET, "0", "first", serial="FIRST")
        yield running


@pytest.fixture(scope="module")
def guest(daemon: Daemon) -> Iterator[Guest]:
    with Guest(daemon.directory, [daemon.controller(TARGET)]) as running:
        running.boot()
        find_disk(running, "FIRST")
        yield running


def wait_gone(guest: Guest, disk: str) -> None:
    guest.wait_until(f"[ ! -e {disk} ] && [ ! -e /sys/block/{disk.removeprefix('/dev/')} ]")


def forget_failed_flush(guest: Guest) -> None:
    """sd flushes a disk that it is told to forget; the LUN is gone by then, and the kernel says so."""
    allowed = ("Synchronize Cache(10) failed", "Sense Key : Illegal Request", "Add. Sense: Logical unit not supported")
    assert [line for line in guest.disk_trouble() if not any(words in line for words in allowed)] == []


@pytest.mark.parametrize("address", ["1", "2:0", "2:300"])
def test_a_hot_added_lun_appears_and_a_removed_one_goes_away(guest: Guest, daemon: Daemon, address: str) -> None:
    name = f"hot-{address.replace(':', '-')}"
    path = daemon.create_image(name, 16)
    daemon.map_lun(TARGET, address, name, serial=name)
    disk = find_disk(guest, name)
    assert guest.check(f"blockdev --getsize64 {disk}").strip() == str(16 * MIB)
    guest.check(f"echo served >/tmp/text && dd if=/tmp/text of={disk} conv=fsync,notrunc")
    assert path.read_bytes()[:7] == b"served\n"
    daemon.unmap_lun(TARGET, address)
    wait_gone(guest, disk)
    forget_failed_flush(guest)
    assert has_disk(guest, "FIRST")


def test_a_resized_lun_is_seen_and_its_new_end_can_be_used(guest: Guest, daemon: Daemon) -> None:
    path = daemon.create_image("growing", 16)
    daemon.map_lun(TARGET, "3", "growing", serial="GROWING")
    disk = find_disk(guest, "GROWING")
    daemon.resize_image("growing", 48)
    guest.wait_until(f"[ $(blockdev --getsize64 {disk}) = {48 * MIB} ]")
    guest.check(
        f"head -c 4096 /dev/urandom >/tmp/end && dd if=/tmp/end of={disk} bs=4096 seek={48 * 256 - 1} conv=fsync"
    )
    assert path.stat().st_size == 48 * MIB
    assert guest.check("od -An -v -tx1 </tmp/end").split() == [f"{byte:02x}" for byte in path.read_bytes()[-4096:]]


def test_a_filesystem_grows_with_its_disk_while_it_is_mounted(guest: Guest, daemon: Daemon) -> None:
    daemon.create_image("home", 32)
    daemon.map_lun(TARGET, "4", "home", serial="HOME")
    disk = find_disk(guest, "HOME")
    guest.check(f"mkfs.ext4 -q {disk} && mount {disk} /mnt && echo kept >/mnt/file")
    daemon.resize_image("home", 64)
    guest.wait_until(f"[ $(blockdev --getsize64 {disk}) = {64 * MIB} ]")
    guest.check(f"resize2fs {disk}", timeout=60)
    assert int(guest.check("stat --file-system --format=%b /mnt")) * 1024 > 48 * MIB
    assert guest.check("cat /mnt/file && umount /mnt") == "kept\n"
    guest.check(f"fsck.ext4 -fn {disk}")


def test_a_removed_luns_number_can_be_given_to_another_image(guest: Guest, daemon: Daemon) -> None:
    for name, size in (("before", 8), ("after", 24)):
        daemon.create_image(name, size)
    daemon.map_lun(TARGET, "5", "before", serial="BEFORE")
    disk = find_disk(guest, "BEFORE")
    daemon.unmap_lun(TARGET, "5")
    wait_gone(guest, disk)
    forget_failed_flush(guest)
    daemon.map_lun(TARGET, "5", "after", serial="AFTER")
    assert guest.check(f"blockdev --getsize64 {find_disk(guest, 'AFTER')}").strip() == str(24 * MIB)


def test_a_lun_removed_under_io_fails_that_io_and_no_other(guest: Guest, daemon: Daemon) -> None:
    daemon.create_image("pulled", 32)
    daemon.map_lun(TARGET, "6", "pulled", serial="PULLED")
    disk = find_disk(guest, "PULLED")
    first = find_disk(guest, "FIRST")
    guest.check(
        f"( while dd if={disk} of=/dev/null bs=64k iflag=direct; do :; done; touch /run/ended ) >/dev/null 2>&1 &"
    )
    daemon.unmap_lun(TARGET, "6")
    guest.wait_until("[ -e /run/ended ]")
    wait_gone(guest, disk)
    guest.check(f"dd if={first} of=/dev/null bs=1M iflag=direct")
    assert guest.disk_trouble() != []  # the reader's errors, which were wanted
