"""Persistent dirty bitmaps of a disk in use, as qemu-img and qemu-nbd find them once it is closed."""

import json
import random
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from formats.errors import InvalidArgument, UnsupportedFeature
from formats.qcow2.image import Qcow2
from formats.registry import create_image, open_chain
from tests.formats.qcow2.oracle import assert_clean
from tests.formats.reference import run
from vstore.disk import Disk

KIB, MIB = 1 << 10, 1 << 20
LENGTH, GRANULARITY = 8 * MIB, 64 * KIB


@pytest.fixture(params=[{}, {"extended_l2": True}, {"secret": b"key"}], ids=["plain", "extended", "encrypted"])
def path(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    options = dict(request.param)
    secret = options.pop("secret", None)
    if secret:
        options["encrypt.format"] = "luks"
    create_image("qcow2", tmp_path / "disk", LENGTH, options=options, secret=secret)
    return tmp_path / "disk"


def opened(path: Path) -> Disk:
    return Disk(*open_chain("qcow2", path, secrets=[b"key"]))


@contextmanager
def nbd(path: Path, bitmap: str) -> Iterator[str]:
    """qemu-nbd tells what is dirty in it, where it can open the image: without the secret of an encrypted one."""
    socket = path.with_suffix(f".{bitmap}")
    argv = ["qemu-nbd", "-r", "-t", "-f", "qcow2", "-k", socket, "-B", bitmap, path]
    process = subprocess.Popen(argv, stderr=subprocess.PIPE)
    try:
        for _ in range(100):
            if socket.exists():
                break
            time.sleep(0.05)
        yield f"nbd:unix:{socket}"
    finally:
        process.terminate()
        process.communicate(timeout=30)


def dirty(path: Path, bitmap: str) -> set[int]:
    """The granules that it marks, by qemu-nbd's x-dirty-bitmap."""
    with nbd(path, bitmap) as address:
        options = {
            "driver": "nbd",
            "server": {"type": "unix", "path": address.removeprefix("nbd:unix:")},
            "x-dirty-bitmap": f"qemu:dirty-bitmap:{bitmap}",
        }
        told = run("qemu-img", "map", "--output=json", "--image-opts", _flat(options))
    assert told.returncode == 0, told.stderr
    return {
        at // GRANULARITY
        for row in json.loads(told.stdout)
        if not row["data"]  # x-dirty-bitmap tells dirty as a hole
        for at in range(row["start"], row["start"] + row["length"], GRANULARITY)
    }


def _flat(options: dict[str, object]) -> str:
    words = []
    for name, value in options.items():
        rows = value.items() if isinstance(value, dict) else [("", value)]
        words += [f"{name}{'.' if key else ''}{key}={each}" for key, each in rows]
    return ",".join(words)


def _found(path: Path, bitmap: str) -> set[int]:
    """By qemu-nbd; it has no short way to a secret, so of an encrypted image we ask ourselves."""
    image = open_chain("qcow2", path, read_only=True, secrets=[b"key"])[0]
    assert isinstance(image, Qcow2)
    with image:
        rows = list(image.bitmaps.usable(bitmap).dirty())
        encrypted = image.encrypted
    if not encrypted:
        assert_clean(path)
        return dirty(path, bitmap)
    return {at // GRANULARITY for start, count in rows for at in range(start, start + count, GRANULARITY)}


def test_a_bitmap_has_what_was_written_while_it_was_enabled_and_nothing_else(path: Path) -> None:
    disk, draw = opened(path), random.Random(1)
    written: dict[str, set[int]] = {"early": set(), "late": set(), "cleared": set(), "paused": set()}

    def write(*bitmaps: str) -> None:
        for _ in range(20):
            at = draw.randrange(0, LENGTH - 5000)
            disk.write_blocking(at, draw.randbytes(5000))
            for name in bitmaps:
                written[name] |= {at // GRANULARITY, (at + 4999) // GRANULARITY}

    write()
    for name in ("early", "cleared", "paused"):
        disk.change_bitmap("add", name, granularity=GRANULARITY, enabled=True)
    disk.change_bitmap("add", "late", granularity=GRANULARITY, enabled=False)
    write("early", "paused")
    disk.change_bitmap("clear", "cleared")
    disk.change_bitmap("disable", "paused")
    write("early", "cleared")
    disk.change_bitmap("enable", "late")
    disk.change_bitmap("enable", "paused")
    disk.write_zeroes_blocking(MIB, MIB, deallocate=True)
    for name in written:
        written[name] |= set(range(MIB // GRANULARITY, 2 * MIB // GRANULARITY))
    disk.flush_blocking()
    write(*written)
    disk.close()
    assert {name: _found(path, name) for name in written} == written


def test_merging_and_removing_are_seen_by_qemu_img(path: Path) -> None:
    disk = opened(path)
    for name in ("a", "b", "sum", "gone"):
        disk.change_bitmap("add", name, granularity=GRANULARITY, enabled=name != "sum")
    disk.write_blocking(0, b"x")
    disk.change_bitmap("disable", "a")
    disk.write_blocking(5 * MIB, b"y")
    disk.change_bitmap("merge", "sum", sources=["a", "b"])
    disk.change_bitmap("remove", "gone")
    assert [(row["name"], row["enabled"], row["consistent"]) for row in disk.bitmaps()] == [
        ("a", False, True),
        ("b", True, True),
        ("sum", False, True),
    ]
    disk.close()
    told = json.loads(run("qemu-img", "info", "--output=json", path).stdout)["format-specific"]["data"]["bitmaps"]
    assert [(row["name"], row["flags"]) for row in told] == [("a", []), ("b", ["auto"]), ("sum", [])]
    if not disk.image.encrypted:
        assert dirty(path, "sum") == {0, 5 * MIB // GRANULARITY}


def test_what_cannot_be_is_refused_and_changes_nothing(path: Path, tmp_path: Path) -> None:
    disk = opened(path)
    disk.change_bitmap("add", "a", granularity=None, enabled=True)
    with pytest.raises(InvalidArgument, match="already"):
        disk.change_bitmap("add", "a", granularity=None, enabled=True)
    with pytest.raises(InvalidArgument, match="power of two"):
        disk.change_bitmap("add", "b", granularity=1000, enabled=True)
    with pytest.raises(InvalidArgument, match="no bitmap"):
        disk.change_bitmap("merge", "a", sources=["nobody"])
    disk.write_blocking(0, b"z")
    disk.close()
    create_image("raw", tmp_path / "raw", MIB)
    disk = Disk(*open_chain("raw", tmp_path / "raw"))
    with pytest.raises(UnsupportedFeature, match="hold no bitmaps"):
        disk.change_bitmap("clear", "a")
    disk.close()
