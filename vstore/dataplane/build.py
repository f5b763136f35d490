"""Builds the C data plane: cffi API mode, with the declarations read from its headers themselves.

`pyproject.toml` names `build_ext` below as the build command and one extension, `vstore.dataplane._native`; the command
swaps in the extension that cffi makes. There is no fallback to another mode: a build that fails, fails loudly.
"""

import os
import subprocess
from pathlib import Path
from typing import cast

from cffi import FFI
from setuptools import Extension
from setuptools.command.build_ext import build_ext as _build_ext

HERE = Path("vstore/dataplane")
HEADERS = ("dataplane.h", "inflight.h", "mover.h")
LIBRARIES = ("liburing", "libdeflate", "libzstd")
BEGIN, END = "/* cffi: begin */", "/* cffi: end */"


def declarations(header: str) -> str:
    """The part of a header that both C and Python see."""
    return header.split(BEGIN)[1].split(END, maxsplit=1)[0]


def pkg_config(*arguments: str) -> list[str]:
    """Flags for the libraries: liburing, and for compressed blocks libdeflate and libzstd (unpacking them from Python
    cost twice as much). Says which Debian packages bring them when one is missing."""
    try:
        answer = subprocess.run(["pkg-config", *arguments, *LIBRARIES], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        needed = "liburing-dev, libdeflate-dev, libzstd-dev and pkg-config"
        raise SystemExit(f"{', '.join(LIBRARIES)}: not all were found; install the Debian packages {needed}") from error
    return answer.stdout.split()


def extension(directory: str) -> Extension:
    """The compiled module; its generated C lands in `directory`."""
    ffi = FFI()
    for header in HEADERS:
        ffi.cdef(declarations((HERE / header).read_text()))
    ffi.set_source(
        "vstore.dataplane._native",
        "".join(f'#include "{header}"\n' for header in HEADERS),
        sources=sorted(str(path) for path in HERE.glob("*.c")),
        depends=[str(path) for path in HERE.glob("*.h")],
        include_dirs=[str(HERE)],
        extra_compile_args=["-std=c11", "-O3", "-g", "-fvisibility=hidden", *pkg_config("--cflags")],
        extra_link_args=["-pthread", *pkg_config("--libs")],
    )
    os.makedirs(directory, exist_ok=True)
    return cast(Extension, ffi.distutils_extension(tmpdir=directory, verbose=False))


class build_ext(_build_ext):  # noqa: N801 - setuptools' own name for the command
    """setuptools' build_ext with cffi's extension in place of the name in pyproject.toml."""

    def finalize_options(self) -> None:
        """Runs before any extension is looked at, for wheels, sdists and editable installs alike."""
        self.distribution.ext_modules = [extension("build/cffi")]
        super().finalize_options()
