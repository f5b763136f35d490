"""A target process from its start to its end, which a daemon's death is not."""

import fcntl
import signal
import subprocess
from pathlib import Path

import pytest

from tests.target.conftest import Running
from tests.target.guest import refusal, settle, write_10
from vstore.client import VstoreDevice
from vstore.target.client import TargetClient
from vstore.target.errors import ErrorCode
from vstore.target.verbs import (
    Configure,
)


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT, "stop"])
def test_orderly_end_flushes_closes_and_removes_what_it_made(
    target: Running, disk: Path, ending: signal.Signals | str
) -> None:
    target.configure()
    target.map_file(disk)
    with target.device() as device:
        settle(device)
        write_10(device, 0, b"last" * 128)
        if isinstance(ending, signal.Signals):
            target.process.send_signal(ending)
        else:
            target.client.stop()
        assert target.wait() == 0
    assert disk.read_bytes()[:512] == b"last" * 128
    assert sorted(path.name for path in target.folder.iterdir()) == ["disk.raw", "target.log"]
    with disk.open("r+b") as file:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert refusal(target.client.status).code is ErrorCode.DISCONNECTED


def test_process_outlives_a_killed_daemon_and_is_adopted(tmp_path: Path, disk: Path) -> None:
    """The daemon here is a Python process that spawns, maps, connects, and is killed with SIGKILL."""
    control, vhost = str(tmp_path / "control.sock"), str(tmp_path / "vhost.sock")
    daemon = subprocess.Popen(
        [".venv/bin/python", "-m", "tests.target.daemon", control, vhost, str(disk)], stdout=subprocess.PIPE
    )
    assert daemon.stdout
    with daemon:
        pid = int(daemon.stdout.readline())
        with VstoreDevice(vhost, timeout=10) as device:
            settle(device)
            daemon.kill()
            daemon.wait()
            write_10(device, 1, b"after" + bytes(507))
            with TargetClient(control) as client:
                status = client.status()
                assert (status.pid, status.state) == (pid, "connected")
                assert status.configuration == Configure(name="vm0", socket=vhost)
                assert [lun.settings.image.name for lun in status.luns] == [str(disk)]
                client.stop()
    assert disk.read_bytes()[512:517] == b"after"
    assert not Path(vhost).exists()
