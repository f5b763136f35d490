"""`python -m tests.guest.demo`: a Linux guest uses a disk that vstore serves, and you watch; `--shell` lets you type.

No daemon and no root are needed: the image lies in a temporary directory, and everything ends with this program.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from tests.guest.backend import Export
from tests.guest.channel import ChannelError
from tests.guest.disks import find_disk
from tests.guest.guest import Guest
from tests.guest.outside import allocated_bytes, check_ext4, make_image, read_ext4

SERIAL = "DEMO"
COMMAND_SECONDS = 60.0
SHOW = (
    "lsblk -o NAME,SIZE,LOG-SEC,PHY-SEC,VENDOR,MODEL {disk}",
    "sg_inq {disk} | grep -E 'identification|serial'",
    "mkfs.ext4 -q {disk} && mount {disk} /mnt",
    "dd if=/dev/urandom of=/mnt/noise bs=1M count=16 conv=fsync 2>&1 | tail -n 1",
    "df -h /mnt",
)
FAREWELL = ("rm /mnt/noise && echo 'hello from the guest' >/mnt/greeting && sync && fstrim -v /mnt", "umount /mnt")


def main(words: list[str] | None = None) -> int:
    """Returns the exit status: 0 when the host found in the file what the guest wrote."""
    parser = argparse.ArgumentParser(prog="python -m tests.guest.demo", description=__doc__.splitlines()[0])
    parser.add_argument("--shell", action="store_true", help="then read commands from standard input and run them")
    arguments = parser.parse_args(words)
    with tempfile.TemporaryDirectory(prefix="vstore-demo-") as scratch:
        image = make_image(Path(scratch) / "disk.raw", 256)
        print(f"vstore serves {image}; a guest boots ...", flush=True)
        with Export(image, "--serial", SERIAL) as export, Guest(Path(scratch), [export.controller()]) as guest:
            disk = find_disk(guest.boot(), SERIAL)
            play(guest, disk, image)
            if arguments.shell:
                converse(guest, disk)
            guest.shutdown()
        check_ext4(image)
        print(f"the host reads /greeting in {image.name}: {read_ext4(image, '/greeting').decode()}", end="")
    return 0


def play(guest: Guest, disk: str, image: Path) -> None:
    """The show: each command, what the guest printed, and what the file takes up on the host."""
    for command in SHOW:
        show(guest, command.format(disk=disk))
    print(f"\n(on the host the file takes up {allocated_bytes(image) >> 10} KiB)", flush=True)
    for command in FAREWELL:
        show(guest, command)
    print(f"\n(now {allocated_bytes(image) >> 10} KiB)", flush=True)


def show(guest: Guest, command: str) -> None:
    print(f"\nguest# {command}", flush=True)
    print(guest.check(command, COMMAND_SECONDS), end="", flush=True)


def converse(guest: Guest, disk: str) -> None:
    """Each line is a shell script of its own and has a minute; the end of the input, or `exit`, ends it."""
    print(f"\nThe disk is {disk}. Each line runs in a shell of its own; `exit` ends the guest.", flush=True)
    while True:
        print("guest# ", end="", flush=True)
        line = sys.stdin.readline()
        if not line or line.strip() == "exit":
            return
        try:
            result = guest.run(line, COMMAND_SECONDS)
        except ChannelError as error:
            print(f"the guest is gone: {error}")
            return
        print(result.output + result.errors, end="", flush=True)


if __name__ == "__main__":
    sys.exit(main())
