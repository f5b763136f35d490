"""What a daemon does to a target process, as a process that a test can kill: CONTROL-SOCKET VHOST-SOCKET IMAGE."""

import os
import sys
import time
from pathlib import Path

from tests.target.conftest import request
from vstore.target.client import TargetClient
from vstore.target.spawn import spawn
from vstore.target.verbs import Configure


def main(control: str, vhost: str, image: str) -> None:
    process = spawn(control, Path(control).with_name("target.log"))
    with TargetClient(control) as client:
        client.map_lun(request(0, image), os.open(image, os.O_RDWR))
        client.configure(Configure(name="vm0", socket=vhost))
        print(process.pid, flush=True)
        time.sleep(60)


main(*sys.argv[1:])
