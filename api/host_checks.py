"""What of this host vstore needs or profits from, each asked of the system itself and told with its remedy.

    CHECKS: one row = one question  ->  Finding: good, worth a look, or in the way, and what mends it

Nothing is changed but a file of no name in the state directory, to see what its file system can do.
"""

import ctypes
import errno
import os
import re
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

from api.paths import Paths
from vstore.sizes import format_size

_SYS_IO_URING_SETUP = 425  # asm-generic/unistd.h: the same on every architecture since 5.1
_SYS_OPENAT2 = 437
_FALLOC_PUNCH = 0x01 | 0x02  # linux/falloc.h: KEEP_SIZE, PUNCH_HOLE
_OLDEST_KERNEL = (5, 12)  # from which on the memory of io_uring does not count as locked: io_uring_setup(2)
_ENOUGH_FILES = 4096  # a chain of a thousand images takes two for each
_ENOUGH_SPACE = 1 << 30
_LONGEST_SOCKET = 107  # unix(7): sun_path, with its last NUL
_TYPICAL_NAME = "targets/a-name-of-twenty-char/vhost.sock"
_QEMU = f"qemu-system-{os.uname().machine}"


class Verdict(StrEnum):
    """How a finding bears on vstore."""

    GOOD = "good"
    LOOK = "look"  # vstore works, but slower, or without something
    FAULT = "fault"  # vstore does not work, or not for long


@dataclass(frozen=True)
class Finding:
    """`found` in words; `remedy`, what to do, where there is something to do."""

    check: str
    verdict: Verdict
    found: str
    remedy: str | None = None

    def as_dict(self) -> dict[str, str | None]:
        return asdict(self)


@dataclass(frozen=True)
class Answer:
    """Of one check, whose name its row has."""

    verdict: Verdict
    found: str
    remedy: str | None = None


def examine(paths: Paths) -> Iterator[Finding]:
    """Everything that does not need the daemon, in the order of CHECKS."""
    for name, check in CHECKS.items():
        answer = check(paths)
        yield Finding(name, answer.verdict, answer.found, answer.remedy)


def good(found: str) -> Answer:
    return Answer(Verdict.GOOD, found)


def _kernel(_: Paths) -> Answer:
    release = os.uname().release
    version = tuple(int(part) for part in re.findall(r"\d+", release)[:2])
    if version >= _OLDEST_KERNEL:
        return good(release)
    oldest = ".".join(map(str, _OLDEST_KERNEL))
    found = f"{release}: before {oldest} the rings of io_uring count as locked memory"
    return Answer(Verdict.LOOK, found, f"run Linux {oldest} or later, or raise `ulimit -l`")


def system_call(number: int, *arguments: object) -> int:
    """-> its errno, 0 where it succeeds; what it opens is closed."""
    result = ctypes.CDLL(None, use_errno=True).syscall(number, *arguments)
    if result < 0:
        return ctypes.get_errno()
    os.close(result)
    return 0


def _io_uring(_: Paths) -> Answer:
    error = system_call(_SYS_IO_URING_SETUP, 1, ctypes.create_string_buffer(120))
    if not error:
        return good("requests that would block go through it")
    remedies = {
        errno.ENOSYS: "run a kernel with CONFIG_IO_URING, or a container runtime that lets its calls pass",
        errno.EPERM: "sysctl kernel.io_uring_disabled=0, or let the container's seccomp profile pass it",
        errno.ENOMEM: "raise the limit of locked memory (ulimit -l)",
    }
    return Answer(Verdict.FAULT, f"refused: {os.strerror(error)}", remedies.get(error, "see io_uring_setup(2)"))


def _openat2(_: Paths) -> Answer:
    how = (ctypes.c_uint64 * 3)(os.O_PATH, 0, 0x08)  # linux/openat2.h: RESOLVE_BENEATH
    root = os.open("/", os.O_PATH)
    error = system_call(_SYS_OPENAT2, root, b".", ctypes.byref(how), ctypes.sizeof(how))
    os.close(root)
    if not error:
        return good("backing files are opened beneath their pool")
    return Answer(Verdict.FAULT, f"refused: {os.strerror(error)}", "run Linux 5.6 or later, or let openat2 pass")


def _open_files(_: Paths) -> Answer:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard == resource.RLIM_INFINITY or hard >= _ENOUGH_FILES:
        return good(f"up to {hard}")
    remedy = f"raise the hard limit to {_ENOUGH_FILES} or more (LimitNOFILE= in the unit, or limits.conf)"
    return Answer(Verdict.LOOK, f"up to {hard}: long chains of images take more", remedy)


def nearest(path: Path) -> Path:
    """The directory itself, or the one above it in which it would be made."""
    return next(each for each in (path, *path.parents) if each.exists())


