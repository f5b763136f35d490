"""The house itself: arrows, sizes, names, docstrings, tables that are complete, a README that names what there is."""

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from statistics import median

import pytest

from api.app import ROUTERS
from formats.image import BlockState, LayerFlags
from formats.registry import FORMATS
from vstore.scsi.commands import COMMANDS
from vstore.scsi.logical_unit import LogicalUnit
from vstore.target.verbs import Configure
from vstore.vhost_user.attach import VMMS, command_line

ROOT = Path(__file__).parents[1]
PACKAGES = ("api", "formats", "vstore")
TOP_LEVEL = {
    *(".ci", ".clang-format", ".gitignore", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "Makefile", "README.md"),
    *("api", "docs", "fixtures", "formats", "pyproject.toml", "tests", "vstore"),
}
FORBIDDEN_WORDS = {"manager", "util", "utils", "common", "helper", "helpers", "misc", "stuff"}
# Folders that need the standard library only, and what they may take besides: numpy for long tables, cryptography for
# LUKS, and zstd, which is in the standard library from Python 3.14 on.
STANDARD_LIBRARY_ONLY = {
    "formats": {"numpy", "backports", "compression", "cryptography"},
    "vstore/scsi": {"vstore.__version__"},
}
HEADER = (ROOT / "vstore/dataplane/dataplane.h").read_text()


@cache
def files(*patterns: str) -> tuple[Path, ...]:
    """The files of the project: what git has, and what it would take."""
    argv = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", "--", *patterns]
    names = subprocess.run(argv, check=True, capture_output=True, text=True).stdout.splitlines()
    return tuple(path for name in names if (path := ROOT / name).is_file())


def python_files(*folders: str) -> tuple[Path, ...]:
    return files(*(f"{folder}/*.py" for folder in folders))


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(*folders: str) -> Iterator[tuple[str, int]]:
    """Each function's place and its lines, from `def` to its last statement."""
    for path in python_files(*folders):
        for node in ast.walk(tree(path)):
            if isinstance(node, Function):
                assert node.end_lineno is not None
                yield f"{name_of(path)}:{node.lineno} {node.name}", node.end_lineno - node.lineno + 1


def c_functions(path: Path) -> Iterator[tuple[str, int]]:
    """Each C function's place and its lines; a body begins and ends in the first column."""
    start = None
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if line == "{":
            start = number
        elif line.startswith("}") and start is not None:
            yield f"{name_of(path)}:{start}", number - start + 1
            start = None


# ---- arrows ----


def test_imports_point_one_way() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports; raise SystemExit(lint_imports())"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}:{node.lineno} has a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("folder", STANDARD_LIBRARY_ONLY)
def test_formats_and_the_device_model_need_only_the_standard_library(folder: str) -> None:
    own = folder.replace("/", ".")
    for path in python_files(folder):
        for module in imported(path):
            root = module.split(".")[0]
            others = {root, module} & (sys.stdlib_module_names | STANDARD_LIBRARY_ONLY[folder])
            fine = others or f"{module}.".startswith(f"{own}.")
            assert fine, f"{name_of(path)} imports {module}"


def test_only_the_data_plane_touches_the_compiled_module() -> None:
    users = [path for path in python_files(*PACKAGES) if any("_native" in module for module in imported(path))]
    assert [name_of(path) for path in users] == ["vstore/dataplane/native.py"]


def test_the_three_packages_come_from_one_tree() -> None:
    for package in PACKAGES:
        origin = importlib.import_module(package).__file__
        assert origin is not None
        assert Path(origin).parents[1] == ROOT


# ---- sizes ----


def test_no_python_file_is_longer_than_400_lines() -> None:
    long = {name_of(path): lines for path in files("*.py") if (lines := len(path.read_text().splitlines())) > 400}
    assert not long


def test_no_function_is_longer_than_40_lines() -> None:
    assert not [(place, lines) for place, lines in functions(*PACKAGES, "tests") if lines > 40]


def test_functions_are_small() -> None:
    assert median(lines for _, lines in functions(*PACKAGES)) <= 8


def test_no_c_function_is_longer_than_60_lines() -> None:
    sources = files("vstore/dataplane/*.c", "tests/native/*.c", "tests/fuzz/*.c", "tests/crash/*.c")
    assert sources
    assert not [(place, lines) for path in sources for place, lines in c_functions(path) if lines >= 60]


def test_the_seam_between_python_and_c_is_under_300_lines() -> None:
    assert len(HEADER.splitlines()) < 300


# ---- names and words ----


def words(name: str) -> set[str]:
    spaced = re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", name.replace("sg3_utils", ""))  # a package of Debian
    return {word.lower() for word in re.split(r"[^A-Za-z0-9]+", spaced)}


