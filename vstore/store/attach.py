"""How each virtual machine monitor attaches to a target of the catalog; the rows are in vstore.vhost_user.attach."""

from vstore.store.errors import InvalidArgument
from vstore.store.records import Attach, AttachLine, Target
from vstore.vhost_user.attach import VMMS, Vmm, command_line

_MIB = 1 << 20


def lines(target: Target, memory: int) -> Attach:
    """All rows for one target; `memory` in bytes."""
    return Attach(target.name, target.socket, [_line(vmm, target, memory) for vmm in VMMS])


def check_memory(memory: int) -> int:
    """Raises InvalidArgument."""
    if memory < _MIB or memory % _MIB or memory > 1 << 52:
        raise InvalidArgument("memory_bytes", f"{memory} is no size of a guest's memory", "choose whole MiB")
    return memory


def _line(vmm: Vmm, target: Target, memory: int) -> AttachLine:
    argv, notes = vmm.argv(target, memory), list(vmm.notes)
    ready = target.config_space or not vmm.needs_config_space
    if not ready:
        notes.insert(0, "this target offers no configuration space, which this VMM needs: create it with config_space")
    elif target.config_space and not vmm.needs_config_space:
        notes.insert(
            0, "this target offers a configuration space: QEMU 7.2.0 to 7.2.21 crash on it, later ones ignore it"
        )
    return AttachLine(vmm.name, vmm.versions, vmm.kind, command_line(vmm, target, memory), argv, ready, notes)
