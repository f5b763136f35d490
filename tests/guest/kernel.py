"""Debian's cloud kernel, unpacked beside the build and never installed on the host.

The package that linux-image-cloud-amd64 depends on is downloaded once with `apt-get download`, unpacked with
`dpkg-deb` into build/guest/, and given its modules.dep by `depmod`. What is there already is used without asking the
network again; several test runs may start at once (a file lock lets one of them do the work).
"""

import fcntl
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

CACHE = Path(__file__).resolve().parents[2] / "build" / "guest"
PACKAGE = "linux-image-cloud-amd64"
DOWNLOAD_SECONDS = 300


class MissingPackageError(Exception):
    """A tool that the guest tests need is not installed; the text names the Debian package that holds it."""

    def __init__(self, tool: str, package: str) -> None:
        super().__init__(f"{tool} is missing: install the Debian package {package} (apt-get install {package})")


def find_tool(name: str, package: str) -> Path:
    """Path of an installed program, in the sbin directories too; MissingPackageError says what to install."""
    found = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin:/usr/bin:/bin")
    if found is None:
        raise MissingPackageError(name, package)
    return Path(found)


@dataclass(frozen=True)
class Kernel:
    """An unpacked kernel: `image` is the bzImage, `modules` the directory that holds modules.dep."""

    release: str
    image: Path
    modules: Path

    def load_order(self, names: Sequence[str]) -> list[Path]:
        """Files of these modules and of all they depend on, each after its dependencies; built-in ones are left out."""
        dependencies = _read_dependencies(self.modules)
        builtin = {_module_name(line) for line in (self.modules / "modules.builtin").read_text().split()}
        order: dict[str, None] = {}
        for name in names:
            if name in builtin:
                continue
            if name not in dependencies:
                raise KeyError(f"kernel {self.release} has no module {name}")
            path, needs = dependencies[name]
            order.update(dict.fromkeys((*reversed(needs), path)))  # modules.dep lists the deepest dependency last
        return [self.modules / path for path in order]


def debian_kernel(cache: Path = CACHE) -> Kernel:
    """The cloud kernel, fetched on first use. Raises MissingPackageError, or RuntimeError with what apt-get said."""
    cache.mkdir(parents=True, exist_ok=True)
    with _locked(cache / ".lock"):
        return _unpacked(cache) or _fetch(cache)


def _module_name(path: str) -> str:
    return Path(path).name.split(".")[0].replace("-", "_")


def _read_dependencies(modules: Path) -> dict[str, tuple[str, list[str]]]:
    rows = (line.split(":", 1) for line in (modules / "modules.dep").read_text().splitlines())
    return {_module_name(path): (path, needs.split()) for path, needs in rows}


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _unpacked(cache: Path) -> Kernel | None:
    for image in sorted(cache.glob("kernel/boot/vmlinuz-*")):
        release = image.name.removeprefix("vmlinuz-")
        modules = cache / "kernel" / "lib" / "modules" / release
        if (modules / "modules.dep").exists():
            return Kernel(release, image, modules)
    return None


def _fetch(cache: Path) -> Kernel:
    """Download, unpack and index beside the cache, then move it in whole: a killed run leaves no half of it."""
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        tree = Path(scratch) / "kernel"
        _run([find_tool("dpkg-deb", "dpkg"), "-x", _download(Path(scratch)), tree], Path(scratch))
        (modules,) = (tree / "lib" / "modules").iterdir()
        _run([find_tool("depmod", "kmod"), "-b", tree, modules.name], Path(scratch))
        shutil.rmtree(cache / "kernel", ignore_errors=True)
        tree.rename(cache / "kernel")
    kernel = _unpacked(cache)
    if kernel is None:
        raise RuntimeError(f"{PACKAGE} was unpacked into {cache}/kernel, but no vmlinuz with its modules.dep is there")
    return kernel


def _download(directory: Path) -> Path:
    """The package's file. Where the system's package lists are absent or stale, we fetch fresh ones of our own."""
    try:
        return _download_as_listed(directory, [])
    except RuntimeError:
        options = [f"Dir::State::Lists={directory}/lists", f"Dir::Cache={directory}/cache", "APT::Sandbox::User=root"]
        own = [word for option in options for word in ("-o", option)]
        (directory / "lists" / "partial").mkdir(parents=True)
        _run([find_tool("apt-get", "apt"), *own, "update"], directory)
        return _download_as_listed(directory, own)


def _download_as_listed(directory: Path, options: Sequence[str]) -> Path:
    """linux-image-cloud-amd64 is empty: it depends on the package of the newest kernel, whose name holds a version."""
    listing = _run([find_tool("apt-cache", "apt"), *options, "depends", PACKAGE], directory)
    found = re.search(r"Depends: (linux-image-\S+)", listing)
    if found is None:
        raise RuntimeError(f"apt knows no kernel behind {PACKAGE}: {listing!r}")
    _run([find_tool("apt-get", "apt"), *options, "download", found[1]], directory)
    (package,) = directory.glob("linux-image-*.deb")
    return package


def _run(command: Sequence[str | Path], directory: Path) -> str:
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=DOWNLOAD_SECONDS, check=False)
    if done.returncode:
        words = " ".join(map(str, command))
        raise RuntimeError(f"`{words}` ended with {done.returncode}:\n{done.stderr}")
    return done.stdout
