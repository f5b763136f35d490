"""vstore's data path judged by vubench: each byte verified in each ring and memory variant; hostile cases by count."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.vubench.exported import Exported, exported

HERE = Path(__file__).parent
# How many hostile cases are played, and from which seed.
CASES = int(os.environ.get("VUBENCH_CASES", "300"))
SEED = int(os.environ.get("VUBENCH_SEED", "1"))
DISK_MIB = 128

RINGS = {
    "direct": ["--no-indirect", "--no-event-idx"],
    "direct, event index": ["--no-indirect"],
    "indirect": ["--no-event-idx"],
    "indirect, event index": [],
}
MEMORIES = {
    "one region": [],
    "eight regions, buffers across their borders": ["--regions", "8", "--contig", "--straddle"],
    "four regions with a descriptor each": ["--regions", "4", "--fd-per-region"],
    "four regions as one table": ["--regions", "4", "--no-mem-slots"],
}


@pytest.fixture(scope="module")
def program() -> Path:
    """The load generator, built if it is not yet."""
    subprocess.run(["make", "-s", "-C", str(HERE)], check=True, capture_output=True)
    return HERE / "vubench"


@pytest.fixture(scope="module", params=["raw", "memory"])
def target(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exported]:
    arguments = ["--format", request.param, "--queues", "4", "--threads", "2"]
    if request.param == "raw":
        path = tmp_path_factory.mktemp("disk") / "disk.raw"
        with path.open("wb") as file:
            file.truncate(DISK_MIB << 20)
        arguments.insert(0, str(path))
    else:
        arguments += ["--size", f"{DISK_MIB}M"]
    with exported(*arguments) as running:
        yield running


def load(program: Path, target: Exported, *arguments: str) -> dict[str, Any]:
    """vubench's report of one verifying load; its own exit code is 0 only if every byte was right."""
    common = ["--socket", str(target.socket), "--verify", "--json", "--size", "32M"]
    done = subprocess.run([str(program), *common, *arguments], capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    assert report["used_len_mismatch"] == report["resid_nonzero"] == report["spurious_completions"] == 0
    assert report["verify"]["blocks_checked"] > 0
    return report


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("ring", RINGS)
@pytest.mark.parametrize("queues", [1, 4])
def test_every_byte_is_right(program: Path, target: Exported, queues: int, ring: str, memory: str) -> None:
    shape = ["--rw", "randrw", "--bs", "512-64k", "--iodepth", "8", "--ios", "600", "--segs", "4", "--seg-align", "1"]
    report = load(program, target, *shape, "--queues", str(queues), *RINGS[ring], *MEMORIES[memory])
    assert report["queues"] == queues
    assert report["indirect"] == ("--no-indirect" not in RINGS[ring])
    assert report["event_idx"] == ("--no-event-idx" not in RINGS[ring])


@pytest.mark.parametrize("completion", ["--poll", "--irq"])
def test_zeroes_and_flushes_among_writes_are_right(program: Path, target: Exported, completion: str) -> None:
    mix = ["--zero-pct", "30", "--flush-every", "7", completion]
    load(program, target, "--rw", "randrw", "--bs", "4k-256k", "--iodepth", "16", "--ios", "1500", *mix)


@pytest.mark.parametrize("disturbance", ["--stop-every", "--disconnect-every"])
def test_stopped_rings_and_lost_connections_lose_nothing(program: Path, target: Exported, disturbance: str) -> None:
    shape = ["--rw", "randrw", "--bs", "4k-64k", "--iodepth", "8", "--queues", "2", "--runtime", "2"]
    extra = ["--reconnect"] if disturbance == "--disconnect-every" else []
    load(program, target, *shape, disturbance, "0.2", *extra)


@pytest.mark.timeout(60 + CASES)
def test_hostile_guests_and_front_ends_do_no_harm(program: Path, target: Exported) -> None:
    before = target.descriptors()
    selection = ["--seed", str(SEED), "--count", str(CASES), "--batch", "4", "--wait-ms", "5"]
    argv = [str(program), "fuzz", "--socket", str(target.socket), *selection]
    argv += ["--backend-pid", str(target.process.pid), "--queues", "2"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60 + CASES, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "failures 0 (wrong data 0), stray writes 0, bad used entries 0, idle spinning 0" in done.stdout
    assert target.descriptors() <= before
    load(program, target, "--rw", "randrw", "--bs", "4k", "--ios", "500")


def test_a_front_end_that_came_first_is_served_by_the_first_target_that_comes(program: Path, tmp_path: Path) -> None:
    socket = tmp_path / "vhost.sock"
    words = [str(program), "first", "--socket", str(socket), "--type", "scsi", "--sector", "8"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as waiting:
        assert waiting.stdout
        assert waiting.stdout.readline() == "ready\n"
        with exported("--format", "memory", "--size", "1M", folder=tmp_path):
            name, at_socket, other, at_read = waiting.stdout.readline().split()
    assert (name, other) == ("socket_ns", "read_ns")
    assert int(at_socket) < int(at_read)


@pytest.mark.parametrize(
    "command", [["000000000000"], ["12000000ff00", "--data-in", "255"], ["120000000a00", "--data-in", "255"]]
)
def test_one_command_over_and_over(program: Path, target: Exported, command: list[str]) -> None:
    argv = [str(program), "--socket", str(target.socket), "--json", "--ios", "200", "--iodepth", "8", "--cdb", *command]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert (report["cdb"]["ios"], report["errors"], report["used_len_mismatch"]) == (200, 0, 0)


def test_one_command_is_not_verified(program: Path, target: Exported) -> None:
    argv = [str(program), "--socket", str(target.socket), "--verify", "--cdb", "000000000000"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 2
    assert "--verify" in done.stderr
