"""A store in directories of its own, over fake target processes that end with the test."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from vstore.store import Store

ROOT = Path(__file__).parents[2]
MIB = 1 << 20

STATE = ".vstore-state"


class World:
    """`root` has a short name, because sockets live below it."""

    def __init__(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="vs"))
        self.state = self.root / "state"
        self.runtime = self.root / "run"
        self.children: list[subprocess.Popen[bytes]] = []
        self.stores: list[Store] = []

    def open(self) -> Store:
        store = Store(self.state, self.runtime, spawn=self.spawn)
        self.stores.append(store)
        return store

    def close_store(self, store: Store, *, stop_targets: bool) -> None:
        self.stores.remove(store)
        store.close(stop_targets=stop_targets)

    def spawn(self, control: str, log: Path) -> subprocess.Popen[bytes]:
        with log.open("ab") as output:
            child = subprocess.Popen(
                [sys.executable, "-m", "tests.store.fake_target", control],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=output,
                cwd=ROOT,
                start_new_session=True,
            )
        assert child.stdout is not None
        child.stdout.readline()
        child.stdout.close()
        self.children.append(child)
        return child

    def fail(self, target: str, **faults: str) -> None:
        """What the process of `target` shall do wrong from now on."""
        (self.runtime / "targets" / target / "faults.json").write_text(json.dumps(faults))

    def pool(self) -> Path:
        return self.state / "pools" / "default"

    def files(self) -> list[str]:
        """All that lies in the pool, but what units keep beside images that are there."""
        return sorted(set(os.listdir(self.pool())) - {f"{name}{STATE}" for name in self.states()})

    def states(self) -> set[str]:
        """The images beside which their units keep something."""
        names = set(os.listdir(self.pool()))
        return {name for name in names if f"{name}{STATE}" in names}

    def close(self) -> None:
        for store in self.stores:
            store.close(stop_targets=False)
        kill_all_that_name(self.root)
        for child in self.children:
            child.wait()
        shutil.rmtree(self.root)


def kill_all_that_name(directory: Path) -> None:
    """Ends the processes whose command line has a path below this directory of a test's own."""
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if str(directory).encode() in entry.read_bytes():
                os.kill(int(entry.parent.name), signal.SIGKILL)


def alive(pid: int | None) -> bool:
    """Whether the process runs; one that ended and was not reaped yet does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def eventually(holds: Callable[[], bool], timeout: float = 50.0) -> None:
    """Waits for something that another thread or process brings about."""
    deadline = time.monotonic() + timeout
    while not holds():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.01)
