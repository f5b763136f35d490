"""The daemon with real target processes: restarts, deaths, adoption, and what a guest wrote meanwhile."""

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pyscsi.pyscsi.scsi import SCSI

from api.cli.client import Client
from tests.api.daemon import SERVE, Daemon
from tests.store.world import MIB, ROOT, alive, eventually
from vstore.client import VstoreDevice
from vstore.client.status import CheckCondition


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    root = Path(tempfile.mkdtemp(prefix="vs"))
    daemon = Daemon(root)
    daemon.start()
    yield daemon
    daemon.clean_up()
    shutil.rmtree(root)


@pytest.fixture
def mapped(daemon: Daemon) -> Daemon:
    """Image `disk` as LUN 0 of target `vm`."""
    daemon.put("pools/default/images/disk", virtual_size_bytes=MIB)
    daemon.put("targets/vm", request_queues=1)
    daemon.put("targets/vm/luns/0", image="disk", serial="SERIAL1")
    return daemon


@contextmanager
def disk_of(daemon: Daemon, lun: int = 0) -> Iterator[SCSI]:
    """The LUN of target `vm` as a guest has it, past the unit attention of its first command."""
    with SCSI(VstoreDevice(daemon.get("targets/vm")["socket"], lun=lun), 512) as disk:
        with pytest.raises(CheckCondition, match="POWER ON OCCURRED"):
            disk.testunitready()
        yield disk


def test_a_guest_reads_and_writes_the_image(mapped: Daemon) -> None:
    with disk_of(mapped) as disk:
        assert disk.readcapacity16().result["returned_lba"] == MIB // 512 - 1
        disk.write10(3, 1, b"\xa5" * 512)
        assert bytes(disk.read10(3, 1).datain) == b"\xa5" * 512
        assert mapped.get("targets/vm")["process"]["state"] == "connected"


def test_sigterm_flushes_stops_the_targets_and_the_next_start_serves_the_same(mapped: Daemon) -> None:
    pid = mapped.pid("vm")
    with disk_of(mapped) as disk:
        disk.write10(0, 1, b"\x5a" * 512)
    assert mapped.end(signal.SIGTERM) == 0
    assert not alive(pid)
    assert mapped.image("disk").read_bytes()[:512] == b"\x5a" * 512
    assert not (mapped.runtime / "api.sock").exists()
    mapped.start()
    eventually(lambda: mapped.is_up("vm"))
    with disk_of(mapped) as disk:
        assert bytes(disk.read10(0, 1).datain) == b"\x5a" * 512


def test_sigterm_with_a_guest_attached_ends_in_order_too(mapped: Daemon) -> None:
    with disk_of(mapped) as disk:
        disk.write10(0, 1, b"\x5a" * 512)
        assert mapped.end(signal.SIGTERM) == 0
    assert mapped.image("disk").read_bytes()[:512] == b"\x5a" * 512


def test_a_killed_daemon_leaves_the_guest_alone_and_the_next_one_adopts_the_target(mapped: Daemon) -> None:
    pid = mapped.pid("vm")
    with disk_of(mapped) as disk:
        disk.write10(7, 1, b"\x11" * 512)
        mapped.end(signal.SIGKILL)
        disk.write10(8, 1, b"\x22" * 512)
        assert bytes(disk.read10(7, 1).datain) == b"\x11" * 512
        mapped.start()
        eventually(lambda: mapped.is_up("vm"))
        assert mapped.pid("vm") == pid
        assert bytes(disk.read10(8, 1).datain) == b"\x22" * 512
        assert mapped.get("targets/vm")["process"] == {
            "state": "connected",
            "pid": pid,
            "restarts": 0,
            "problem": None,
        }
        mapped.put("pools/default/images/more", virtual_size_bytes=MIB)
        mapped.put("targets/vm/luns/1", image="more")
    with disk_of(mapped, lun=1) as disk:
        disk.testunitready()


def test_a_guest_of_another_group_comes_in_by_the_socket_that_the_daemon_made(daemon: Daemon) -> None:
    group = os.getegid()
    daemon.put("pools/default/images/disk", virtual_size_bytes=MIB)
    path = Path(daemon.put("targets/vm", request_queues=1, socket_group=str(group))["socket"])
    assert (stat.S_IMODE(path.stat().st_mode), path.stat().st_gid) == (0o660, group)
    daemon.put("targets/vm/luns/0", image="disk")
    with disk_of(daemon) as disk:
        disk.testunitready()
    os.kill(daemon.pid("vm"), signal.SIGKILL)
    eventually(lambda: daemon.get("targets/vm")["process"]["restarts"] == 1 and daemon.is_up("vm"))
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    with disk_of(daemon) as disk:
        disk.testunitready()
    daemon.client.call("DELETE", "/v1/targets/vm/luns/0")
    daemon.client.call("DELETE", "/v1/targets/vm")
    assert not path.parent.exists()


def test_keep_targets_leaves_them_to_the_next_daemon(daemon: Daemon) -> None:
    assert daemon.end() == 0
    daemon.start("--keep-targets")
    daemon.put("targets/vm", request_queues=1)
    pid = daemon.pid("vm")
    assert daemon.end(signal.SIGINT) == 0
    assert alive(pid)
    daemon.start()
    eventually(lambda: daemon.is_up("vm"))
    assert daemon.pid("vm") == pid


