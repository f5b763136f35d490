"""A machine's life on an overlay: it boots from a compressed base, installs, is kept while it works, and goes back.

    plain.raw --convert, compressed--> base <--overlay-- root      snapshot "installed" over REST, the guest writing
                                                                   machine off, apply, machine on: as it was then

How long the guest's own writes took while the snapshot was made is in fio's latency log, and printed (pytest -s).
"""

import hashlib
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guest.backend import Daemon
from tests.guest.boot_disk import make_boot_disk
from tests.guest.disks import find_disk
from tests.guest.guest import Guest, kernel_boot
from tests.guest.kernel import find_tool
from tests.guest.machine import FirmwareBoot
from tests.guest.tools_disk import MOUNT, PATHS, make_tools_disk

TARGET = "vm0"
FIO_SECONDS = 12
FIO = (
    "fio --name=log --filename=/mnt/load --size=32M --rw=randwrite --bs=4k --iodepth=1 --ioengine=psync --direct=1"
    f" --thread --time_based --runtime={FIO_SECONDS} --log_avg_msec=0 --write_lat_log=/tmp/log --output=/tmp/fio"
)
INSTALL = "mkdir -p /mnt/installed && cp /bin/busybox /usr/bin/* /mnt/installed && sync"
SUMS = "cd /mnt/installed && sha256sum * | sha256sum"


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    """A target with the overlay "root" as LUN 0 and a disk of tools as LUN 1."""
    with Daemon(tmp_path) as running:
        make_boot_disk(running.create_image("plain", 256), kernel_boot(), mebibytes=256)
        running.compress_image("plain", "base")
        running.clone_image("base", "root")
        tools = make_tools_disk(tmp_path / "tools.raw", [find_tool("fio", "fio")])
        shutil.copy(tools, running.create_image("tools", -(-tools.stat().st_size >> 20)))
        running.create_target(TARGET)
        running.map_lun(TARGET, "0", "root", serial="ROOT")
        running.map_lun(TARGET, "1", "tools", serial="TOOLS", read_only=True)
        yield running


def boot(daemon: Daemon) -> Guest:
    """The machine, up, with its root disk's partition mounted at /mnt."""
    guest = Guest(daemon.directory, [daemon.controller(TARGET, boot_target=0)], boot=FirmwareBoot())
    guest.boot()
    assert "booted_from=disk" in guest.check("cat /proc/cmdline")
    guest.check(f"mount {find_disk(guest, 'ROOT')}1 /mnt")
    return guest


def turn_off(guest: Guest) -> None:
    guest.check("sync && umount /mnt")
    assert guest.disk_trouble() == []
    guest.shutdown()


def write_latencies(guest: Guest) -> list[tuple[int, int]]:
    """When each write of fio ended, in milliseconds from its start, and how long it took, in microseconds."""
    lines = guest.check("cat /tmp/log_lat.1.log").splitlines()
    return [(int(when), int(took) // 1000) for when, took, *_ in (line.split(",") for line in lines)]


def test_a_machine_on_an_overlay_goes_back_to_a_snapshot_that_was_taken_while_it_wrote(daemon: Daemon) -> None:
    with boot(daemon) as guest:
        guest.check(INSTALL, timeout=60)
        installed = guest.check(SUMS)
        guest.check(MOUNT.format(disk=find_disk(guest, "TOOLS")))
        guest.check(f"({PATHS} {FIO}; touch /tmp/done) >/tmp/fio.err 2>&1 &")
        guest.wait_until("[ -e /mnt/load ]", timeout=30)
        time.sleep(FIO_SECONDS / 2)
        pause = daemon.take_snapshot("root", "installed")
        guest.wait_until("[ -e /tmp/done ]", timeout=60)
        assert guest.check("cat /tmp/fio.err") == ""
        latencies = write_latencies(guest)
        guest.check("rm -r /mnt/installed && echo later >/mnt/later && sync")
        turn_off(guest)
    slowest = ", ".join(f"{took} us at {when} ms" for when, took in sorted(latencies, key=lambda pair: -pair[1])[:5])
    print(f"\npause {pause} us, {FIO_SECONDS * 500} ms after the start; {len(latencies)} writes, slowest {slowest}")
    assert latencies

    daemon.unmap_lun(TARGET, "0")
    daemon.apply_snapshot("root", "installed")
    assert not {"corruptions", "leaks"} & daemon.check_image("root").keys()
    daemon.map_lun(TARGET, "0", "root", serial="ROOT")
    with boot(daemon) as guest:
        assert guest.check(SUMS) == installed
        guest.check("[ ! -e /mnt/later ]")
        turn_off(guest)


def test_the_base_of_a_running_overlay_never_changes(daemon: Daemon) -> None:
    base = daemon.image_path("base")
    before = hashlib.sha256(base.read_bytes()).digest()
    with boot(daemon) as guest:
        guest.check(INSTALL, timeout=60)
        turn_off(guest)
    assert hashlib.sha256(base.read_bytes()).digest() == before
