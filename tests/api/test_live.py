"""A daemon with real target processes and a guest on an overlay: chains, snapshots and resizing while it writes; jobs
that a dying daemon leaves behind."""

import os
import random
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from api.cli.errors import ApiProblem
from tests.api.daemon import Daemon
from tests.api.test_serve import disk_of
from tests.store.world import MIB, eventually
from vstore.client.status import CheckCondition

A, B, C = b"\xaa" * 512, b"\xbb" * 512, b"\xcc" * 512


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
    """base (raw, first sector A) <- disk (qcow2), which is LUN 0 of target `vm`; 4 MiB."""
    daemon.put("pools/default/images/base", virtual_size_bytes=4 * MIB)
    with daemon.image("base").open("r+b") as file:
        file.write(A)
    daemon.put("pools/default/images/disk", format="qcow2", parent="base")
    daemon.put("targets/vm", request_queues=1)
    daemon.put("targets/vm/luns/0", image="disk", serial="SERIAL1")
    return daemon


IMAGE = "/v1/pools/default/images/disk"


def finished(daemon: Daemon, method: str, path: str, **body: object) -> dict[str, object]:
    """The result of a job that has to succeed."""
    job = daemon.client.call(method, path, body)
    job = daemon.client.call("GET", f"/v1/jobs/{job['id']}?wait=30")
    assert job["state"] == "succeeded", job
    return dict(job["result"])


def qcow2(daemon: Daemon) -> Path:
    return daemon.image("disk").with_suffix(".qcow2")


def test_a_guest_reads_through_its_overlay_and_writes_into_it_alone(mapped: Daemon) -> None:
    with disk_of(mapped) as disk:
        assert bytes(disk.read10(0, 1).datain) == A
        disk.write10(0, 1, B)
        assert bytes(disk.read10(0, 1).datain) == B
    mapped.client.call("DELETE", "/v1/targets/vm/luns/0")
    assert mapped.image("base").read_bytes()[:512] == A
    subprocess.run(["qemu-img", "check", "-q", "-f", "qcow2", qcow2(mapped)], check=True)
    finished(mapped, "POST", f"{IMAGE}/commit")
    assert mapped.image("base").read_bytes()[:512] == B


def test_a_snapshot_is_taken_under_the_guest_and_the_disk_goes_back_to_it(mapped: Daemon) -> None:
    with disk_of(mapped) as disk:
        disk.write10(1, 1, B)
        taken = mapped.client.call("PUT", f"{IMAGE}/snapshots/s1")
        assert taken["pause_us"] >= 0
        disk.write10(1, 1, C)
        assert bytes(disk.read10(1, 1).datain) == C
        mapped.client.call("PUT", f"{IMAGE}/snapshots/s2")
        mapped.client.call("DELETE", f"{IMAGE}/snapshots/s2")
        assert [each["name"] for each in mapped.client.items(f"{IMAGE}/snapshots")] == ["s1"]
        for path, body in ((f"{IMAGE}/snapshots/s1/apply", None), (f"{IMAGE}/commit", {}), (f"{IMAGE}/check", {})):
            with pytest.raises(ApiProblem, match="mapped as LUN vm/0") as refused:
                mapped.client.call("POST", path, body)
            assert refused.value.body["code"] == "in_use"
        finished(mapped, "POST", f"{IMAGE}/convert", into="then", format="raw", snapshot="s1")
        assert mapped.image("then").read_bytes()[:1024] == A + B
        assert bytes(disk.read10(1, 1).datain) == C
    mapped.client.call("DELETE", "/v1/targets/vm/luns/0")
    finished(mapped, "POST", f"{IMAGE}/snapshots/s1/apply")
    subprocess.run(["qemu-img", "check", "-q", "-f", "qcow2", qcow2(mapped)], check=True)
    finished(mapped, "POST", f"{IMAGE}/convert", into="now", format="raw")
    assert mapped.image("now").read_bytes()[:1024] == A + B


