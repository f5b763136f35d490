"""What `vstore doctor` says of a host is what the host does, and each fault comes with what mends it."""

import errno
import os
import resource
import stat
from pathlib import Path

import pytest

from api import host_checks
from api.host_checks import CHECKS, Answer, Verdict, examine
from api.paths import Paths


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths(tmp_path / "state", tmp_path / "run")


@pytest.fixture
def qemu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A QEMU that tells what `qemu.write_text` has it tell."""
    script = tmp_path / f"qemu-system-{os.uname().machine}"
    script.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    return script


def told(check: str, paths: Paths) -> Answer:
    return CHECKS[check](paths)


def test_every_check_answers_and_every_fault_has_a_remedy(paths: Paths) -> None:
    findings = list(examine(paths))
    assert [finding.check for finding in findings] == list(CHECKS)
    assert all(finding.remedy for finding in findings if finding.verdict == Verdict.FAULT)


def test_a_host_on_which_these_tests_run_has_what_vstore_needs() -> None:
    paths = Paths(Path("/tmp"), Path("/tmp"))  # in pytest's own directories sockets would have paths that are too long
    assert not [finding for finding in examine(paths) if finding.verdict == Verdict.FAULT]


def test_nothing_is_left_behind(paths: Paths, tmp_path: Path) -> None:
    list(examine(paths))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "remedy"), [(errno.EPERM, "io_uring_disabled"), (errno.ENOSYS, "CONFIG_IO_URING"), (errno.EIO, "setup")]
)
def test_a_kernel_that_refuses_io_uring_is_a_fault(
    error: int, remedy: str, paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_checks, "system_call", lambda *_: error)
    answer = told("io_uring", paths)
    assert answer.verdict == Verdict.FAULT
    assert os.strerror(error) in answer.found
    assert remedy in (answer.remedy or "")


def test_a_system_call_tells_its_errno_and_leaves_nothing_open() -> None:
    before = os.listdir("/proc/self/fd")
    assert host_checks.system_call(-1) == errno.ENOSYS
    assert host_checks.CHECKS["openat2"](Paths(Path("/"), Path("/"))).verdict == Verdict.GOOD
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize(
    ("version", "verdict", "words"),
    [
        ("4.2.1", Verdict.FAULT, "too old"),
        ("7.2.21", Verdict.LOOK, "configuration space"),
        ("7.2.22", Verdict.GOOD, "cannot reconnect"),
        ("10.0.2", Verdict.GOOD, "10.0.2"),
    ],
)
def test_the_version_of_qemu_decides(version: str, verdict: Verdict, words: str, paths: Paths, qemu: Path) -> None:
    qemu.write_text(f"#!/bin/sh\necho 'QEMU emulator version {version} (Debian)'\n")
    answer = told("QEMU", paths)
    assert answer.verdict == verdict
    assert words in answer.found


@pytest.mark.parametrize("script", ["#!/bin/sh\nexit 3\n", "#!/bin/sh\necho hello\n", "no program\n"])
def test_a_qemu_that_is_broken_is_told(script: str, paths: Paths, qemu: Path) -> None:
    qemu.write_text(script)
    assert told("QEMU", paths).verdict == Verdict.LOOK


def test_a_host_without_qemu_is_told(paths: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "not in PATH" in told("QEMU", paths).found


@pytest.mark.parametrize("check", ["state directory", "runtime directory"])
def test_a_file_in_the_place_of_a_directory_is_a_fault(check: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    answer = told(check, Paths(tmp_path / "file", tmp_path / "file"))
    assert answer.verdict == Verdict.FAULT
    assert "no directory" in answer.found


def test_sockets_with_too_long_a_path_are_a_fault(tmp_path: Path) -> None:
    answer = told("runtime directory", Paths(tmp_path, tmp_path / ("long" * 20)))
    assert answer.verdict == Verdict.FAULT
    assert "--runtime-dir" in (answer.remedy or "")


def test_a_token_that_others_may_read_is_a_fault(paths: Paths) -> None:
    paths.state.mkdir()
    paths.token.touch(mode=0o600)
    assert told("token", paths).verdict == Verdict.GOOD
    paths.token.chmod(0o644)
    assert told("token", paths).remedy == f"chmod 600 {paths.token}"
    assert stat.S_IMODE(paths.token.stat().st_mode) == 0o644


def test_a_file_system_without_holes_is_told(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    assert told("holes", paths).verdict == Verdict.GOOD
    monkeypatch.setattr(host_checks, "_punch", lambda _: errno.EOPNOTSUPP)
    assert told("holes", paths).verdict == Verdict.LOOK


def test_an_old_kernel_and_a_low_limit_are_told(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "uname", lambda: os.uname_result(("Linux", "host", "5.10.0-9-amd64", "#1", "x86_64")))
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 1024))
    assert "5.10.0-9" in told("kernel", paths).found
    assert "LimitNOFILE" in (told("open files", paths).remedy or "")
