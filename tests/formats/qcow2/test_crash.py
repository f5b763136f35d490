"""Power fails at any write: no corruption for qemu-img, nothing acknowledged is lost, no byte shows that none wrote."""

import random
from pathlib import Path

import pytest

from formats.host_file import HostFile
from formats.image import Reference as FileReference
from formats.qcow2.check import check
from formats.qcow2.image import Qcow2
from tests.formats.qcow2.oracle import open_qcow2, qemu_create
from tests.formats.qcow2.recorder import SECTOR, Recording
from tests.formats.qcow2.volume import AllocatingVolume
from tests.formats.reference import run

LENGTH = 256 << 10

VARIANTS: dict[str, dict[str, object]] = {
    "plain": {},
    "small clusters": {"cluster_size": 512, "refcount_bits": 64},
    "version 2": {"compat": "0.10", "cluster_size": 4096},
    "backing": {"backing_file": "base", "backing_fmt": "raw", "cluster_size": 16384},
    "sub-clusters": {"extended_l2": "on", "cluster_size": 16384, "backing_file": "base", "backing_fmt": "raw"},
    "compressed": {"cluster_size": 4096},
    "snapshot": {"cluster_size": 4096, "refcount_bits": 8},
    "data file": {"cluster_size": 4096, "data_file": "disk.data"},
}


class History:
    """What each sector may hold: what was acknowledged last, or anything that was written to it since."""

    def __init__(self, content: bytes) -> None:
        self.sectors = [{content[at : at + SECTOR]} for at in range(0, LENGTH, SECTOR)]
        self.now = bytearray(content)
        self.acknowledged: list[tuple[int, list[set[bytes]]]] = [(0, self._copy())]

    def _copy(self) -> list[set[bytes]]:
        return [set(values) for values in self.sectors]

    def write(self, offset: int, data: bytes) -> None:
        self.now[offset : offset + len(data)] = data
        for number in range(offset // SECTOR, -(-(offset + len(data)) // SECTOR)):
            self.sectors[number].add(bytes(self.now[number * SECTOR : (number + 1) * SECTOR]))

    def acknowledge(self, step: int) -> None:
        """A flush has completed behind `step` steps."""
        self.acknowledged.append((step, self._copy()))
        self.sectors = [{bytes(self.now[at : at + SECTOR])} for at in range(0, LENGTH, SECTOR)]
        self.acknowledged.append((step, self._copy()))

    def allowed(self, step: int) -> list[set[bytes]]:
        """Contents that a crash behind `step` steps may leave."""
        later = [state for at, state in self.acknowledged[1:] if at >= step]
        before = [state for at, state in self.acknowledged if at <= step]
        ahead = later[0] if later else self.sectors
        return [ahead[n] | (before[-1][n] if not later else set()) for n in range(len(self.sectors))]


def prepare(directory: Path, variant: str) -> tuple[Path, bytes]:
    draw = random.Random(variant)
    content = draw.randbytes(LENGTH) if variant in ("backing", "sub-clusters") else bytes(LENGTH)
    (directory / "base").write_bytes(content)
    path = directory / "disk.qcow2"
    options = dict(VARIANTS[variant])
    for key in ("backing_file", "data_file"):
        if key in options:
            options[key] = directory / str(options[key])
    if variant == "compressed":
        content = b"".join(bytes([n % 251]) * SECTOR for n in range(LENGTH // SECTOR))
        (directory / "base").write_bytes(content)
        made = run("qemu-img", "convert", "-c", "-O", "qcow2", "-o", "cluster_size=4096", directory / "base", path)
        assert made.returncode == 0, made.stderr
    else:
        qemu_create(path, LENGTH, **options)
    if variant == "snapshot":
        assert run("qemu-io", "-f", "qcow2", "-c", "write -P 9 0 125k", path).returncode == 0
        assert run("qemu-img", "snapshot", "-c", "one", path).returncode == 0
        content = bytes([9]) * (125 << 10) + bytes(LENGTH - (125 << 10))
    return path, content


def work(path: Path, recording: Recording, content: bytes, seed: str) -> History:
    draw = random.Random(seed)
    history = History(content)

    def opener(reference: FileReference) -> object:
        return recording.watch(path.parent / reference.name)

    parent = (path.parent / "base").read_bytes()
    image = Qcow2(recording.watch(path), opener=opener)  # type: ignore[arg-type]
    volume = AllocatingVolume(
        image, lambda offset, length: parent[offset : offset + length].ljust(length, b"\0"), window=4
    )
    for number in range(60):
        offset = draw.randrange(LENGTH // SECTOR - 40) * SECTOR
        length = draw.choice([1, 3, 8, 40]) * SECTOR
        if draw.random() < 0.75:
            data = b"".join(bytes([number, n]) * (SECTOR // 2) for n in range(length // SECTOR))
            volume.write(offset, data)
        else:
            data = bytes(length)
            volume.zero(offset, length, draw.random() < 0.5)
        history.write(offset, data)
        if draw.random() < 0.2:
            volume.flush()
            history.acknowledge(len(recording.steps))
    volume.close()
    history.acknowledge(len(recording.steps))
    return history


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_crash_corrupts_loses_or_exposes(tmp_path: Path, variant: str) -> None:
    path, content = prepare(tmp_path, variant)
    recording = Recording()
    history = work(path, recording, content, variant)
    parent = (tmp_path / "base").read_bytes()
    draw = random.Random(variant)
    for step, files in recording.states(draw, 40):
        for name, data in files.items():
            (tmp_path / name).write_bytes(data)
        checked = run("qemu-img", "check", "-f", "qcow2", path)
        assert checked.returncode in (0, 3), (step, checked.stdout + checked.stderr)  # 3: leaks only
        image = open_qcow2(path, read_only=True)
        volume = AllocatingVolume(image, lambda at, length: parent[at : at + length].ljust(length, b"\0"))
        found = volume.read(0, LENGTH)
        image.close()
        for number, values in enumerate(history.allowed(step)):
            assert found[number * SECTOR : (number + 1) * SECTOR] in values, (step, number)


def test_a_new_refcount_block_is_counted_before_the_table_names_it(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    qemu_create(path, LENGTH, cluster_size=512, refcount_bits=64)
    recording = Recording()
    with Qcow2(recording.watch(path)) as image:
        for _ in range(20):
            image.reserve(11)  # with 64 counts a block, blocks are laid at all places under others
            image.commit([])
    for step in range(len(recording.steps) + 1):
        path.write_bytes(recording.state(step)[path.name])
        with HostFile.from_path(path, read_only=True) as file:
            assert not check(file).corruptions, step