def test_a_killed_target_comes_back_with_its_lun_and_its_bytes(mapped: Daemon) -> None:
    pid = mapped.pid("vm")
    with disk_of(mapped) as disk:
        disk.write10(5, 1, b"\x77" * 512)
        os.kill(pid, signal.SIGKILL)
    eventually(lambda: mapped.get("targets/vm")["process"]["restarts"] == 1 and mapped.is_up("vm"))
    assert mapped.pid("vm") != pid
    with disk_of(mapped) as disk:
        assert bytes(disk.read10(5, 1).datain) == b"\x77" * 512


def test_a_resize_reaches_the_guest(mapped: Daemon) -> None:
    with disk_of(mapped) as disk:
        disk.readcapacity16()
        mapped.client.call("PATCH", "/v1/pools/default/images/disk", {"virtual_size_bytes": 2 * MIB})
        with pytest.raises(CheckCondition, match="CAPACITY DATA HAS CHANGED"):
            disk.readcapacity16()
        assert disk.readcapacity16().result["returned_lba"] == 2 * MIB // 512 - 1


def test_qemu_refuses_to_write_to_an_image_that_a_target_holds(mapped: Daemon) -> None:
    command = ["qemu-io", "-f", "raw", "-c", "write 0 512", str(mapped.image("disk"))]
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    assert told.returncode == 1
    assert "lock" in told.stderr


def test_a_second_daemon_is_refused_and_the_first_goes_on(daemon: Daemon) -> None:
    for options in (["--runtime-dir", str(daemon.runtime)], ["--runtime-dir", f"{daemon.runtime}2"]):
        second = subprocess.run(
            [*SERVE, "--no-listen", "--state-dir", str(daemon.state), *options],
            capture_output=True,
            text=True,
            cwd=ROOT,
            check=False,
            timeout=30,
        )
        assert second.returncode == 1
        assert second.stderr.splitlines()[-1].startswith("vstore: ")
        assert "in use" in second.stderr or "another vstore daemon uses" in second.stderr
    assert daemon.get("targets")["items"] == []


def test_one_daemon_answers_on_the_unix_socket_and_on_loopback(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    daemon.end()
    daemon.start(listen="0")
    port, token = _listening_port(daemon), _token(daemon)
    assert _status(port, Authorization=f"Bearer {token}") == 200
    assert _status(port, Authorization=f"Bearer {token}", Host="evil.example") == 421
    assert _status(port) == 401
    monkeypatch.setenv("VSTORE_TOKEN", token)
    for url in (f"http://127.0.0.1:{port}", daemon.client.url):
        assert Client(url).call("GET", "/")["name"] == "vstore"


def test_the_token_is_made_once_for_the_owner_alone_and_is_in_no_log(daemon: Daemon) -> None:
    token = _token(daemon)
    assert stat.S_IMODE((daemon.state / "token").stat().st_mode) == 0o600
    daemon.end()
    daemon.start(listen="0")
    assert _status(_listening_port(daemon), Authorization=f"Bearer {token}") == 200
    assert _token(daemon) == token
    assert str(daemon.state / "token") in daemon.log.read_text()
    assert token not in daemon.log.read_text()


def test_a_token_that_others_could_read_ends_the_start_in_one_line(daemon: Daemon) -> None:
    daemon.end()
    (daemon.state / "token").chmod(0o644)
    refused = _refused(daemon, "--no-listen")
    assert refused.startswith(f"vstore: {daemon.state}/token: others could have read it (-rw-r--r--)")


def test_no_listen_opens_no_tcp_socket(daemon: Daemon) -> None:
    sockets = subprocess.run(["ss", "-ltnp"], capture_output=True, text=True, check=True).stdout
    assert f"pid={daemon.process.pid}," not in sockets


def test_the_socket_is_for_the_owner_alone(daemon: Daemon) -> None:
    assert stat.S_IMODE((daemon.runtime / "api.sock").stat().st_mode) in (0o600, 0o660)


def test_a_taken_port_is_told_in_one_line(daemon: Daemon) -> None:
    daemon.end()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused = _refused(daemon, "--listen", str(port))
    assert refused == (
        f"vstore: cannot listen at 127.0.0.1:{port}: Address already in use; "
        "choose another port with --listen PORT, or serve only the UNIX socket with --no-listen"
    )


def _refused(daemon: Daemon, *options: str) -> str:
    """The last line of a daemon that does not start there."""
    directories = ("--state-dir", str(daemon.state), "--runtime-dir", str(daemon.runtime))
    done = subprocess.run(
        [*SERVE, *options, *directories], capture_output=True, text=True, cwd=ROOT, check=False, timeout=30
    )
    assert done.returncode == 1, done.stderr
    return done.stderr.splitlines()[-1]


def _token(daemon: Daemon) -> str:
    return (daemon.state / "token").read_text().rstrip("\n")


def _status(port: int, **headers: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    with contextlib.closing(connection):
        connection.request("GET", "/", headers=headers)
        return connection.getresponse().status


def _listening_port(daemon: Daemon) -> int:
    lines = daemon.log.read_text().splitlines()
    return int(
        str(next(json.loads(line)["address"] for line in reversed(lines) if "http://" in line)).rpartition(":")[2]
    )