def _directory(path: Path) -> Answer | None:
    there = nearest(path)
    if not there.is_dir():
        return Answer(Verdict.FAULT, f"{there} is no directory", f"move it away, or name another place than {path}")
    if not os.access(there, os.W_OK | os.X_OK):
        return Answer(
            Verdict.FAULT, f"{there} is not writable for this user", f"chown it, or choose another than {path}"
        )
    return None


def _state(paths: Paths) -> Answer:
    bad = _directory(paths.state)
    if bad:
        return bad
    free = shutil.disk_usage(nearest(paths.state)).free
    if free < _ENOUGH_SPACE:
        return Answer(
            Verdict.LOOK, f"{paths.state}: {format_size(free)} free", "make room, or move the state directory"
        )
    return good(f"{paths.state}, {format_size(free)} free")


def _holes(paths: Paths) -> Answer:
    if _directory(paths.state):
        return Answer(Verdict.LOOK, "not asked: there is no state directory", None)
    try:
        with tempfile.TemporaryFile(dir=nearest(paths.state)) as file:
            file.truncate(1 << 20)
            error = _punch(file.fileno())
    except OSError as failure:
        error = failure.errno or errno.EIO
    if not error:
        return good("discards of guests free space")
    found = f"the file system cannot punch holes ({os.strerror(error)}): discards of guests free no space"
    return Answer(Verdict.LOOK, found, "keep images on ext4, XFS, Btrfs or tmpfs")


def _punch(descriptor: int) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    done = libc.fallocate(descriptor, _FALLOC_PUNCH, ctypes.c_long(0), ctypes.c_long(1 << 16))
    return ctypes.get_errno() if done else 0


def _runtime(paths: Paths) -> Answer:
    bad = _directory(paths.runtime)
    if bad:
        return bad
    longest = len(os.fsencode(paths.runtime / _TYPICAL_NAME))
    if longest > _LONGEST_SOCKET:
        found = f"{paths.runtime}: the sockets of targets would have paths of over {_LONGEST_SOCKET} bytes"
        return Answer(Verdict.FAULT, found, "give a shorter --runtime-dir")
    return good(str(paths.runtime))


def _token(paths: Paths) -> Answer:
    try:
        mode = paths.token.stat().st_mode & 0o777
    except FileNotFoundError:
        return good("none yet: the first start of the daemon makes one")
    except OSError as error:
        return Answer(Verdict.LOOK, f"{paths.token}: {error.strerror}", "ask as the daemon's user")
    if mode & 0o077:
        return Answer(Verdict.FAULT, f"{paths.token} may be read by others ({mode:04o})", f"chmod 600 {paths.token}")
    return good(f"{paths.token}, for its owner only")


def _kvm(_: Paths) -> Answer:
    device = Path("/dev/kvm")
    if not device.exists():
        return Answer(
            Verdict.LOOK, "there is no /dev/kvm: guests are emulated", "load the kvm module; enable it in the BIOS"
        )
    if not os.access(device, os.R_OK | os.W_OK):
        return Answer(Verdict.LOOK, "this user may not use /dev/kvm", "add the user to the group kvm")
    return good("this user may use it")


def _qemu(_: Paths) -> Answer:
    path = shutil.which(_QEMU)
    if not path:
        return Answer(Verdict.LOOK, f"{_QEMU} is not in PATH", "none is needed for Cloud Hypervisor, crosvm or libkrun")
    try:
        told = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        return Answer(Verdict.LOOK, f"{path} --version: {error}", "reinstall it")
    version = re.search(r"version (\d+)\.(\d+)\.(\d+)", told)
    if not version:
        return Answer(Verdict.LOOK, f"{path} tells no version", None)
    return _of_qemu(tuple(map(int, version.groups())))


def _of_qemu(version: tuple[int, ...]) -> Answer:
    told = ".".join(map(str, version))
    if version < (5, 0, 0):
        return Answer(Verdict.FAULT, f"{told}: too old for these targets", "run QEMU 5.0 or later")
    if (7, 2, 0) <= version <= (7, 2, 21):
        found = f"{told}: it crashes on a target that offers a configuration space"
        return Answer(
            Verdict.LOOK, found, "create its targets without config_space (the default), or run 7.2.22 or later"
        )
    if version < (8, 2, 0):
        return good(f"{told}; it cannot reconnect by itself")
    return good(told)


def _huge_pages(_: Paths) -> Answer:
    found = re.search(r"^HugePages_Free:\s+(\d+)$", Path("/proc/meminfo").read_text(), re.M)
    free = int(found[1]) if found else 0
    return good(f"{free} free" if free else "none reserved; guests may do without")


CHECKS: dict[str, Callable[[Paths], Answer]] = {
    "kernel": _kernel,
    "io_uring": _io_uring,
    "openat2": _openat2,
    "open files": _open_files,
    "state directory": _state,
    "holes": _holes,
    "runtime directory": _runtime,
    "token": _token,
    "KVM": _kvm,
    "QEMU": _qemu,
    "huge pages": _huge_pages,
}
