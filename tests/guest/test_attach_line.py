"""The line that `vstore export` prints is one that QEMU takes."""

import shlex
import subprocess
from pathlib import Path

from tests.target.conftest import MIB, exporting, hint


def test_printed_line_starts_a_machine_with_the_controller(tmp_path: Path) -> None:
    """The machine stays stopped: QEMU connects and realizes the device before it would run."""
    image, vhost = tmp_path / "disk.raw", tmp_path / "vhost.sock"
    image.write_bytes(bytes(MIB))
    with exporting(image, "--format", "raw", "--socket", vhost) as process:
        words = [word.replace("4096M", "64M") for word in shlex.split(hint(process))]
        words += ["-S", "-display", "none", "-nodefaults", "-monitor", "stdio"]
        done = subprocess.run(words, input="info qtree\nquit\n", capture_output=True, text=True, timeout=60, check=True)
    assert 'chardev = "vstore-export"' in done.stdout
