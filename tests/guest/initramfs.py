"""The guest's whole world: a small initramfs, built here from the host's own Debian programs.

    /init                 init.sh: mounts, loads the modules in order, then serves the agent's port
    /bin                  busybox, and a link for each of its applets
    /usr/bin              TOOLS copied from the host; they come before busybox's applets in PATH
    /lib, /lib64, ...     the shared libraries that ldd names, at the paths where the loader looks
    /modules/NN-name.ko   the kernel modules, numbered in load order

The archive is written by hand in the kernel's "newc" cpio format: neither root (for device nodes) nor cpio is needed.
"""

import fcntl
import hashlib
import os
import re
import stat
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from tests.guest.kernel import CACHE, Kernel, find_tool

MODULES = ("virtio_pci", "virtio_console", "sd_mod", "sg", "virtio_scsi", "ext4", "crc32c_generic")

# What the guest can run beside busybox, by the Debian package that holds it.
TOOLS = {
    "sg3-utils": (
        "sg_inq sg_vpd sg_opcodes sg_readcap sg_modes sg_turs sg_verify sg_write_same sg_unmap sg_luns sg_reset"
        " sg_raw sg_dd sg_requests sg_sync sg_start sg_wr_mode sg_get_lba_status sg_logs sg_timestamp sg_read_buffer"
        " sg_write_buffer sg_test_rwbuf sg_rbuf sg_senddiag sg_write_verify sg_write_x sg_compare_and_write sg_reassign"
        " sg_format sg_sanitize sg_get_elem_status sg_referrals sg_stpg sg_rtpg sg_read_long sg_write_long sg_bg_ctl"
        " sg_stream_ctl sg_prevent sg_seek sg_rep_zones sg_sat_identify sg_rmsn sg_read_block_limits sginfo"
        " sg_persist sg_ident sg_xcopy sg_copy_results"
    ),
    "e2fsprogs": "mke2fs e2fsck debugfs dumpe2fs resize2fs",
    "fdisk": "sfdisk",
    "mount": "mount umount",
    "util-linux": "lsblk fstrim blkdiscard blockdev dmesg blkid",
    "coreutils": "dd sha256sum truncate stat sync",
    "dash": "dash",  # the agent's shell: busybox's own prefers its applets to the tools above
}
LINKS = {"mkfs.ext4": "mke2fs", "fsck.ext4": "e2fsck"}


@dataclass
class Archive:
    """A cpio archive in "newc" form (the kernel's early-userspace/buffer-format): bytes grow in `data`."""

    data: bytearray = field(default_factory=bytearray)
    inode: int = 0
    directories: set[str] = field(default_factory=set)

    def add_file(self, path: str, content: bytes, mode: int = 0o755) -> None:
        self._add_parents(path)
        self._add(path, stat.S_IFREG | mode, content)

    def add_link(self, path: str, target: str) -> None:
        self._add_parents(path)
        self._add(path, stat.S_IFLNK | 0o777, target.encode())

    def add_device(self, path: str, major: int, minor: int) -> None:
        self._add_parents(path)
        self._add(path, stat.S_IFCHR | 0o600, b"", (major, minor))

    def add_directory(self, path: str) -> None:
        if path not in self.directories:
            self._add_parents(path)
            self.directories.add(path)
            self._add(path, stat.S_IFDIR | 0o755, b"")

    def finished(self) -> bytes:
        self._add("TRAILER!!!", 0, b"")
        return bytes(self.data)

    def _add_parents(self, path: str) -> None:
        for parent in reversed(PurePosixPath(path).parents):
            if str(parent) not in ("/", "."):
                self.add_directory(str(parent))

    def _add(self, path: str, mode: int, content: bytes, device: tuple[int, int] = (0, 0)) -> None:
        self.inode += 1
        name = path.lstrip("/").encode() + b"\0"
        # ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
        fields = (self.inode, mode, 0, 0, 1, 0, len(content), 0, 0, *device, len(name), 0)
        self.data += b"070701" + b"".join(b"%08X" % value for value in fields) + name
        self._align()
        self.data += content
        self._align()

    def _align(self) -> None:
        self.data += bytes(-len(self.data) % 4)


def initramfs(kernel: Kernel, cache: Path = CACHE) -> Path:
    """Path of an archive that suits this kernel and the host's present tools; built once per content."""
    content = _build(kernel)
    path = cache / f"initramfs-{hashlib.sha256(content).hexdigest()[:16]}.cpio"
    with (cache / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            for stale in cache.glob("initramfs-*.cpio"):
                stale.unlink()
            unfinished = path.with_suffix(".new")
            unfinished.write_bytes(content)
            unfinished.rename(path)
    return path


def _build(kernel: Kernel) -> bytes:
    archive = Archive()
    for directory in ("/dev", "/proc", "/sys", "/run", "/tmp", "/mnt"):
        archive.add_directory(directory)
    archive.add_device("/dev/console", 5, 1)  # the kernel opens it for init before devtmpfs is there
    archive.add_file("/init", Path(__file__).with_name("init.sh").read_bytes())
    archive.add_file("/etc/mtab", b"")
    _add_busybox(archive)
    _add_tools(archive)
    for number, module in enumerate(kernel.load_order(MODULES)):
        archive.add_file(f"/modules/{number:02}-{module.name}", module.read_bytes())
    return archive.finished()


def _add_busybox(archive: Archive) -> None:
    busybox = find_tool("busybox", "busybox-static")
    applets = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True, timeout=10).stdout.split()
    archive.add_file("/bin/busybox", busybox.read_bytes())
    for applet in applets:
        if applet != "busybox":
            archive.add_link(f"/bin/{applet}", "busybox")


def _add_tools(archive: Archive) -> None:
    programs = [find_tool(name, package) for package, names in TOOLS.items() for name in names.split()]
    for program in programs:
        archive.add_file(f"/usr/bin/{program.name}", program.read_bytes())
    for name, target in LINKS.items():
        archive.add_link(f"/usr/bin/{name}", target)
    for library in sorted(libraries(programs)):
        archive.add_file(library, Path(library).read_bytes())


def libraries(programs: Iterable[Path]) -> set[str]:
    """Shared libraries of these programs, at the paths where the loader finds them."""
    listing = subprocess.run(
        ["ldd", *map(os.fspath, programs)], capture_output=True, text=True, check=False, timeout=60
    ).stdout
    return set(re.findall(r"(/\S+) \(0x", listing))
