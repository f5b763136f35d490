"""The whole images that the qcow2 fuzzer damages: small, and between them of every structure that the format has.

Each is a list of commands of qemu's tools, in a folder of its own; they give the same bytes each time.
"""

import shlex
import subprocess
from pathlib import Path

IMAGE = "disk.qcow2"
_CREATE = f"qemu-img create -q -f qcow2 {IMAGE}"
_IO = f"qemu-io -f qcow2 {IMAGE}"

BASES: dict[str, list[str]] = {
    "plain": [
        f"{_CREATE} 2M -o cluster_size=4096",
        f"{_IO} -c 'write -P 1 0 64k' -c 'write -P 2 1M 40k' -c 'write -z 80k 12k' -c 'write -P 3 2093056 4096'",
    ],
    "short clusters": [
        f"{_CREATE} 256k -o cluster_size=512",
        f"{_IO} -c 'write -P 1 0 5k' -c 'write -P 2 100k 9k' -c 'write -P 3 200k 512'",
    ],
    "long clusters": [f"{_CREATE} 64M -o cluster_size=2M", f"{_IO} -c 'write -P 1 0 4k' -c 'write -P 2 40M 4k'"],
    "long disk": [f"{_CREATE} 1T", f"{_IO} -c 'write -P 1 0 4k' -c 'write -P 2 700G 4k'"],
    "extended": [
        f"{_CREATE} 1M -o cluster_size=16384,extended_l2=on",
        f"{_IO} -c 'write -P 1 0 20k' -c 'write -P 2 40k 1k' -c 'write -z 41k 1k' -c 'write -z 64k 16k'",
        f"qemu-img snapshot -c one {IMAGE}",
        f"{_IO} -c 'write -P 3 8k 40k'",
    ],
    "compressed": [
        f"{_CREATE} 512k -o cluster_size=4096",
        f"{_IO} -c 'write -c -P 1 0 80k' -c 'write -c -P 2 100k 32k' -c 'write -P 3 90k 700'",
    ],
    "zstd": [
        f"{_CREATE} 512k -o cluster_size=4096,compression_type=zstd",
        f"{_IO} -c 'write -c -P 1 0 80k' -c 'write -P 3 90k 700'",
        f"qemu-img snapshot -c one {IMAGE}",
    ],
    "snapshots": [
        f"{_CREATE} 512k -o cluster_size=4096",
        f"{_IO} -c 'write -P 1 0 80k' -c 'write -c -P 4 128k 32k'",
        f"qemu-img snapshot -c one {IMAGE}",
        f"{_IO} -c 'write -P 2 8k 20k'",
        f"qemu-img snapshot -c two {IMAGE}",
        f"{_IO} -c 'write -P 3 12k 8k'",
    ],
    "version 2": [
        f"{_CREATE} 512k -o cluster_size=4096,compat=0.10",
        f"{_IO} -c 'write -P 1 0 80k'",
        f"qemu-img snapshot -c one {IMAGE}",
        f"{_IO} -c 'write -P 2 8k 20k'",
    ],
    "bitmaps": [
        f"{_CREATE} 512k -o cluster_size=4096",
        f"qemu-img bitmap --add -g 512 {IMAGE} changes",
        f"qemu-img bitmap --add -g 4096 --disable {IMAGE} frozen",
        f"{_IO} -c 'write -P 1 0 80k'",
    ],
    "narrow": [f"{_CREATE} 512k -o cluster_size=4096,refcount_bits=1", f"{_IO} -c 'write -P 1 0 80k'"],
    "wide": [
        f"{_CREATE} 512k -o cluster_size=512,refcount_bits=64,lazy_refcounts=on",
        f"{_IO} -c 'write -P 1 0 80k'",
        f"qemu-img snapshot -c one {IMAGE}",
    ],
    "overlay": [
        "qemu-img create -q -f raw base.raw 300k",
        "qemu-io -f raw base.raw -c 'write -P 9 0 300k'",
        f"{_CREATE} 512k -b base.raw -F raw -o cluster_size=4096",
        f"{_IO} -c 'write -P 1 0 20k' -c 'write -z 40k 8k' -c 'write -P 2 290k 20k'",
    ],
    "data file": [
        f"{_CREATE} 512k -o cluster_size=4096,data_file=data.raw",
        f"{_IO} -c 'write -P 1 0 20k' -c 'write -z 40k 8k'",
    ],
}


def make(name: str, folder: Path) -> Path:
    """Makes a base in an empty folder; the image's path."""
    for command in BASES[name]:
        subprocess.run(shlex.split(command), cwd=folder, check=True, capture_output=True)
    return folder / IMAGE
