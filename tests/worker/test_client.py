"""A worker as its daemon sees it: results, refusals, deaths, limits, and the leash that ends it."""

import errno
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from formats.errors import CorruptImage, ImageNotFound, UnsupportedFeature
from formats.registry import create_image
from tests.formats.reference import qemu_io
from tests.store.world import MIB, ROOT, eventually
from tests.transfer.chains import empty_chain
from vstore.worker import client
from vstore.worker.client import run
from vstore.worker.wire import Cancelled, ImageFile, Work, WorkerFailed, told, understood


@pytest.fixture
def image(tmp_path: Path) -> Iterator[ImageFile]:
    """A qcow2 image of 1 MiB."""
    create_image("qcow2", tmp_path / "a.qcow2", MIB)
    descriptor = os.open(tmp_path / "a.qcow2", os.O_RDWR)
    yield ImageFile("qcow2", "a.qcow2", descriptor, read_only=False)
    os.close(descriptor)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list["subprocess.Popen[bytes]"]:
    """The processes that `run` has started."""
    processes = []

    class Recorded(subprocess.Popen):  # type: ignore[type-arg]
        def __init__(self, *arguments: object, **options: object) -> None:
            super().__init__(*arguments, **options)  # type: ignore[call-overload]
            processes.append(self)

    monkeypatch.setattr(client.subprocess, "Popen", Recorded)
    return processes


def during(act: Callable[[], None]) -> Callable[[], bool]:
    """A question whether to give up that does something, once, and says no."""
    done = []

    def asked() -> bool:
        if not done:
            done.append(True)
            act()
        return False

    return asked


def test_the_result_of_the_work_comes_back(image: ImageFile) -> None:
    result = run(Work("info", {"image": [image]}))
    assert (result["filename"], result["format"], result["virtual-size"]) == ("a.qcow2", "qcow2", MIB)


def test_a_refusal_comes_back_as_what_it_was(image: ImageFile) -> None:
    with pytest.raises(ImageNotFound, match=r"a\.qcow2 has no snapshot 'x'"):
        run(Work("delete_snapshot", {"image": [image]}, {"name": "x"}))


def test_a_fault_of_our_own_is_no_refusal(image: ImageFile) -> None:
    with pytest.raises(WorkerFailed, match="KeyError"):
        run(Work("nonsense", {"image": [image]}))


@pytest.mark.parametrize(
    "error",
    [
        CorruptImage("it contradicts itself"),
        UnsupportedFeature("not offered"),
        OSError(errno.ENOSPC, "No space left on device"),
        Cancelled("so it was asked"),
    ],
)
def test_errors_pass_the_wire_unchanged(error: Exception) -> None:
    again = understood(told(error))
    assert type(again) is type(error)
    assert told(again) == told(error)


def test_memory_that_runs_out_is_the_works_own_fault() -> None:
    again = understood(told(MemoryError()))
    assert isinstance(again, OSError)
    assert again.errno == errno.ENOMEM


def test_a_worker_that_dies_is_told_and_leaves_nothing(
    image: ImageFile, started: list["subprocess.Popen[bytes]"]
) -> None:
    def die() -> None:
        started[0].kill()

    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(WorkerFailed, match=r"without an outcome \(status -9\)"):
        run(Work("info", {"image": [image]}), cancelled=during(die))
    assert started[0].returncode == -9
    assert set(os.listdir("/proc/self/fd")) == before


def test_a_worker_has_limits_and_only_the_descriptors_it_was_given(
    image: ImageFile, started: list["subprocess.Popen[bytes]"], tmp_path: Path
) -> None:
    seen: dict[str, object] = {}

    def look() -> None:
        process = Path(f"/proc/{started[0].pid}")
        eventually(lambda: " 2147483648 " in (process / "limits").read_text())
        links = [os.readlink(descriptor) for descriptor in (process / "fd").iterdir()]
        seen["files"] = {link for link in links if link.startswith(str(tmp_path))}
        seen["sockets"] = [link for link in links if link.startswith("socket:")]

    stranger = os.open(tmp_path / "stranger", os.O_RDWR | os.O_CREAT)
    run(Work("info", {"image": [image]}), cancelled=during(look))
    os.close(stranger)
    assert seen == {"files": {str(tmp_path / "a.qcow2")}, "sockets": []}


