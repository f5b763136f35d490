"""How each virtual machine monitor attaches to a vhost-user-scsi socket: one row per monitor, exact for its version.

vhost-user needs the guest's memory in a descriptor that both processes map, so every line shares the guest's memory.
A virtio-scsi device of vhost-user has one control and one event queue beside its request queues (virtio 1.3 5.6.2).
"""

import shlex
from collections.abc import Callable
from typing import Protocol

from vstore.record import Record

_MIB = 1 << 20
_QUEUE_SIZE = 256
_VIRTIO_ID_SCSI = 8  # virtio 1.3 5


class Attachable(Protocol):
    """What a line is made of."""

    @property
    def name(self) -> str: ...

    @property
    def socket(self) -> str: ...

    @property
    def request_queues(self) -> int: ...


class Vmm(Record):
    """One row: `argv` of (what to attach, bytes of guest memory)."""

    name: str
    versions: str
    argv: Callable[[Attachable, int], list[str]]
    notes: tuple[str, ...]
    needs_config_space: bool = False  # it asks the backend for virtio_scsi_config; QEMU has its own
    kind: str = "command"


def command_line(vmm: Vmm, attachable: Attachable, memory: int) -> str:
    """To paste; `memory` in bytes."""
    argv = vmm.argv(attachable, memory)
    return _c_call(argv) if vmm.kind == "c_call" else shlex.join(argv)


def _c_call(argv: list[str]) -> str:
    return f"{argv[0]}({', '.join(argv[1:])});"


def _qemu(attachable: Attachable, memory: int, reconnect: str = "") -> list[str]:
    size = f"{memory // _MIB}M"
    return [
        "qemu-system-x86_64",
        *("-machine", "q35,accel=kvm:tcg,memory-backend=mem"),
        *("-m", size),
        *("-object", f"memory-backend-memfd,id=mem,size={size},share=on"),
        *("-chardev", f"socket,id=vstore-{attachable.name},path={_qemu_escaped(attachable.socket)}{reconnect}"),
        *("-device", f"vhost-user-scsi-pci,chardev=vstore-{attachable.name},num_queues={attachable.request_queues}"),
    ]


def _qemu_escaped(value: str) -> str:
    """In QEMU's option lists a comma is written twice."""
    return value.replace(",", ",,")


def _qemu_reconnecting(attachable: Attachable, memory: int) -> list[str]:
    return _qemu(attachable, memory, ",reconnect-ms=1000")


def _cloud_hypervisor(attachable: Attachable, memory: int) -> list[str]:
    sizes = ",".join([str(_QUEUE_SIZE)] * (2 + attachable.request_queues))
    device = f"socket={attachable.socket},device_type=scsi,queue_sizes=[{sizes}]"
    size = f"size={memory // _MIB}M,shared=on"
    return ["cloud-hypervisor", "--memory", size, "--generic-vhost-user", device]


def _crosvm(attachable: Attachable, memory: int) -> list[str]:
    return ["crosvm", "run", "--mem", f"size={memory // _MIB}", "--vhost-user", f"scsi,socket={attachable.socket}"]


def _libkrun(attachable: Attachable, _memory: int) -> list[str]:
    socket = '"' + attachable.socket.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return ["krun_add_vhost_user_device", "ctx", str(_VIRTIO_ID_SCSI), socket, "NULL", "0", "NULL"]


_QEMU_NOTES = (
    "shared memory is needed: keep memory-backend and share=on, with the size of -m",
    "to boot from it, add bootindex=1 to the -device (SeaBIOS; OVMF ignores it); the boot disk is LUN 0",
)

VMMS = (
    Vmm(
        "qemu-7.2",
        "QEMU 5.0 to 9.1",
        _qemu,
        (*_QEMU_NOTES, "no reconnect option: before 8.2 QEMU refuses it for vhost-user-scsi"),
    ),
    Vmm("qemu-9.2", "QEMU 9.2 and later", _qemu_reconnecting, _QEMU_NOTES),
    Vmm(
        "cloud-hypervisor",
        "Cloud Hypervisor v52 and later",
        _cloud_hypervisor,
        (
            "shared memory is needed: keep shared=on",
            "after hot-plugging a LUN, rescan the SCSI host in the guest",
        ),
        needs_config_space=True,
    ),
    Vmm(
        "crosvm",
        "crosvm with --vhost-user",
        _crosvm,
        ("crosvm's guest memory is always shared",),
        needs_config_space=True,
    ),
    Vmm(
        "libkrun",
        "libkrun with krun_add_vhost_user_device",
        _libkrun,
        ("a call before krun_start_enter; the guest kernel needs virtio_scsi",),
        needs_config_space=True,
        kind="c_call",
    ),
)
