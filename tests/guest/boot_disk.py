"""A raw disk that a PC's firmware can boot: GRUB in the gap before the partition, kernel and initramfs inside it.

    sector 0        boot.img's first 440 bytes, then the MBR partition table of sfdisk
    sector 1...     core.img: GRUB with the few modules below and the menu compiled in
    1 MiB ...       ext2 made by `mke2fs -d`: /vmlinuz and /initramfs

SeaBIOS reads sector 0, GRUB reads the rest, all through INT 13h on the virtio-scsi disk; no root is needed to make it.
"""

import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.guest.kernel import find_tool
from tests.guest.machine import KERNEL_OPTIONS, KernelBoot

SECTOR = 512
PARTITION_OFFSET = 1 << 20
MBR_CODE_BYTES = 440  # what follows is the disk signature and the partition table
GRUB_DIRECTORY = Path("/usr/lib/grub/i386-pc")
GRUB_MODULES = ("biosdisk", "part_msdos", "ext2", "linux", "echo", "serial", "terminal")
GREETING = "GRUB was read from the disk"
MENU = f"""serial --unit=0
terminal_output serial
echo "{GREETING}"
linux (hd0,msdos1)/vmlinuz {KERNEL_OPTIONS} booted_from=disk
initrd (hd0,msdos1)/initramfs
boot
"""


def make_boot_disk(path: Path, content: KernelBoot, mebibytes: int = 64) -> None:
    """Write the disk. Raises MissingPackageError, or RuntimeError with what the failing tool said."""
    with path.open("wb") as disk:
        disk.truncate(mebibytes << 20)
    _run([find_tool("sfdisk", "fdisk"), "--quiet", path], b"label: dos\nstart=2048, type=83, bootable\n")
    with tempfile.TemporaryDirectory() as scratch:
        _make_filesystem(path, content, Path(scratch), mebibytes)
        core = _make_core(Path(scratch))
    with path.open("r+b") as disk:
        disk.write((GRUB_DIRECTORY / "boot.img").read_bytes()[:MBR_CODE_BYTES])
        disk.seek(SECTOR)
        disk.write(core)


def _make_filesystem(path: Path, content: KernelBoot, scratch: Path, mebibytes: int) -> None:
    tree = scratch / "tree"
    tree.mkdir()
    (tree / "vmlinuz").write_bytes(content.image.read_bytes())
    (tree / "initramfs").write_bytes(content.initramfs.read_bytes())
    mke2fs = find_tool("mke2fs", "e2fsprogs")
    size = f"{mebibytes - (PARTITION_OFFSET >> 20)}M"
    _run([mke2fs, "-q", "-t", "ext2", "-d", tree, "-E", f"offset={PARTITION_OFFSET}", path, size])


def _make_core(scratch: Path) -> bytes:
    menu, core = scratch / "menu.cfg", scratch / "core.img"
    menu.write_text(MENU)
    mkimage = find_tool("grub-mkimage", "grub-common")
    if not GRUB_DIRECTORY.exists():
        find_tool("the BIOS half of GRUB", "grub-pc-bin")
    _run([mkimage, "-O", "i386-pc", "-p", "(hd0,msdos1)/", "-c", menu, "-o", core, *GRUB_MODULES])
    image = core.read_bytes()
    assert len(image) <= PARTITION_OFFSET - SECTOR, "GRUB does not fit before the partition"
    return image


def _run(command: Sequence[str | Path], data: bytes = b"") -> None:
    done = subprocess.run(command, input=data, capture_output=True, timeout=60, check=False)
    if done.returncode:
        raise RuntimeError(f"{command[0]} ended with {done.returncode}: {done.stderr.decode(errors='replace')}")
