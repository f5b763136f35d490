"""Which images are crashed: how qemu-img makes each, and what the guest may do to it besides writing.

Every image ends in free clusters full of poison, so that a block which shows what the host had there is found out.
"""

import os
import random
import subprocess
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from formats import luks
from formats.host_file import HostFile
from formats.qcow2.image import Qcow2
from formats.qcow2.structures import WORD
from formats.registry import create_image
from tests.crash.history import PARENT, POISON, ZEROS, filled, pattern
from tests.crash.recording import SECTOR

TOP = "disk.qcow2"
SECTORS = 512  # of a disk
POISONED = 12  # clusters
FALLS = ("-c", "flush", "-c", "abort")  # qemu-io's words
CLUSTERS_LEFT = 200  # of a crowded image


@dataclass(frozen=True)
class Variant:
    """`options`: of qemu-img create. `parent`: format of a backing file, if there is one. `verbs`: structural edits."""

    name: str
    options: str = ""
    parent: str = ""
    parent_options: str = "cluster_size=65536"
    compressed: bool = False  # the image itself is full of compressed clusters
    snapshots: int = 0  # that it has before the workload
    verbs: tuple[str, ...] = ("reopen",)
    served: bool = False  # over the whole path: the guest's commands come through rings
    live: bool = False  # snapshots are taken and deleted while the guest writes
    longer: bool = False  # the parent goes on behind the end of the disk; else it ends before
    refuse: str = ""  # what the file system cannot do
    bitmaps: tuple[int, ...] = ()  # that the image has before the workload, by their granularity
    secret: bool = False  # the image is encrypted
    dirty: bool = False  # somebody wrote to it and never counted what he took
    crowded: bool = False  # so full that its refcount table is soon too short
    discard: str = "unref"  # what becomes of the clusters that the guest discards
    sectors: int = SECTORS

    @property
    def cluster_size(self) -> int:
        for word in self.options.split(","):
            if word.startswith("cluster_size="):
                return int(word.partition("=")[2])
        return 65536


_RESIZING = ("reopen", "resize")
_SNAPSHOTS = ("reopen", "snapshot", "apply", "delete")
_MOVING = ("reopen", "commit", "rebase")
_BITMAPS = ("reopen", "resize", "add_bitmap", "remove_bitmap", "clear_bitmap")
_REPAIRING = ("reopen", "abandon")
KEY = b"of every encrypted disk"
OTHER = -100  # generation of the parent to rebase to

