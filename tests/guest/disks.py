"""Disks as the guest sees them: found by serial number, never by the order in which they appeared."""

from tests.guest.guest import Guest


def find_disk(guest: Guest, serial: str, timeout: float = 30.0) -> str:
    """Device path (/dev/sdX) of the disk whose Unit Serial Number VPD page holds `serial`; waits until it is there."""
    # vpd_pg80 is the page as SPC-4 7.8.18 prints it: four bytes of header, then the serial number.
    script = f"""for page in /sys/block/sd*/device/vpd_pg80; do
        if [ "$(tail -c +5 "$page" | tr -d ' ')" = "{serial}" ]; then
            disk=${{page#/sys/block/}}
            disk=/dev/${{disk%%/*}}
            [ -b "$disk" ] && echo "$disk" && exit 0
        fi
    done
    exit 1"""
    return guest.wait_until(script, timeout).strip()


def has_disk(guest: Guest, serial: str) -> bool:
    """Whether a disk of this serial number is there now."""
    return serial in guest.check("cat /sys/block/sd*/device/vpd_pg80 2>/dev/null || true")


def generic(guest: Guest, disk: str) -> str:
    """The disk's SCSI generic device (/dev/sgN), which lets every command through, also to a read-only disk."""
    return "/dev/" + guest.check(f"ls /sys/block/{disk.removeprefix('/dev/')}/device/scsi_generic").strip()


def attribute(guest: Guest, disk: str, name: str) -> str:
    """A sysfs attribute of a disk, by its path below /sys/block/sdX."""
    return guest.check(f"cat /sys/block/{disk.removeprefix('/dev/')}/{name}").strip()
