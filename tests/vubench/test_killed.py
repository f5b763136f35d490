"""A target process that is killed is a pause: its front-end, which cannot connect again, loses nothing, sees no error.

`VSTORE_KILLS=200 pytest -s tests/vubench/test_killed.py` is the long form.
"""

import os
import random
import signal
import statistics
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from vstore.store import Store
from vstore.target.spare import Spare

VUBENCH = Path(__file__).parent / "vubench"
KILLS = int(os.environ.get("VSTORE_KILLS", "10"))
SIZE = 32 << 20
PATIENCE = 60.0  # seconds


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Spare(tmp_path / "run") as spare:  # as the daemon has one
        with_targets = Store(tmp_path / "state", tmp_path / "run", spawn=spare.spawn)
        try:
            yield with_targets
        finally:
            with_targets.close(stop_targets=True)


def kill(store: Store) -> float:
    """Seconds until another process is there, and serves."""
    pid = store.show_target("t").process.pid
    assert pid is not None
    began = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    while store.show_target("t").process.state != "connected" or store.show_target("t").process.pid == pid:
        assert time.monotonic() < began + PATIENCE, store.show_target("t").process
        time.sleep(0.005)
    return time.monotonic() - began


@pytest.mark.timeout(60 + 3 * KILLS)
def test_killed_at_random_moments_under_load_nothing_is_lost_repeated_or_wrong(store: Store, tmp_path: Path) -> None:
    store.create_image("default", "disk", virtual_size_bytes=SIZE)
    target, _ = store.create_target("t", request_queues=4)
    store.map_lun("t", "0", image="disk")
    load = ["--queues", "4", "--iodepth", "32", "--rw", "randrw", "--bs", "4k", "--size", str(SIZE), "--verify"]
    patience = ["--runtime", "3600", "--hang-timeout", str(int(PATIENCE)), "--no-inflight"]
    with (tmp_path / "vubench").open("w+") as told:
        argv = [VUBENCH, "--socket", target.socket, *load, *patience]
        vubench = subprocess.Popen(argv, stdout=told, stderr=told)
        try:
            until_connected(store)
            choice = random.Random(KILLS)
            pauses = []
            for _ in range(KILLS):
                time.sleep(choice.uniform(0.05, 1.5))
                pauses.append(kill(store))
            time.sleep(0.5)
            assert vubench.poll() is None, (tmp_path / "vubench").read_text()
        finally:
            vubench.send_signal(signal.SIGINT)
            vubench.wait(PATIENCE)
    print(f"{KILLS} kills: pause p50 {statistics.median(pauses):.3f} s, longest {max(pauses):.3f} s")
    assert vubench.returncode == 0, (tmp_path / "vubench").read_text()


def until_connected(store: Store) -> None:
    deadline = time.monotonic() + PATIENCE
    while store.show_target("t").process.state != "connected":
        assert time.monotonic() < deadline
        time.sleep(0.02)
