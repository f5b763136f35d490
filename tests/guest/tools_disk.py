"""A disk with programs that are too large for the initramfs: each with the shared libraries that ldd names.

/bin/PROGRAM  /lib/LIBRARY      ext2, read-only in the guest: mounted at /opt, run with PATHS before the name
"""

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.guest.initramfs import libraries
from tests.guest.kernel import find_tool

MOUNT = "mkdir -p /opt && mount -o ro {disk} /opt"
PATHS = "LD_LIBRARY_PATH=/opt/lib PATH=$PATH:/opt/bin"
SLACK = 16 << 20  # bytes for the filesystem's own tables


def make_tools_disk(path: Path, programs: Sequence[Path]) -> Path:
    """Writes the disk. Raises MissingPackageError; CalledProcessError with what mke2fs said."""
    tree = path.with_suffix(".tree")
    for folder, files in (("bin", programs), ("lib", [Path(name) for name in sorted(libraries(programs))])):
        (tree / folder).mkdir(parents=True)
        for file in files:
            shutil.copy(file, tree / folder / file.name)
    used = sum(file.stat().st_size for file in tree.rglob("*"))
    mke2fs = find_tool("mke2fs", "e2fsprogs")
    blocks = (used + SLACK) // 1024
    subprocess.run([mke2fs, "-q", "-t", "ext2", "-b", "1024", "-d", tree, path, str(blocks)], check=True, timeout=60)
    shutil.rmtree(tree)
    return path