def test_a_worker_takes_a_chain_that_is_longer_than_the_usual_limit_of_open_files_allows(tmp_path: Path) -> None:
    chain = empty_chain(tmp_path, 30)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    descriptors = [os.open(path, os.O_RDONLY) for path in reversed(chain)]
    files = [
        ImageFile("qcow2", path.name, descriptor, read_only=True)
        for path, descriptor in zip(reversed(chain), descriptors, strict=True)
    ]
    few = max(len(os.listdir("/proc/self/fd")), *descriptors) + 12
    resource.setrlimit(resource.RLIMIT_NOFILE, (few, before[1]))
    try:
        told = run(Work("map", {"image": files}, {"start": 0, "limit": 10}))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        for descriptor in descriptors:
            os.close(descriptor)
    assert told


@pytest.mark.parametrize(
    ("verb", "options"),
    [("resize", {"length": 1 << 19}), ("resize", {"length": 1 << 36}), ("take_snapshot", {"name": "two"})],
)
def test_a_change_tells_that_it_goes_on(tmp_path: Path, verb: str, options: dict[str, object]) -> None:
    chain = empty_chain(tmp_path, 2)
    qemu_io("qcow2", chain[1], "write 0 1M")
    descriptors = [os.open(path, os.O_RDWR) for path in chain]
    files = [
        ImageFile("qcow2", path.name, each, read_only=path is chain[0])
        for path, each in zip(chain, descriptors, strict=True)
    ][::-1]
    heard: list[tuple[int, int]] = []
    run(Work(verb, {"image": files}, options), progress=lambda done, total: heard.append((done, total)))
    if verb == "take_snapshot":
        assert heard
        heard.clear()
        run(Work("delete_snapshot", {"image": files}, options), progress=lambda *told: heard.append(told))
    assert heard
    for each in descriptors:
        os.close(each)


def test_a_worker_that_does_not_give_up_is_killed(
    image: ImageFile, started: list["subprocess.Popen[bytes]"], monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(_work: Work, outcome: int, _keep: object) -> "subprocess.Popen[bytes]":
        return client.subprocess.Popen(["sleep", "60"], stdin=subprocess.PIPE, stdout=outcome)

    monkeypatch.setattr(client, "_start", start)  # a real one may be done before it is asked
    with pytest.raises(Cancelled):
        run(Work("info", {"image": [image]}), cancelled=lambda: True, grace=lambda: 0.0)
    assert started[0].returncode == -9


def test_a_worker_ends_when_its_daemon_is_gone() -> None:
    script = "import sys, time; from vstore.worker.main import _Leash; _Leash(sys.stdin); print('held', flush=True); "
    child = subprocess.Popen(
        [sys.executable, "-c", script + "time.sleep(50)"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
    )
    assert child.stdout
    assert child.stdin
    child.stdout.readline()
    assert child.poll() is None
    child.stdin.close()
    assert child.wait(30) == 3
    child.stdout.close()


@pytest.mark.parametrize("told", [["cat", "/dev/zero"], ["yes"]], ids=["a line without end", "no JSON"])
def test_a_worker_that_went_mad_is_ended_and_nobody_waits_for_it(
    image: ImageFile, started: list["subprocess.Popen[bytes]"], monkeypatch: pytest.MonkeyPatch, told: list[str]
) -> None:
    """It would wait for somebody to read what it writes, and its daemon for its end."""

    def start(_work: Work, outcome: int, _keep: object) -> "subprocess.Popen[bytes]":
        return client.subprocess.Popen(told, stdin=subprocess.PIPE, stdout=outcome)

    monkeypatch.setattr(client, "_start", start)
    monkeypatch.setattr(client, "_LONGEST_LINE", 1 << 20)
    with pytest.raises(WorkerFailed, match="the worker told"):
        run(Work("info", {"image": [image]}))
    assert started[0].returncode is not None
