"""qemu-img as the oracle for qcow2: what it makes, what it finds wrong, and where it sees each cluster."""

import json
from pathlib import Path

from formats.host_file import HostFile
from formats.image import SECTOR, BlockState, Reference
from formats.qcow2.image import Qcow2
from tests.formats.reference import run


def qemu_create(path: Path, length: int, **options: object) -> None:
    """`qemu-img create`; `backing_file` needs `backing_fmt`."""
    text = ",".join(f"{name}={value}" for name, value in options.items())
    made = run("qemu-img", "create", "-q", "-f", "qcow2", *(["-o", text] if text else []), path, str(length))
    assert made.returncode == 0, made.stderr


def check(path: Path) -> dict[str, object]:
    """What `qemu-img check` tells; its exit code must fit."""
    result = run("qemu-img", "check", "-f", "qcow2", "--output=json", path)
    assert result.returncode in (0, 2, 3), result.stdout + result.stderr
    told: dict[str, object] = json.loads(result.stdout)
    return told


def assert_clean(path: Path) -> None:
    """No corruptions and no leaks."""
    result = run("qemu-img", "check", "-f", "qcow2", path)
    assert result.returncode == 0, result.stdout + result.stderr


def open_qcow2(path: Path, *, read_only: bool = False) -> Qcow2:
    """Opens it with its data file, if there is one, by the name it has."""

    def opener(reference: Reference) -> HostFile:
        return HostFile.from_path(path.parent / reference.name, read_only=read_only)

    file = HostFile.from_path(path, read_only=read_only)
    try:
        return Qcow2(file, opener=opener)
    except BaseException:
        file.close()
        raise


def qemu_map(path: Path, cluster_size: int) -> dict[int, tuple[str, int | None]]:
    """Of each whole cluster that `qemu-img map` tells as one piece: data, zero or hole, and where."""
    told = run("qemu-img", "map", "-f", "qcow2", "--output=json", path)
    assert told.returncode == 0, told.stderr
    clusters: dict[int, tuple[str, int | None]] = {}
    for row in json.loads(told.stdout):
        if row["depth"]:
            kind = "hole"
        elif row["data"]:
            kind = "data"
        else:
            kind = "zero" if row["present"] else "hole"
        start = -(-row["start"] // cluster_size)
        for number in range(start, (row["start"] + row["length"]) // cluster_size):
            offset = row.get("offset")
            where = None if offset is None or kind != "data" else offset + number * cluster_size - row["start"]
            clusters[number] = (kind, where)
    return clusters


_KINDS = {
    BlockState.DATA: "data",
    BlockState.SHARED: "data",
    BlockState.COMPRESSED: "data",
    BlockState.ZERO: "zero",
    BlockState.HOLE: "hole",
}


def own_map(image: Qcow2) -> dict[int, tuple[str, int | None]]:
    """The same, of our map."""
    clusters: dict[int, tuple[str, int | None]] = {}
    for piece in image.load(0, image.geometry.blocks):
        state = BlockState(piece.entry >> 60)
        if state == BlockState.PARTIAL:
            continue
        for n in range(piece.count):
            at = (piece.entry & (1 << 48) - 1) * SECTOR + n * image.geometry.block_size
            placed = state in (BlockState.DATA, BlockState.SHARED)
            clusters[piece.first + n] = (_KINDS[state], at if placed else None)
    return clusters


def assert_same_map(path: Path) -> None:
    """qemu-img map and our map agree on every whole cluster that both tell."""
    with open_qcow2(path, read_only=True) as image:
        ours = own_map(image)
        theirs = qemu_map(path, image.geometry.block_size)
    both = ours.keys() & theirs.keys()
    assert {n: ours[n] for n in both} == {n: theirs[n] for n in both}
