"""The table of docs/sg3_utils.md once more, without a virtual machine: the programs against the model itself."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guest.sg3_table import TABLE, Row
from tests.scsi.initiator import MIB, Initiator, make_unit
from tests.scsi.sg_io import Disk, built
from vstore.scsi.kept_state import MemoryState
from vstore.scsi.medium import MemoryMedium, Room

LENGTH = 8 * MIB


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the files that the table's commands read."""
    folder = tmp_path_factory.mktemp("sg3")
    (folder / "zero").write_bytes(bytes(4096))
    (folder / "noise").write_bytes(bytes(range(1, 256)) * 257 + b"\1")
    (folder / "name").write_text("name\n")
    return folder


@pytest.fixture(scope="module")
def disks(folder: Path) -> Iterator[tuple[Disk, Disk]]:
    """A plain one, and one whose medium anchors."""
    library, made = built(folder), []
    for name, anchors in (("plain", False), ("kept", True)):
        (folder / name).mkdir()
        medium = MemoryMedium(LENGTH, anchors=anchors)
        medium.room = Room(LENGTH, 1 << 30)
        unit = make_unit(medium=medium, state=MemoryState())
        made.append(Disk(folder / name, Initiator(unit), library))
    with made[0] as plain, made[1] as kept:
        yield plain, kept


def ended(row: Row, disk: Disk, folder: Path) -> str:
    """What is wrong with how it has; nothing."""
    command = row.on("DISK", "DISK").replace("/tmp/", f"{folder}/").replace("DISK", str(disk.path))
    done = disk.run(command, folder)
    as_told = done.returncode == row.status and row.told.lower() in done.stdout.lower()
    return "" if as_told else f"{row.command}: {done.returncode}, not {row.status}: {done.stdout}"


def test_every_program_of_sg3_utils_ends_as_the_table_says(disks: tuple[Disk, Disk], folder: Path) -> None:
    """In the order of the table: later rows read what earlier ones have set."""
    assert not [wrong for row in TABLE if (wrong := ended(row, disks[row.kept], folder))]
