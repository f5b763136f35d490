"""The project builds from pyproject.toml alone: as a wheel, from its source distribution, and as an editable install.

Each is installed beside nothing but cffi and has to import its compiled module and move a byte.
"""

import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.timeout(300)

MOVES_A_BYTE = """
import os, api, formats, vstore
from formats.image import BlockState, entry
from vstore.dataplane import Volume
file = os.memfd_create("disk")
os.truncate(file, 4096)
volume = Volume(4096, 4096)
volume.set_layer(0, file, 0, 1)
volume.set_run(0, 1, entry(BlockState.DATA))
volume.write(7, b"x")
assert os.pread(file, 1, 7) == b"x"
print(vstore.__file__)
"""


def run(*argv: str | Path, cwd: Path) -> str:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV"))}
    done = subprocess.run(
        [str(word) for word in argv], cwd=cwd, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, f"{argv}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What git holds, and nothing that an earlier build left behind."""
    folder = tmp_path_factory.mktemp("checkout")
    names = subprocess.run(
        [
            "git",
            "-C",
            str(ROOT),
            "ls-files",
            "-z",
            "--",
            "vstore",
            "formats",
            "api",
            "pyproject.toml",
            "README.md",
            "LICENSE",
        ],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split("\0")
    for name in filter(None, names):
        source, target = ROOT / name, folder / name
        if source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)
    return folder


@pytest.fixture(scope="module")
def built(checkout: Path) -> Path:
    """dist/ with the source distribution, and the wheel that was made from its unpacked self."""
    run(sys.executable, "-m", "build", "--outdir", checkout / "dist", ".", cwd=checkout)
    return checkout / "dist"


def pip_install(python: Path, *arguments: str | Path) -> None:
    """Installs into that environment with the pip of this one."""
    command: list[str | Path] = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        python,
        "install",
        "-q",
        "--disable-pip-version-check",
    ]
    run(*command, *arguments, cwd=python.parent)


def new_environment(folder: Path) -> Path:
    """A virtual environment with what a build and the compiled module need; answers its python."""
    venv.create(folder)
    python = folder / "bin" / "python"
    pip_install(python, "cffi>=1.17", "setuptools>=77")
    return python


def test_the_source_distribution_holds_all_that_a_build_needs(built: Path) -> None:
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    in_tree = {str(path.relative_to(ROOT)) for path in (ROOT / "vstore/dataplane").glob("*.[ch]")}
    assert {"pyproject.toml", "README.md", "LICENSE", "vstore/dataplane/build.py", *in_tree} <= names
    assert not [name for name in names if name.startswith("build/") or name.endswith(".so")]


def test_the_wheel_holds_the_three_packages_typed_and_compiled(built: Path) -> None:
    (archive,) = built.glob("*.whl")
    names = zipfile.ZipFile(archive).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"api", "formats", "vstore"}
    assert [name for name in names if name.startswith("vstore/dataplane/_native") and name.endswith(".so")]
    assert {f"{package}/py.typed" for package in ("api", "formats", "vstore")} <= set(names)


def test_the_wheel_made_from_the_source_distribution_runs(built: Path, tmp_path: Path) -> None:
    (wheel,) = built.glob("*.whl")
    python = new_environment(tmp_path / "venv")
    pip_install(python, "--no-deps", wheel)
    assert "site-packages" in run(python, "-c", MOVES_A_BYTE, cwd=tmp_path)


def test_an_editable_install_runs_from_the_tree(checkout: Path, tmp_path: Path) -> None:
    python = new_environment(tmp_path / "venv")
    pip_install(python, "--no-deps", "--no-build-isolation", "-e", checkout)
    assert run(python, "-c", MOVES_A_BYTE, cwd=tmp_path).strip() == str(checkout / "vstore/__init__.py")
