"""A process that opens chains opens as many files as the system allows it."""

import os
import subprocess
import sys
from pathlib import Path

from tests.transfer.chains import empty_chain


def test_a_chain_may_be_longer_than_the_usual_limit_of_open_files_allows(tmp_path: Path) -> None:
    top = empty_chain(tmp_path, 30)[-1]
    few = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (24, 4096)); from api.cli import main; "
    done = subprocess.run(
        [sys.executable, "-c", few + f"raise SystemExit(main(['file', 'map', '-f', 'qcow2', {os.fspath(top)!r}]))"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
