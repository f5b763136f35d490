"""What a flush costs, counted by strace: two barriers when blocks were allocated, one when none was."""

import re
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from formats.image import Change
from tests.formats.qcow2.oracle import assert_clean, open_qcow2, qemu_create
from vstore.disk import Disk

MIB = 1 << 20

# each phase ends with a call that nothing else makes
PHASES = """
import os, sys
from pathlib import Path
from tests.formats.qcow2.oracle import open_qcow2
from vstore.disk import Disk

disk = Disk(open_qcow2(Path(sys.argv[1])))
disk.write_blocking(0, bytes(65536))
disk.flush_blocking()  # a refcount block and an L2 table may be new
os.access("phase-start", os.F_OK)
for n in range(1, 40):
    disk.write_blocking(n << 20, b"x" * 4096)
disk.flush_blocking()
os.access("phase-allocating", os.F_OK)
disk.write_blocking(5, b"y" * 100)
disk.flush_blocking()
os.access("phase-in-place", os.F_OK)
disk.flush_blocking()
os.access("phase-nothing-written", os.F_OK)
disk.write_zeroes_blocking(1 << 20, 1 << 20, deallocate=True)
disk.flush_blocking()
os.access("phase-zeroing", os.F_OK)
disk.close()
"""


def barriers(path: Path) -> dict[str, int]:
    """Calls of fdatasync and its kin in each phase."""
    traced = subprocess.run(
        ["strace", "-f", "-e", "trace=fdatasync,fsync,sync_file_range,access", sys.executable, "-c", PHASES, str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert traced.returncode == 0, traced.stderr[-2000:]
    counts: dict[str, int] = {}
    here = 0
    for line in traced.stderr.splitlines():
        if re.search(r"\b(fdatasync|fsync|sync_file_range)\(", line):
            here += 1
        elif phase := re.search(r'access\("phase-([a-z-]+)"', line):
            counts[phase[1]] = here
            here = 0
    return counts


@pytest.mark.parametrize("extended", ["off", "on"])
def test_a_flush_makes_two_barriers_for_new_blocks_and_one_without(tmp_path: Path, extended: str) -> None:
    path = tmp_path / "disk.qcow2"
    qemu_create(path, 64 * MIB, extended_l2=extended)
    counts = barriers(path)
    assert counts["allocating"] == 2
    assert counts["in-place"] == 1
    assert counts["nothing-written"] == 1
    assert counts["zeroing"] <= 2
    assert_clean(path)


def test_flushes_that_wait_share_one_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "disk.qcow2"
    qemu_create(path, 64 * MIB)
    disk = Disk(open_qcow2(path))
    commit = disk.image.commit
    begun, go, calls = threading.Event(), threading.Event(), []

    def slowly(changes: Sequence[Change]) -> None:
        calls.append(changes)
        begun.set()
        assert go.wait(30)
        commit(changes)

    monkeypatch.setattr(disk.image, "commit", slowly)
    disk.write_blocking(0, b"a")
    first = threading.Thread(target=disk.flush_blocking)
    first.start()
    assert begun.wait(30)
    disk.write_blocking(MIB, b"b")
    others = [threading.Thread(target=disk.flush_blocking) for _ in range(8)]
    for thread in others:
        thread.start()
    while disk._map.commits.waiting < len(others):
        pass
    go.set()
    for thread in [first, *others]:
        thread.join(30)
        assert not thread.is_alive()
    assert len(calls) == 2
    disk.close()
    assert_clean(path)
