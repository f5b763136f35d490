"""SeaBIOS boots from a disk that vstore serves: boot sector, GRUB, kernel and initramfs all come over vhost-user."""

import hashlib
from pathlib import Path

from tests.guest.backend import Export
from tests.guest.boot_disk import GREETING, make_boot_disk
from tests.guest.disks import find_disk
from tests.guest.guest import Guest, kernel_boot
from tests.guest.machine import FirmwareBoot


def test_the_firmware_boots_a_kernel_from_a_vstore_disk(tmp_path: Path) -> None:
    disk = tmp_path / "boot.raw"
    make_boot_disk(disk, kernel_boot())
    with (
        Export(disk, "--serial", "BOOT") as export,
        Guest(tmp_path, [export.controller(boot_target=0)], boot=FirmwareBoot()) as guest,
    ):
        guest.boot()
        assert GREETING in guest.console
        assert "booted_from=disk" in guest.check("cat /proc/cmdline")
        served = guest.check(f"sha256sum <{find_disk(guest, 'BOOT')}", timeout=60).split()[0]
        assert guest.disk_trouble() == []
        guest.shutdown()
    assert served == hashlib.sha256(disk.read_bytes()).hexdigest()
