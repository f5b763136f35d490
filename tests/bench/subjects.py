"""What is served in a benchmark: a kind of image in a place, and the commands that make it.

Both sides get the same image, made by qemu-img and qemu-io, so that neither gains by its own way of laying it out. One
that the load changes for good (a fresh image, whose blocks are allocated once) is made anew for each measurement.
"""

import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

MIB, GIB = 1 << 20, 1 << 30
PATTERN = bytes(range(1, 256)) * 4112


class Place(Enum):
    """Where the bytes lie."""

    TMPFS = "on tmpfs"
    DISK = "on disk, page-cached"
    NOWHERE = ""


Maker = Callable[[Path, int], Path]  # (an empty folder, length of the disk in bytes) -> the image to open


@dataclass(frozen=True)
class Subject:
    """`length` in bytes, where a kind needs its own; None: what the command line asks for."""

    name: str
    place: Place
    format: str = "raw"
    make: Maker | None = None
    length: int | None = None
    fresh: bool = False

    def __str__(self) -> str:
        return f"{self.name} {self.place.value}".strip()


def _qemu_img(*arguments: object) -> None:
    subprocess.run(["qemu-img", *map(str, arguments)], check=True, stdout=subprocess.DEVNULL, timeout=600)


def written(path: Path, length: int) -> Path:
    """A raw file without holes, its bytes in the page cache; no two blocks of 64 KiB alike."""
    with path.open("wb") as file:
        for number in range(0, length, MIB):
            piece = number.to_bytes(8, "big") + PATTERN
            file.write(piece[: min(MIB, length - number)])
    return path


def raw(folder: Path, length: int) -> Path:
    return written(folder / "disk.raw", length)


def _create(path: Path, options: str, *more: object) -> Path:
    _qemu_img("create", "-q", "-u", "-f", "qcow2", "-o", options, *more[:-1], path, *more[-1:])
    return path


SMALL = "cluster_size=64k"
EXTENDED = "cluster_size=128k,extended_l2=on"


def full(folder: Path, length: int) -> Path:
    """Every cluster allocated, one after the other."""
    source, image = raw(folder, length), folder / "full.qcow2"
    _qemu_img("convert", "-f", "raw", "-O", "qcow2", "-o", SMALL, source, image)
    source.unlink()
    return image


def fresh(options: str) -> Maker:
    return lambda folder, length: _create(folder / "fresh.qcow2", options, length)


def overlay(options: str) -> Maker:
    """An empty overlay on a raw file without holes."""

    def make(folder: Path, length: int) -> Path:
        base = folder / "base.raw"
        if not base.exists():  # the overlay is new each time, its base is not
            written(base, length)
        return _create(folder / "overlay.qcow2", options, "-F", "raw", "-b", base.name, length)

    return make


def compressed(folder: Path, length: int) -> Path:
    """Every cluster compressed by deflate, to about a third."""
    source, image = folder / "text.raw", folder / "compressed.qcow2"
    with source.open("wb") as file:
        for number in range(0, length, 16):
            file.write(b"%015d\n" % (number * 2654435761 % 10**15))
    _qemu_img("convert", "-c", "-f", "raw", "-O", "qcow2", "-o", SMALL, source, image)
    source.unlink()
    return image


def chain(depth: int) -> Maker:
    """`depth` overlays on a base; each holds its share of the blocks, so that every one of them is read from."""

    def make(folder: Path, length: int) -> Path:
        below = written(folder / "base.raw", length)
        for number in range(depth):
            image = folder / f"layer{number}.qcow2"
            _create(image, SMALL, "-F", "raw" if number == 0 else "qcow2", "-b", below.name, length)
            share = range(number * 65536, length, max(depth, 2) * 65536)
            _write(image, share)
            below = image
        return below

    return make


def _write(image: Path, offsets: Sequence[int]) -> None:
    commands = "".join(f"write -q -P {1 + at // 65536 % 255} {at} 65536\n" for at in offsets)
    argv = ["qemu-io", "-f", "qcow2", "-t", "unsafe", str(image)]
    subprocess.run(argv, input=commands.encode(), check=True, stdout=subprocess.DEVNULL, timeout=600)