def test_an_overlay_grows_under_the_guest_and_is_looked_into(mapped: Daemon) -> None:
    with disk_of(mapped) as disk:
        disk.write10(0, 1, B, fua=1)
        mapped.client.call("PATCH", IMAGE, {"virtual_size_bytes": 8 * MIB})
        with pytest.raises(CheckCondition, match="CAPACITY DATA HAS CHANGED"):
            disk.readcapacity16()
        assert disk.readcapacity16().result["returned_lba"] == 8 * MIB // 512 - 1
        assert mapped.get("pools/default/images/disk/info")["virtual-size"] == 8 * MIB
        rows = list(mapped.client.items(f"{IMAGE}/map"))
        assert rows[0]["depth"] == 0
        assert sum(row["length"] for row in rows) == 8 * MIB


def test_a_killed_target_comes_back_with_its_whole_chain(mapped: Daemon) -> None:
    with disk_of(mapped) as disk:
        disk.write10(5, 1, C, fua=1)
        os.kill(mapped.pid("vm"), signal.SIGKILL)
    eventually(lambda: mapped.get("targets/vm")["process"]["restarts"] == 1 and mapped.is_up("vm"))
    with disk_of(mapped) as disk:
        assert bytes(disk.read10(0, 1).datain) == A
        assert bytes(disk.read10(5, 1).datain) == C


def test_a_guest_writes_through_an_overlay_and_into_a_data_file(daemon: Daemon) -> None:
    raw = {"data_file": "base.data", "data_file_raw": True}
    daemon.put("pools/default/images/base", format="qcow2", virtual_size_bytes=MIB, options=raw)
    daemon.put("targets/vm", request_queues=1)
    daemon.put("targets/vm/luns/0", image="base", serial="SERIAL1")
    with disk_of(daemon) as disk:
        disk.write10(2, 1, A, fua=1)
        os.kill(daemon.pid("vm"), signal.SIGKILL)
    eventually(lambda: daemon.get("targets/vm")["process"]["restarts"] == 1 and daemon.is_up("vm"))
    with disk_of(daemon) as disk:
        assert bytes(disk.read10(2, 1).datain) == A
    daemon.client.call("DELETE", "/v1/targets/vm/luns/0")
    assert daemon.image("base").with_suffix(".data").read_bytes()[1024:1536] == A
    daemon.put("pools/default/images/disk", format="qcow2", parent="base")
    daemon.put("targets/vm/luns/0", image="disk", serial="SERIAL2")
    with disk_of(daemon) as disk:
        assert bytes(disk.read10(2, 1).datain) == A
        disk.write10(2, 1, B, fua=1)
    daemon.client.call("DELETE", "/v1/targets/vm/luns/0")
    finished(daemon, "POST", f"{IMAGE}/commit")
    assert daemon.image("base").with_suffix(".data").read_bytes()[1024:1536] == B


def test_a_job_of_a_killed_daemon_has_failed_and_left_nothing(daemon: Daemon) -> None:
    daemon.put("pools/default/images/big", virtual_size_bytes=64 * MIB)
    daemon.image("big").write_bytes(random.Random(1).randbytes(64 * MIB))  # takes its time to compress
    pool = daemon.image("big").parent
    job = daemon.client.call("POST", "/v1/pools/default/images/big/bench", {"requests": 1 << 24, "depth": 2})
    making = daemon.client.call("POST", "/v1/pools/default/images/big/convert", {"into": "new", "compress": True})
    eventually(lambda: any(entry.name.startswith(".creating-") for entry in pool.iterdir()))
    daemon.end(signal.SIGKILL)
    daemon.start()
    for each in (job, making):
        told = daemon.get(f"jobs/{each['id']}")
        assert (told["state"], told["error"]["code"]) == ("failed", "interrupted")
    assert [entry.name for entry in pool.iterdir()] == ["big.raw"]
    daemon.client.call("DELETE", "/v1/pools/default/images/big", headers={"If-Match": "*"})


def test_a_cancelled_job_stops_its_worker_and_clears_away(daemon: Daemon) -> None:
    daemon.put("pools/default/images/big", virtual_size_bytes=64 * MIB)
    job = daemon.client.call("POST", "/v1/pools/default/images/big/bench", {"requests": 1 << 24, "depth": 2})
    eventually(lambda: daemon.get(f"jobs/{job['id']}")["done_bytes"] > 0)
    daemon.client.call("DELETE", f"/v1/jobs/{job['id']}")
    assert daemon.get(f"jobs/{job['id']}?wait=30")["state"] == "cancelled"
    daemon.client.call("DELETE", "/v1/pools/default/images/big", headers={"If-Match": "*"})
