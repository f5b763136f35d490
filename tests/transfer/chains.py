"""Chains of images made by qemu-img and qemu-io, the oracle's eyes on them, and a drawing of random content."""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.formats.reference import run

CLUSTER = 65536


def qemu(*arguments: object) -> str:
    """qemu-img, which must succeed; what it printed."""
    done = run("qemu-img", *map(str, arguments))
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def write(path: Path, format: str, *commands: str) -> None:
    """qemu-io commands, which must succeed."""
    arguments = [word for command in commands for word in ("-c", command)]
    done = run("qemu-io", "-f", format, *arguments, str(path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "error" not in done.stdout, done.stdout


def create(path: Path, format: str, length: int, backing: tuple[Path, str] | None = None, options: str = "") -> Path:
    """`qemu-img create`; `backing`: path, beside it, and format."""
    over = [] if backing is None else ["-b", backing[0].name, "-F", backing[1]]
    qemu("create", "-q", "-f", format, *over, *(["-o", options] if options else []), path, length)
    return path


def scribble(path: Path, format: str, length: int, seed: int, *, zeroes: bool = True) -> None:
    """Random writes of random alignment, some of them of zeros."""
    draw = random.Random(seed)
    commands = []
    for _ in range(12):
        size = draw.choice((512, 4096, 5120, CLUSTER, 3 * CLUSTER)) & -512
        offset = draw.randrange(0, length - size + 1) & -512
        if zeroes and draw.random() < 0.25:
            commands.append(f"write -z {offset} {size}")
        else:
            commands.append(f"write -P {draw.randrange(0, 256)} {offset} {size}")
    write(path, format, *commands)


def assert_same(one: Path, one_format: str, two: Path, two_format: str) -> None:
    """qemu-img finds no difference."""
    done = run("qemu-img", "compare", "-f", one_format, "-F", two_format, str(one), str(two))
    assert done.returncode == 0, done.stdout + done.stderr


def assert_clean(path: Path) -> None:
    """qemu-img finds neither corruptions nor leaks."""
    done = run("qemu-img", "check", "-f", "qcow2", str(path))
    assert done.returncode == 0, done.stdout + done.stderr


def told(*arguments: object) -> Any:
    """The JSON of a qemu-img verb."""
    return json.loads(qemu(*arguments, "--output=json"))


def empty_chain(folder: Path, depth: int) -> list[Path]:
    """Short qcow2 images without content over each other, the bottom one first."""
    made: list[Path] = []
    for number in range(depth):
        made.append(folder / f"layer{number}.qcow2")
        create(made[-1], "qcow2", 1 << 20, (made[-2], "qcow2") if number else None, "")
    return made


def chain_of(folder: Path, lengths: Sequence[int], options: Sequence[str] = (), *, seed: int = 1) -> list[Path]:
    """qcow2 images over each other, the bottom one first, each with content of its own."""
    made: list[Path] = []
    for depth, length in enumerate(lengths):
        path = folder / f"layer{depth}.qcow2"
        under = (made[-1], "qcow2") if made else None
        create(path, "qcow2", length, under, options[depth] if options else "")
        scribble(path, "qcow2", length, seed * 100 + depth)
        made.append(path)
    return made
