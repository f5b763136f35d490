"""A spare becomes a target process like any other, sooner; and nobody is left waiting for a daemon that is gone."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from formats.registry import create_image
from tests.target.conftest import MIB, running, until
from tests.target.guest import refusal, settle, write_10
from vstore.target import spare
from vstore.target.client import TargetClient
from vstore.target.errors import ErrorCode
from vstore.target.spare import Spare
from vstore.target.spawn import spawn
from vstore.target.verbs import ImageSource


def waiting(kept: Spare) -> int:
    """The process that waits; 0: there is none."""
    return kept._waiting._process.pid if kept._waiting else 0


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Spare]:
    """A spare that is there, and followed by another at once."""
    monkeypatch.setattr(spare, "_PAUSE", 0.0)
    with Spare(tmp_path) as kept:
        until(lambda: waiting(kept))
        yield kept


@contextlib.contextmanager
def ended(process: subprocess.Popen[bytes]) -> Iterator[None]:
    try:
        yield
    finally:
        process.kill()
        process.wait()


def test_it_becomes_what_any_target_process_is(kept: Spare, tmp_path: Path) -> None:
    found = []
    for name, how in (("spawned", spawn), ("spare", kept.spawn)):
        folder, disk = tmp_path / name, tmp_path / f"{name}.raw"
        folder.mkdir()
        disk.write_bytes(bytes(MIB))
        for target in running(folder, how):
            target.configure()
            target.map_file(disk)
            pid = target.process.pid
            environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            known = {variable.split(b"=")[0] for variable in environment}
            found.append(
                (
                    [each.replace(name, "NAME") for each in target.descriptors()],
                    [os.readlink(f"/proc/{pid}/fd/{output}").replace(name, "NAME") for output in range(3)],
                    (os.readlink(f"/proc/{pid}/cwd"), os.getsid(pid) == pid, known, target.client.status().state),
                )
            )
    assert found[1] == found[0]


def test_once_it_has_its_orders_it_imports_nothing_more_for_a_disk(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Python tells on stderr of each import, and that is the target's log from the orders on."""
    monkeypatch.setenv("PYTHONPROFILEIMPORTTIME", "1")
    monkeypatch.setattr(spare, "_PAUSE", 0.0)
    image = tmp_path / "disk.qcow2"
    create_image("qcow2", image, MIB)
    with Spare(tmp_path) as kept:
        until(lambda: waiting(kept))
        for target in running(tmp_path, kept.spawn):
            target.configure()
            target.map_file(image, image=ImageSource(format="qcow2", name="disk"))
            with target.device() as device:
                settle(device)
                write_10(device, 0, b"last" * 128)
    imported = [line for line in (tmp_path / "target.log").read_text().splitlines() if line.startswith("import time")]
    assert not imported, "spare.AHEAD lacks what leads to these"


def test_another_one_follows(kept: Spare, tmp_path: Path) -> None:
    first = waiting(kept)
    assert str(tmp_path) in Path(f"/proc/{first}/cmdline").read_text()
    process = kept.spawn(str(tmp_path / "control.sock"), tmp_path / "log")
    with ended(process):
        assert process.pid == first
        until(lambda: waiting(kept) not in (0, first))


def test_one_that_has_died_is_not_missed(kept: Spare, tmp_path: Path) -> None:
    first = waiting(kept)
    os.kill(first, signal.SIGKILL)
    until(lambda: Path(f"/proc/{first}/stat").read_text().split()[2] == "Z")
    process = kept.spawn(str(tmp_path / "control.sock"), tmp_path / "log")
    with ended(process), TargetClient(str(tmp_path / "control.sock"), timeout=15) as client:
        assert client.status().pid == process.pid != first
        assert not Path(f"/proc/{first}").exists()  # reaped


def test_one_that_cannot_listen_says_why(kept: Spare, tmp_path: Path) -> None:
    error = refusal(kept.spawn, str(tmp_path / "missing" / "control.sock"), tmp_path / "log")
    assert error.code is ErrorCode.NOT_STARTED
    assert "no such directory" in error.detail


def test_nobody_waits_for_a_daemon_that_needs_none(kept: Spare) -> None:
    pid = waiting(kept)
    kept.close()
    assert not Path(f"/proc/{pid}").exists()


def test_nobody_waits_for_a_daemon_that_was_killed() -> None:
    script = (
        "import time; from vstore.target import spare; spare._PAUSE = 0; kept = spare.Spare('/tmp'); time.sleep(0.5);"
        "print(kept._waiting._process.pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as daemon:
        assert daemon.stdout
        pid = int(daemon.stdout.readline())
        daemon.kill()
    until(lambda: not Path(f"/proc/{pid}").exists() or Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z")
