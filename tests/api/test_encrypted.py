"""A daemon and a guest on an encrypted chain: mapped by descriptors, and again after every death; nothing of a secret
is in a command line, an environment, a log or an answer."""

import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from api.cli.errors import ApiProblem
from formats.registry import create_image
from tests.api.daemon import Daemon
from tests.api.test_live import finished
from tests.api.test_serve import disk_of
from tests.store.world import MIB, eventually
from vstore.client.status import CheckCondition

A, B = b"clear words " * 42 + b"A" * 8, b"other words " * 42 + b"B" * 8
PASS = {"k1": "hidden-passphrase-1", "k2": "hidden-passphrase-2"}
IMAGE, LUN = "/v1/pools/default/images/disk", "/v1/targets/vm/luns/0"


@pytest.fixture
def daemon(monkeypatch: pytest.MonkeyPatch) -> Iterator[Daemon]:
    """base (qcow2, k1) <- disk (qcow2, k2), which is LUN 0 of target `vm`; 4 MiB. Registered, because the test makes
    images whose secrets are tried quickly."""
    monkeypatch.setattr("formats.luks._ITERATIONS", 4000)
    root = Path(tempfile.mkdtemp(prefix="vs"))
    daemon = Daemon(root)
    daemon.start()
    for name, value in PASS.items():
        daemon.put(f"secrets/{name}", value=value)
    below: dict[str, object] = {}
    for name, secret, parent in (("base", "k1", None), ("disk", "k2", "base")):
        path = daemon.image(name).with_suffix(".qcow2")
        options = {"encrypt.format": "luks", **below}
        create_image("qcow2", path, 4 * MIB, options=options, secret=PASS[secret].encode())
        body = {"file": path.name, "format": "qcow2", "secret": secret, "parent": parent}
        daemon.client.call("POST", f"/v1/pools/default/images/{name}/register", body)
        below = {"backing_file": path.name, "backing_fmt": "qcow2"}
    daemon.put("targets/vm", request_queues=1)
    daemon.put("targets/vm/luns/0", image="disk", serial="SERIAL1")
    yield daemon
    daemon.clean_up()
    shutil.rmtree(root)


def decrypted(daemon: Daemon) -> bytes:
    """The disk as qemu-img reads its chain."""
    node: dict[str, Any] | None = None
    for name, secret in (("base", "k1"), ("disk", "k2")):
        file = {"driver": "file", "filename": str(daemon.image(name).with_suffix(".qcow2"))}
        encrypt = {"format": "luks", "key-secret": secret}
        node = {"driver": "qcow2", "file": file, "encrypt": encrypt, "backing": node}
    out = daemon.state / "decrypted"
    secrets = [each for name, value in PASS.items() for each in ("--object", f"secret,id={name},data={value}")]
    subprocess.run(["qemu-img", "convert", *secrets, "-O", "raw", f"json:{json.dumps(node)}", out], check=True)
    return out.read_bytes()


def test_a_guest_has_an_encrypted_chain_and_keeps_it_over_every_death(daemon: Daemon) -> None:
    with disk_of(daemon) as disk:
        assert bytes(disk.read10(0, 1).datain) == bytes(512)
        disk.write10(0, 1, A, fua=1)
        os.kill(daemon.pid("vm"), signal.SIGKILL)
    eventually(lambda: daemon.get("targets/vm")["process"]["restarts"] == 1 and daemon.is_up("vm"))
    target = daemon.pid("vm")
    daemon.end(signal.SIGKILL)
    daemon.start()
    eventually(lambda: daemon.is_up("vm"))
    assert daemon.pid("vm") == target
    with disk_of(daemon) as disk:
        assert bytes(disk.read10(0, 1).datain) == A
        disk.write10(9, 1, B, fua=1)
    daemon.end(signal.SIGKILL)
    os.kill(target, signal.SIGKILL)
    daemon.start()
    eventually(lambda: daemon.is_up("vm"))
    with disk_of(daemon) as disk:
        assert bytes(disk.read10(9, 1).datain) == B
    daemon.client.call("DELETE", LUN)
    content = decrypted(daemon)
    assert (content[:512], content[9 * 512 : 10 * 512]) == (A, B)
    assert b"words" not in daemon.image("disk").with_suffix(".qcow2").read_bytes()


def test_an_encrypted_disk_grows_under_its_guest_and_is_committed_afterwards(daemon: Daemon) -> None:
    with disk_of(daemon) as disk:
        disk.write10(3, 1, A, fua=1)
        daemon.client.call("PATCH", IMAGE, {"virtual_size_bytes": 8 * MIB})
        with pytest.raises(CheckCondition, match="CAPACITY DATA HAS CHANGED"):
            disk.readcapacity16()
        disk.write10(8 * MIB // 512 - 1, 1, B, fua=1)
    daemon.client.call("DELETE", LUN)
    assert decrypted(daemon)[-512:] == B
    finished(daemon, "POST", f"{IMAGE}/commit")
    assert decrypted(daemon)[3 * 512 : 4 * 512] == A


def test_a_secret_is_in_no_command_line_environment_log_or_answer(daemon: Daemon) -> None:
    pids = [daemon.process.pid, daemon.pid("vm")]
    told = b"".join(Path(f"/proc/{pid}/{kind}").read_bytes() for pid in pids for kind in ("cmdline", "environ"))
    told += b"".join(path.read_bytes() for path in (*daemon.runtime.rglob("log"), daemon.log))
    for path in (
        "secrets",
        "secrets/k1",
        "pools/default/images",
        "targets",
        "targets/vm/luns",
        "pools/default/images/disk",
    ):
        told += json.dumps(daemon.get(path)).encode()
    told += b"".join(file.read_bytes() for file in daemon.state.glob("catalog.sqlite*"))
    assert b"k1" in told
    assert b"hidden" not in told


def test_a_secret_that_is_gone_or_wrong_is_told_and_mends_itself_when_it_is_back(daemon: Daemon) -> None:
    file = daemon.state / "secrets" / "k1"
    right = file.read_bytes()
    for change, code, told in (
        (file.unlink, "secret_needed", "image base is encrypted, and its secret k1 is not there"),
        (lambda: file.write_bytes(b"wrong"), "secret_wrong", "the secret does not open default/base"),
    ):
        daemon.client.call("DELETE", LUN)
        change()
        with pytest.raises(ApiProblem, match=told) as refused:
            daemon.put("targets/vm/luns/0", image="disk", serial="SERIAL1")
        assert refused.value.body["code"] == code
        file.write_bytes(right)
        daemon.put("targets/vm/luns/0", image="disk", serial="SERIAL1")
    file.unlink()
    os.kill(daemon.pid("vm"), signal.SIGKILL)
    eventually(lambda: "its secret k1 is not there" in str(daemon.get("targets/vm")["process"]["problem"]))
    daemon.put("secrets/k1", value=PASS["k1"])
    eventually(lambda: daemon.is_up("vm"))
    with disk_of(daemon) as disk:
        assert bytes(disk.read10(0, 1).datain) == bytes(512)
