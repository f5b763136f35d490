"""The harness itself, with QEMU's own virtio-scsi disk: what it promises to the tests of vstore."""

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guest.channel import ChannelError
from tests.guest.guest import Guest, GuestError, Result
from tests.guest.initramfs import Archive
from tests.guest.kernel import MissingPackageError, debian_kernel, find_tool
from tests.guest.machine import QemuScsi
from tests.guest.process import Process
from tests.guest.qmp import QmpError

MIB = 1 << 20


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("image") / "disk.raw"
    path.touch()
    os.truncate(path, 64 * MIB)
    return path


@pytest.fixture(scope="module")
def guest(image: Path) -> Iterator[Guest]:
    with Guest(image.parent, [QemuScsi(image)]) as running:
        yield running.boot()


def test_a_script_returns_its_status_output_and_errors(guest: Guest) -> None:
    assert guest.run("echo out; echo err >&2; exit 3") == Result(3, "out\n", "err\n")


def test_a_script_that_exceeds_its_time_is_cut_off_and_the_guest_answers_on(guest: Guest) -> None:
    assert guest.run("sleep 60", timeout=1).status == 143
    assert guest.check("echo still here") == "still here\n"


def test_a_long_output_arrives_whole(guest: Guest) -> None:
    assert len(guest.check("seq 100000").splitlines()) == 100_000


def test_check_shows_what_a_failed_script_printed(guest: Guest) -> None:
    with pytest.raises(GuestError, match=r"ended with 7, not 0[^$]*the reason"):
        guest.check("echo the reason >&2; exit 7")


def test_wait_until_gives_up_with_an_error(guest: Guest) -> None:
    assert guest.wait_until("[ -b /dev/sda ] && echo found") == "found\n"
    with pytest.raises(GuestError):
        guest.wait_until("[ -b /dev/sdz ]", timeout=0.5)


def test_what_the_guest_writes_reaches_the_image(guest: Guest, image: Path) -> None:
    printed = guest.check(
        "head -c 1048576 /dev/urandom >/tmp/data; dd if=/tmp/data of=/dev/sda; sync; sha256sum /tmp/data"
    )
    with image.open("rb") as disk:
        assert printed.split()[0] == hashlib.sha256(disk.read(MIB)).hexdigest()


def test_a_disk_that_works_causes_no_trouble_in_the_kernel_log(guest: Guest) -> None:
    assert guest.disk_trouble() == []


def test_a_disk_that_fails_is_trouble_in_the_kernel_log(guest: Guest) -> None:
    message = "sd 0:0:0:0: [sda] tag#0 FAILED Result: hostbyte=DID_OK"
    guest.check(f"echo '{message}' >/dev/kmsg")
    assert guest.disk_trouble() == [message]


def test_qmp_answers_and_refuses_with_qemus_words(guest: Guest) -> None:
    assert guest.qmp("query-status")["running"] is True
    with pytest.raises(QmpError, match="no-such-command"):
        guest.qmp("no-such-command")


def test_shutdown_ends_qemu_and_a_dead_guest_is_an_error_not_a_hang(guest: Guest) -> None:
    guest.shutdown()
    assert guest.process is not None
    assert not guest.process.running
    with pytest.raises(ChannelError):
        guest.run("true")


def test_a_child_does_not_outlive_the_process_that_started_it(tmp_path: Path) -> None:
    program = """if True:
        import os, signal
        from pathlib import Path
        from tests.guest.process import Process
        pid = Process("sleep", ["sleep", "60"], Path("log")).pid
        while Path(f"/proc/{pid}/comm").read_text() != "sleep\\n":
            pass  # setpriv is still on its way to asking for the signal
        print(pid, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    words = ["env", f"PYTHONPATH={Path(__file__).parents[2]}", sys.executable, "-c", program]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False)
    assert done.stdout.strip()
    deadline = time.monotonic() + 10
    while runs(int(done.stdout)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not runs(int(done.stdout))


def runs(pid: int) -> bool:
    """A zombie does not: whoever inherited it may take its time to reap it."""
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_stopped_process_that_ignores_sigterm_is_killed_and_reported(tmp_path: Path) -> None:
    process = Process("deaf", ["sh", "-c", "trap '' TERM; while :; do sleep 0.1; done"], tmp_path / "log")
    time.sleep(0.3)
    with pytest.raises(subprocess.TimeoutExpired):
        process.stop(timeout=0.5)
    assert not process.running


def test_a_missing_tool_is_named_with_its_debian_package() -> None:
    with pytest.raises(MissingPackageError, match="no-such-tool is missing: install the Debian package some-package"):
        find_tool("no-such-tool", "some-package")


def test_modules_come_after_what_they_depend_on() -> None:
    names = [path.name for path in debian_kernel().load_order(["virtio_scsi", "sd_mod"])]
    assert names.index("scsi_common.ko") < names.index("scsi_mod.ko") < names.index("virtio_scsi.ko")
    assert len(names) == len(set(names))


def test_the_archive_is_one_that_cpio_reads(tmp_path: Path) -> None:
    archive = Archive()
    archive.add_file("/usr/bin/tool", b"content")
    archive.add_link("/usr/bin/link", "tool")
    cpio = find_tool("busybox", "busybox-static")
    subprocess.run([cpio, "cpio", "-id"], input=archive.finished(), cwd=tmp_path, check=True, timeout=10)
    assert (tmp_path / "usr/bin/link").read_bytes() == b"content"
