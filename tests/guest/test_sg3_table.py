"""The table of docs/sg3_utils.md, run in a guest; and the page, printed from it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from formats.registry import create_image
from tests.guest.backend import Export
from tests.guest.disks import find_disk, generic
from tests.guest.guest import Guest
from tests.guest.machine import VhostUserScsi
from tests.guest.outside import make_image
from tests.guest.sg3_table import PREPARATION, TABLE, Row, reference

SERIAL, KEEPS = "SG3-TABLE", "SG3-KEEPS"
SECONDS = 60


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    image = make_image(tmp_path_factory.mktemp("sg3-table") / "disk.raw", 32)
    kept = image.with_name("kept.qcow2")
    create_image("qcow2", kept, 32 << 20)
    with (
        Export(image, "--serial", SERIAL) as export,
        Export(kept, "--serial", KEEPS, "--discard", "keep", format="qcow2") as other,
        Guest(image.parent, [export.controller(), VhostUserScsi(other.socket, "kept")]) as running,
    ):
        booted = running.boot()
        booted.check(PREPARATION)
        yield booted


@pytest.fixture(scope="module")
def disk(guest: Guest) -> str:
    return find_disk(guest, SERIAL)


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.command)
def test_a_program_of_sg3_utils_ends_as_the_table_says(row: Row, guest: Guest, disk: str) -> None:
    if row.kept:
        disk = find_disk(guest, KEEPS)
    result = guest.run(f"{row.on(disk, generic(guest, disk))} 2>&1", SECONDS)
    assert result.status == row.status, result.output
    assert row.told.lower() in result.output.lower()


def test_the_page_is_printed_from_the_table() -> None:
    page = Path(__file__).parents[2] / "docs" / "sg3_utils.md"
    assert page.read_text() == reference(), "python -m tests.guest.sg3_table > docs/sg3_utils.md"