VARIANTS = {
    row.name: row
    for row in (
        Variant("plain", "cluster_size=4096"),
        Variant("large clusters", "cluster_size=65536"),
        Variant("no holes", "cluster_size=8192", refuse="punch"),
        Variant("tiny clusters", "cluster_size=512,refcount_bits=64", verbs=_RESIZING),
        Variant("version 2", "cluster_size=2048,compat=0.10", parent="raw"),
        Variant("raw parent", "cluster_size=16384", parent="raw", verbs=_RESIZING),
        Variant("qcow2 parent", "cluster_size=8192", "qcow2", "cluster_size=4096", refuse="punch", verbs=_RESIZING),
        Variant("compressed parent", "cluster_size=16384", "qcow2", "cluster_size=4096,compression_type=zstd"),
        Variant("extended L2", "cluster_size=16384,extended_l2=on", verbs=_RESIZING),
        Variant("extended L2 on a parent", "cluster_size=16384,extended_l2=on", "qcow2", "cluster_size=4096"),
        Variant("compressed", "cluster_size=8192,refcount_bits=8", compressed=True),
        Variant("lazy refcounts", "cluster_size=4096,lazy_refcounts=on,refcount_bits=1"),
        Variant("with snapshots", "cluster_size=4096,refcount_bits=4", snapshots=2),
        Variant("snapshots come and go", "cluster_size=4096", snapshots=1, verbs=_SNAPSHOTS),
        Variant("live snapshots", "cluster_size=4096", live=True),
        Variant("live snapshots, extended L2", "cluster_size=16384,extended_l2=on", "qcow2", live=True),
        Variant("longer parent", "cluster_size=8192", "qcow2", longer=True, verbs=_RESIZING),
        Variant("to and from a raw parent", "cluster_size=8192", "raw", verbs=_MOVING),
        Variant("to and from a qcow2 parent", "cluster_size=4096", "qcow2", "cluster_size=8192", verbs=_MOVING),
        Variant("served", "cluster_size=4096", served=True),
        Variant("served over a parent", "cluster_size=16384", "qcow2", served=True, refuse="punch"),
        Variant("served, extended L2", "cluster_size=16384,extended_l2=on", "raw", served=True, live=True),
        Variant("data file", "cluster_size=4096,data_file=disk.data"),
        Variant("raw data file", "cluster_size=4096,data_file=disk.data,data_file_raw=on"),
        Variant("bitmaps", "cluster_size=4096", bitmaps=(512, 65536), verbs=_BITMAPS),
        Variant("bitmaps, moved", "cluster_size=512", "raw", bitmaps=(4096,), verbs=(*_MOVING, *_BITMAPS[2:])),
        Variant("bitmaps, live", "cluster_size=16384,extended_l2=on", bitmaps=(4096,), live=True),
        Variant("repaired", "cluster_size=4096,refcount_bits=64", verbs=_REPAIRING),
        Variant("recounted", "cluster_size=2048,lazy_refcounts=on", verbs=_REPAIRING, dirty=True),
        Variant("crowded", "cluster_size=512,refcount_bits=64", verbs=("reopen",), crowded=True),
        Variant("crowded, live", "cluster_size=512,refcount_bits=64", live=True, crowded=True),
        Variant("kept", "cluster_size=4096", "raw", discard="punch", verbs=(*_SNAPSHOTS, "resize"), snapshots=1),
        Variant("kept, extended L2", "cluster_size=16384,extended_l2=on", discard="punch", live=True),
        Variant("encrypted", "cluster_size=4096", secret=True, snapshots=1, verbs=(*_SNAPSHOTS, "resize")),
        Variant("encrypted over a parent", "cluster_size=16384", "qcow2", secret=True, verbs=_RESIZING),
    )
}


