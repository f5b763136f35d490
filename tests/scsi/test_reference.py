import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from vstore.scsi.commands import COMMANDS
from vstore.scsi.log_pages import LOG_PAGES
from vstore.scsi.mode_parameters import MODE_PAGES
from vstore.scsi.reference import reference, write
from vstore.scsi.refusals import family
from vstore.scsi.transferred import TRANSFERRED
from vstore.scsi.vpd import VPD_PAGES

FOLDER = Path(__file__).parents[2] / "docs" / "scsi"


def written(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_the_committed_pages_are_what_the_tables_say() -> None:
    assert written(FOLDER) == reference(), "run: python -m vstore.scsi.reference docs/scsi"


def test_every_command_and_page_has_its_own() -> None:
    pages = reference()
    assert len(pages) == 1 + len(COMMANDS) + len(VPD_PAGES) + len(MODE_PAGES) + len(LOG_PAGES)
    titles = {text.partition("\n")[0] for text in pages.values()}
    assert titles >= {f"# {row.name}" for row in COMMANDS}
    assert titles >= {f"# VPD page {code:02X}h: {page.name}" for code, page in VPD_PAGES.items()}
    for kind, table in (("Mode", MODE_PAGES), ("Log", LOG_PAGES)):
        for address, page in table.items():
            subpage = f"/{address.subpage:02X}h" if address.subpage else ""
            assert f"# {kind} page {address.page:02X}h{subpage}: {page.name}" in titles


def test_every_page_is_linked_from_the_list_and_every_link_leads_somewhere() -> None:
    pages = reference()
    linked = set()
    for path, text in pages.items():
        for link in re.findall(r"\]\(([^)#]+)", text):
            target = os.path.normpath(os.path.join(os.path.dirname(path), link))
            assert target in pages, (path, link)
            if path == "README.md":
                linked.add(target)
    assert linked == set(pages) - {"README.md"}


def test_fields_are_placed_as_printed() -> None:
    for path, line in (
        ("commands/read-6.md", "| 1.4-3 | LBA | evaluated |"),
        ("commands/read-16.md", "| 2-9 | LBA | evaluated |"),
        ("commands/read-10.md", "| 6.4:0 | GROUP NUMBER | ignored |"),
        ("commands/write-10.md", "| 1.3 | FUA | evaluated |"),
        ("mode/08h.md", "| 2.2 | WCE | 1h | changeable |"),
        ("vpd/b0h.md", "| 36-43 | MAXIMUM WRITE SAME LENGTH | 200000h |"),
    ):
        assert line in reference()[path].splitlines()


def test_the_module_writes_the_pages_and_removes_those_of_rows_that_are_gone(tmp_path: Path) -> None:
    (tmp_path / "commands").mkdir()
    (tmp_path / "commands" / "rezero-unit.md").write_text("# REZERO UNIT\n")
    subprocess.run(
        [sys.executable, "-m", "vstore.scsi.reference", str(tmp_path)], check=True, cwd=FOLDER.parents[1], timeout=60
    )
    assert written(tmp_path) == written(FOLDER)
    write(tmp_path)
    assert written(tmp_path) == written(FOLDER)


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (
            "commands/write-same-16.md",
            "| UNMAP: the unit is not thin | ILLEGAL REQUEST | 24h/00h INVALID FIELD IN CDB |",
        ),
        (
            "commands/write-same-16.md",
            "| the unit, or the copy's destination, is read-only | DATA PROTECT | 27h/00h WRITE PROTECTED |",
        ),
        ("vpd/b0h.md", "| PAGE CODE: there is no such page | ILLEGAL REQUEST | 24h/00h INVALID FIELD IN CDB |"),
        ("mode/08h.md", "| SP: nothing can be saved | ILLEGAL REQUEST | 24h/00h INVALID FIELD IN CDB |"),
    ],
)
def test_each_page_tells_with_which_sense_it_is_refused(path: str, line: str) -> None:
    assert line in reference()[path].splitlines()


def test_what_a_command_transfers_is_drawn_on_its_page() -> None:
    assert set(TRANSFERRED) <= {row.name for row in COMMANDS} | {family(row) for row in COMMANDS}
    pages = reference()
    for path, title in (
        ("commands/unmap.md", "## Unmap block descriptor"),
        ("commands/persistent-reserve-out-preempt.md", "## Basic parameters"),
        ("commands/persistent-reserve-out-register-and-move.md", "## Move parameters"),
    ):
        assert title in pages[path].splitlines()
