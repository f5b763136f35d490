"""Attach lines: each is what its monitor takes, word for word; QEMU's is tried on the QEMU that is installed."""

import json
import shlex
import socket
import subprocess
from pathlib import Path

import pytest

from tests.store.world import World, eventually
from vstore.store import attach
from vstore.store.errors import InvalidArgument
from vstore.store.records import AttachLine, Process, Target
from vstore.target.spawn import spawn

GIB = 1 << 30
SOCKET = "/run/vstore/targets/web/vhost.sock"


def _target(*, config_space: bool = False, queues: int = 2, socket: str = SOCKET) -> Target:
    return Target(
        id="i",
        name="web",
        socket=socket,
        request_queues=queues,
        threads=1,
        poll_us=None,
        config_space=config_space,
        socket_mode="0600",
        socket_owner=None,
        socket_group=None,
        beside=None,
        port=1,
        process=Process("listening", 1, 0, None),
        luns=[],
        created_at="",
        revision=1,
        labels={},
    )


def _lines(target: Target) -> dict[str, AttachLine]:
    return {line.vmm: line for line in attach.lines(target, GIB).lines}


def test_each_monitor_gets_its_own_words() -> None:
    lines = {vmm: line.command_line for vmm, line in _lines(_target(config_space=True)).items()}
    qemu = (
        "qemu-system-x86_64 -machine q35,accel=kvm:tcg,memory-backend=mem -m 1024M "
        "-object memory-backend-memfd,id=mem,size=1024M,share=on "
        f"-chardev socket,id=vstore-web,path={SOCKET}%s "
        "-device vhost-user-scsi-pci,chardev=vstore-web,num_queues=2"
    )
    assert lines == {
        "qemu-7.2": qemu % "",
        "qemu-9.2": qemu % ",reconnect-ms=1000",
        "cloud-hypervisor": "cloud-hypervisor --memory size=1024M,shared=on --generic-vhost-user "
        f"'socket={SOCKET},device_type=scsi,queue_sizes=[256,256,256,256]'",
        "crosvm": f"crosvm run --mem size=1024 --vhost-user scsi,socket={SOCKET}",
        "libkrun": f'krun_add_vhost_user_device(ctx, 8, "{SOCKET}", NULL, 0, NULL);',
    }


def test_the_string_is_the_argv_as_a_shell_reads_it() -> None:
    for line in _lines(_target(socket="/tmp/a b,c'd/vhost.sock")).values():
        if line.kind == "command":
            assert shlex.split(line.command_line) == line.argv


def test_a_comma_in_the_path_is_doubled_for_qemu() -> None:
    assert "path=/tmp/a,,b/s" in _lines(_target(socket="/tmp/a,b/s"))["qemu-7.2"].command_line


def test_without_configuration_space_only_qemu_is_ready_and_the_note_says_why() -> None:
    lines = _lines(_target(config_space=False))
    assert {vmm for vmm, line in lines.items() if line.ready} == {"qemu-7.2", "qemu-9.2"}
    assert all("config_space" in line.notes[0] for line in lines.values() if not line.ready)
    assert all(line.ready for line in _lines(_target(config_space=True)).values())


def test_every_qemu_line_says_that_memory_is_shared() -> None:
    for vmm, line in _lines(_target()).items():
        if vmm.startswith("qemu"):
            assert "share=on" in line.command_line
            assert any("shared memory" in note for note in line.notes)


@pytest.mark.parametrize("memory", [0, 1 << 19, GIB + 1, 1 << 60])
def test_a_memory_that_no_guest_has_is_refused(memory: int) -> None:
    with pytest.raises(InvalidArgument, match="whole MiB"):
        attach.check_memory(memory)


def test_qemu_attaches_with_its_line(world: World) -> None:
    """The machine stands still; realising the device already runs the whole handshake."""
    world.spawn = spawn  # type: ignore[method-assign]
    store = world.open()
    store.create_image("default", "disk", virtual_size_bytes=1 << 20)
    store.create_target("web", request_queues=2)
    store.map_lun("web", "0", image="disk")
    line = next(line for line in store.attach_lines("web", memory_bytes=64 << 20).lines if line.vmm == "qemu-7.2")
    control = world.root / "qmp"
    qemu = subprocess.Popen(
        [*line.argv, "-nodefaults", "-display", "none", "-S", "-qmp", f"unix:{control},server=on,wait=off"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        eventually(lambda: store.show_target("web").process.state == "connected" or _ended(qemu))
        assert _devices(control) == ["vhost-user-scsi-pci"]
    finally:
        qemu.kill()
        told, _ = qemu.communicate()
        world.close_store(store, stop_targets=True)
    assert b"vhost" not in told  # it may warn of its CPU model, not of our device


def _ended(process: subprocess.Popen[bytes]) -> bool:
    assert process.poll() is None, process.communicate()[0].decode()
    return False


_LIST_DEVICES = (
    {"execute": "qmp_capabilities"},
    {"execute": "qom-list", "arguments": {"path": "/machine/peripheral-anon"}},
)


def _devices(control: Path) -> list[str]:
    """What was attached by -device, as QEMU tells it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        eventually(lambda: connection.connect_ex(str(control)) == 0)  # QEMU makes it after it has come to us
        lines = connection.makefile("rw", buffering=1)
        lines.readline()
        for command in (
            {"execute": "qmp_capabilities"},
            {"execute": "qom-list", "arguments": {"path": "/machine/peripheral-anon"}},
        ):
            lines.write(json.dumps(command) + "\n")
            answer = json.loads(lines.readline())
        lines.close()
    return [entry["type"][len("child<") : -1] for entry in answer["return"] if entry["type"].startswith("child<")]
