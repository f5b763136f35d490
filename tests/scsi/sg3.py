"""sg3_utils as an outside decoder of parameter data."""

import subprocess
from pathlib import Path


def decoded(tool: str, data: bytes, directory: Path, *options: str) -> str:
    file = directory / "response.bin"
    file.write_bytes(data)
    command = [tool, "--raw", f"--inhex={file}", *options]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
