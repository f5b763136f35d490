"""QEMU's command line: the machine, how it boots, and the disk controllers it is given."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tests.guest.kernel import find_tool

KERNEL_OPTIONS = "console=ttyS0 panic=-1 no_timer_check mitigations=off"


class Controller(Protocol):
    """Something that gives the guest SCSI disks."""

    def arguments(self) -> list[str]: ...


@dataclass(frozen=True)
class VhostUserScsi:
    """A vhost-user-scsi device whose backend listens at `socket`; SeaBIOS boots LUN 0 of `boot_target`."""

    socket: Path
    name: str = "vstore"
    queues: int = 1
    boot_target: int | None = None

    def arguments(self) -> list[str]:
        boot = "" if self.boot_target is None else f",bootindex=0,boot_tpgt={self.boot_target}"
        return [
            *("-chardev", f"socket,id={self.name}-socket,path={self.socket}"),
            *(
                "-device",
                f"vhost-user-scsi-pci,id={self.name},chardev={self.name}-socket,num_queues={self.queues}{boot}",
            ),
        ]


@dataclass(frozen=True)
class QemuScsi:
    """QEMU's own virtio-scsi with one raw disk at LUN 0: what the harness is tested with, no vstore needed."""

    image: Path
    serial: str = "QEMU0001"

    def arguments(self) -> list[str]:
        return [
            *("-device", "virtio-scsi-pci,id=own"),
            *("-blockdev", f"driver=raw,node-name=own0,discard=unmap,file.driver=file,file.filename={self.image}"),
            *("-device", f"scsi-hd,bus=own.0,scsi-id=0,lun=0,drive=own0,serial={self.serial}"),
        ]


@dataclass(frozen=True)
class KernelBoot:
    """QEMU's qboot loads the kernel. Unlike SeaBIOS it does not first ask 256 targets for their LUNs."""

    image: Path
    initramfs: Path

    def arguments(self) -> list[str]:
        words = ["-bios", "qboot.rom", "-kernel", str(self.image), "-initrd", str(self.initramfs)]
        return [*words, "-append", KERNEL_OPTIONS]


@dataclass(frozen=True)
class FirmwareBoot:
    """SeaBIOS finds a boot sector on a disk that has a bootindex, and nothing else is offered."""

    def arguments(self) -> list[str]:
        return ["-boot", "strict=on"]


@dataclass(frozen=True)
class Machine:
    """A PC: memory that a vhost-user backend can share, a serial console, the agent's port, QMP and the controllers."""

    boot: KernelBoot | FirmwareBoot
    controllers: Sequence[Controller] = ()
    memory_mib: int = 512
    cpus: int = 1  # under software emulation a second one makes the boot a third dearer

    def command(self, accelerator: str, console: Path, agent_fd: int, qmp_fd: int) -> list[str]:
        return [
            str(find_tool("qemu-system-x86_64", "qemu-system-x86")),
            *("-nodefaults", "-no-user-config", "-display", "none"),
            *("-accel", accelerator, "-cpu", "host" if accelerator == "kvm" else "max,la57=off"),
            *("-machine", "pc,memory-backend=ram", "-smp", str(self.cpus), "-m", f"{self.memory_mib}M"),
            *("-object", f"memory-backend-memfd,id=ram,size={self.memory_mib}M,share=on"),
            *("-chardev", f"file,id=console,path={console},append=on", "-serial", "chardev:console"),
            *("-chardev", f"socket,id=qmp,fd={qmp_fd}", "-mon", "chardev=qmp,mode=control"),
            *("-chardev", f"socket,id=agent,fd={agent_fd}"),
            *("-device", "virtio-serial-pci", "-device", "virtserialport,chardev=agent,name=agent"),
            *self.boot.arguments(),
            *(word for controller in self.controllers for word in controller.arguments()),
        ]


def accelerators() -> list[str]:
    """Accelerators to try in this order: what VSTORE_GUEST_ACCEL names, else KVM where it can work, then TCG.

    A /dev/kvm without vmx or svm in /proc/cpuinfo belongs to a host whose virtualisation cannot be passed on: QEMU
    starts there, and the guest never gets anywhere.
    """
    wish = os.environ.get("VSTORE_GUEST_ACCEL", "auto")
    if wish in ("kvm", "tcg"):
        return [wish]
    if wish != "auto":
        raise ValueError(f"VSTORE_GUEST_ACCEL is {wish!r}; it may be kvm, tcg or auto")
    flags = set(Path("/proc/cpuinfo").read_text().split())
    usable = os.access("/dev/kvm", os.R_OK | os.W_OK) and flags & {"vmx", "svm"}
    return ["kvm", "tcg"] if usable else ["tcg"]