def prepare(variant: Variant, files: Path, seed: int) -> dict[str, list[int]]:
    """Makes the files of a variant in an empty folder; returns the generation that each sector shows, under the names
    of the snapshots and, for the disk itself, under none."""
    seeded = random.Random(f"{variant.name}:{seed}")
    content = [ZEROS] * variant.sectors
    if variant.parent or variant.compressed:
        content = _parent_content(seeded, variant.sectors)
    source = files / "source"
    below = content + [PARENT] * variant.sectors if variant.longer else content
    source.write_bytes(b"".join(pattern(sector, generation) for sector, generation in enumerate(below)))
    if variant.parent and not variant.longer:
        os.truncate(source, (variant.sectors - variant.sectors // 8 - 2) * SECTOR)
    if "rebase" in variant.verbs:
        (files / "other").write_bytes(filled(0, variant.sectors - 9, OTHER))
    if variant.parent == "raw":
        source.rename(files / "parent")
    elif variant.parent:
        compress = ["-c"] if "compression" in variant.parent_options else []
        _qemu(files, "convert", *compress, "-O", "qcow2", "-o", variant.parent_options, "source", "parent")
    _make_top(variant, files)
    shown = {"": content}
    for number in range(variant.snapshots):
        _fill(variant, files, content, -2 - number, seeded)
        _qemu(files, "snapshot", "-c", f"before-{number}", *opened(secret=variant.secret))
        shown[f"before-{number}"] = list(content)
    if variant.dirty:
        _fill(variant, files, content, -2, seeded, *FALLS)
        shown[""] = list(content)
    for granularity in variant.bitmaps:
        _qemu(files, "bitmap", "--add", "-g", granularity, TOP, f"by-{granularity}")
    if variant.crowded:
        _crowd(files / TOP)
    _poison(files / TOP, variant)
    source.unlink(missing_ok=True)
    return shown


def _parent_content(seeded: random.Random, sectors: int) -> list[int]:
    """Mostly data, with some rows of zeros, and shorter than the disk."""
    content = [PARENT] * (sectors - sectors // 8 - 3) + [ZEROS] * (sectors // 8 + 3)
    for _ in range(6):
        first = seeded.randrange(sectors)
        content[first : first + 24] = [ZEROS] * len(content[first : first + 24])
    return content


def _make_top(variant: Variant, files: Path) -> None:
    if variant.compressed:
        _qemu(files, "convert", "-c", "-O", "qcow2", "-o", variant.options, "source", TOP)
        return
    backing = ["-b", "parent", "-F", variant.parent] if variant.parent else []
    if variant.secret:
        _make_encrypted(variant, files / TOP)
        return
    _qemu(files, "create", "-f", "qcow2", "-o", variant.options, *backing, TOP, variant.sectors * SECTOR)


def _make_encrypted(variant: Variant, path: Path) -> None:
    """By us: each state opens it anew, and a key of qemu's takes longer than all else."""
    options = dict(word.split("=") for word in variant.options.split(",")) | {"encrypt.format": "luks"}
    if variant.parent:
        options |= {"backing_file": "parent", "backing_fmt": variant.parent}
    with mock.patch.object(luks, "_ITERATIONS", 1000):
        create_image("qcow2", path, variant.sectors * SECTOR, options=options, secret=KEY)


def _fill(
    variant: Variant, files: Path, content: list[int], generation: int, seeded: random.Random, *then: str
) -> None:
    """Writes some rows of sectors, so that a snapshot has something of its own to keep, and does more, each time."""
    for _ in range(8):
        first, count = seeded.randrange(variant.sectors - 64), seeded.randrange(1, 64)
        (files / "row").write_bytes(filled(first, count, generation))
        write = f"write -s row {first * SECTOR} {count * SECTOR}"
        _run(files, "qemu-io", *opened(secret=variant.secret), "-c", write, *then)
        content[first : first + count] = [generation] * count
    (files / "row").unlink()


def _crowd(path: Path) -> None:
    """Leaks nearly all clusters that the refcount table has room for."""
    with Qcow2(HostFile.from_path(path)) as image:
        assert image.writer is not None
        words = image.header.start.refcount_table_clusters * image.header.cluster_size // WORD
        room = words * image.header.cluster_size * 8 // image.header.refcount_bits
        image.writer.allocator.take(room - image.file.length // image.header.cluster_size - CLUSTERS_LEFT)
        image.writer.flush()


def _poison(path: Path, variant: Variant) -> None:
    """Free clusters behind those that the image uses: nobody counts them, so anybody may take them."""
    size = variant.cluster_size
    with path.open("r+b") as file:
        end = -(-file.seek(0, 2) // size) * size
        file.seek(end)
        file.write(POISON * (POISONED * size // len(POISON)))


def opened(*, secret: bool) -> list[str]:
    """How qemu's tools are told of the top image."""
    if not secret:
        return ["--image-opts", f"driver=qcow2,file.filename={TOP}"]
    key = ["--object", f"secret,id=key,data={KEY.decode()}", "--image-opts"]
    return [*key, f"driver=qcow2,file.filename={TOP},encrypt.key-secret=key"]


def _qemu(files: Path, *arguments: object) -> None:
    _run(files, "qemu-img", *arguments)


def _run(files: Path, *command: object) -> None:
    """In the folder, so that images name others without it and states can be laid out anywhere."""
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=files, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == (-6 if "abort" in words else 0), f"{words}: {done.stdout}{done.stderr}"
