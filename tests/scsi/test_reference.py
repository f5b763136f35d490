import subprocess
import sys
from pathlib import Path

from vstore.scsi.commands import COMMANDS
from vstore.scsi.log_pages import LOG_PAGES
from vstore.scsi.mode_parameters import MODE_PAGES
from vstore.scsi.reference import reference
from vstore.scsi.vpd import VPD_PAGES

PAGE = Path(__file__).parents[2] / "docs" / "scsi.md"


def test_the_committed_page_is_what_the_tables_say() -> None:
    assert PAGE.read_text() == reference(), "run: python -m vstore.scsi.reference > docs/scsi.md"


def test_every_command_and_page_has_its_section() -> None:
    headings = [line for line in reference().splitlines() if line.startswith("### ")]
    titles = [row.name for row in COMMANDS]
    titles += [f"{code:02X}h {page.name}" for code, page in VPD_PAGES.items()]
    titles += [
        f"{address.page:02X}h{f'/{address.subpage:02X}h' if address.subpage else ''} {page.name}"
        for pages in (MODE_PAGES, LOG_PAGES)
        for address, page in pages.items()
    ]
    assert headings == [f"### {title}" for title in titles]


def test_links_lead_to_a_heading() -> None:
    text = reference()
    anchors = {
        "".join(c for c in line[4:].lower() if c.isalnum() or c in " -").replace(" ", "-")
        for line in text.splitlines()
        if line.startswith("### ")
    }
    links = [part.split(")")[0] for part in text.split("](#")[1:]]
    assert len(links) == len(COMMANDS)
    assert set(links) <= anchors


def test_fields_are_placed_as_printed() -> None:
    lines = reference().splitlines()
    for line in (
        "| 1.4-3 | LBA | evaluated |",  # READ (6)
        "| 2-9 | LBA | evaluated |",
        "| 6.4:0 | GROUP NUMBER | ignored |",
        "| 1.3 | FUA | evaluated |",
        "| 2.2 | WCE | 1h | changeable |",
        "| 36-43 | MAXIMUM WRITE SAME LENGTH | 200000h |",
    ):
        assert line in lines


def test_the_module_prints_the_page() -> None:
    printed = subprocess.run(
        [sys.executable, "-m", "vstore.scsi.reference"], capture_output=True, text=True, check=True, cwd=PAGE.parents[1]
    )
    assert printed.stdout == PAGE.read_text()


def test_each_command_tells_with_which_sense_it_is_refused() -> None:
    section = reference().split("### WRITE SAME (16)\n")[1].split("### ")[0]
    for line in (
        "| UNMAP: the unit is not thin | ILLEGAL REQUEST | 24h/00h INVALID FIELD IN CDB |",
        "| the unit, or the copy's destination, is read-only | DATA PROTECT | 27h/00h WRITE PROTECTED |",
    ):
        assert line in section.splitlines()