def test_no_file_folder_function_or_class_has_an_empty_name() -> None:
    named = [(name_of(path), name_of(path)) for path in files(".")]
    for path in files("*.py"):
        defined = (node for node in ast.walk(tree(path)) if isinstance(node, Function | ast.ClassDef))
        named.extend((f"{name_of(path)}:{node.lineno}", node.name) for node in defined)
    assert not [place for place, name in named if words(name) & FORBIDDEN_WORDS]


def test_every_module_says_what_it_is() -> None:
    """A test file is named after what it tests; all others begin with their design."""
    modules = [path for path in files("*.py") if not path.name.startswith(("test_", "__init__"))]
    assert not [name_of(path) for path in modules if not ast.get_docstring(tree(path))]


def test_every_c_file_says_what_it_is() -> None:
    for path in files("vstore/dataplane/*.[ch]", "tests/native/*.[ch]", "tests/fuzz/*.c", "tests/crash/*.c"):
        assert path.read_text().startswith(f"/*\n * {path.name} - "), name_of(path)


def test_every_package_has_a_docstring_of_one_sentence_and_types() -> None:
    roots = {path.parent for path in python_files(*PACKAGES)}
    for folder in roots:
        package = folder / "__init__.py"
        assert package.is_file(), f"{name_of(folder)} has no __init__.py"
        text = (ast.get_docstring(tree(package)) or "").split("\n\n")[0]
        assert text.endswith("."), f"{name_of(package)}: the docstring is no sentence"
        assert (folder / "py.typed").is_file(), f"{name_of(folder)} has no py.typed"


def test_every_folder_of_tests_is_a_package() -> None:
    folders = {path.parent for path in python_files("tests")}
    assert not [name_of(folder) for folder in folders if not (folder / "__init__.py").is_file()]


def test_the_top_level_holds_what_was_agreed() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in files(".")} <= TOP_LEVEL


def test_no_test_is_skipped_for_want_of_a_tool() -> None:
    """Only want of root's rights may skip: a missing tool must fail, or it is never noticed."""
    for path in python_files("tests"):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            skips = re.search(r"pytest\.skip\(|importorskip|unittest\.skip|mark\.skip\b", line)
            assert not skips or path == Path(__file__), f"{name_of(path)}:{number}"
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.skipif":
                assert "geteuid" in ast.unparse(node), f"{name_of(path)}:{node.lineno}"


# ---- tables that must agree ----


def constants(prefix: str) -> dict[str, int]:
    """The enumerators of dataplane.h with this prefix, without it."""
    return {name: int(value) for name, value in re.findall(rf"\b{prefix}([A-Z_]+) = (\d+)", HEADER)}


def test_block_states_are_those_of_the_data_plane() -> None:
    header = constants("VS_")
    assert {state.name: header.get(state.name) for state in BlockState} == {s.name: s.value for s in BlockState}


def test_layer_flags_are_those_of_the_data_plane() -> None:
    assert {flag.name: flag.value for flag in LayerFlags} == constants("VS_FILE_")


def test_every_command_has_a_handler_and_every_handler_a_command() -> None:
    assert set(LogicalUnit.handlers) == set(COMMANDS)


# ---- the pages for people ----


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_pages_name_verbs_and_files_that_exist(page: str) -> None:
    text = (ROOT / page).read_text()
    verbs = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:^ +|`)make ([a-z-]+)", text, re.MULTILINE)) <= verbs
    places = re.findall(r"`((?:vstore|formats|api|tests|docs|fixtures|\.ci)/[\w./-]*)`", text)
    assert places
    assert not [place for place in places if not (ROOT / place).exists() and "NAME" not in place]


def test_the_readme_names_every_format() -> None:
    readme = (ROOT / "README.md").read_text()
    assert not [name for name in FORMATS if f"`{name}`" not in readme]


def test_the_readme_attaches_as_the_daemon_says() -> None:
    readme = (ROOT / "README.md").read_text()
    vm0 = Configure(name="vm0", socket="S", request_queues=4)
    lines = {row.name: command_line(row, vm0, 4 << 30) for row in VMMS}
    told_by_difference = lines.pop("qemu-9.2").replace(",reconnect-ms=1000", "")
    assert told_by_difference == lines["qemu-7.2"]
    assert not [line for line in lines.values() if f"`{line}`" not in readme]


def test_the_readme_names_every_rest_resource() -> None:
    readme = (ROOT / "README.md").read_text()
    assert not [router.prefix for router in ROUTERS if router.prefix and f"`{router.prefix}" not in readme]
