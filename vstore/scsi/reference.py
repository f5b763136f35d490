"""Writes docs/scsi from the tables: `python -m vstore.scsi.reference docs/scsi`. A test compares the two.

README.md                       lists, limits, what every command may be refused with
commands/ vpd/ mode/ log/       a page for each row: its bytes, what is supported, what is refused with which sense
"""

import errno
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from vstore.scsi import direct_access
from vstore.scsi.cdb import Cdb
from vstore.scsi.commands import COMMANDS, Inquiry, LogSelect, LogSense, ModeSelect10, ModeSense10
from vstore.scsi.device_server import ERRORS, ILLNESSES, READ_ERROR, WRITE_ERROR
from vstore.scsi.drawing import Place, drawing
from vstore.scsi.field import CHANGEABLE, Field, Layout
from vstore.scsi.identity import Identity
from vstore.scsi.kept_state import MemoryState
from vstore.scsi.log_pages import LOG_PAGES, LogPage, LogParameter
from vstore.scsi.logical_unit import LogicalUnit
from vstore.scsi.medium import MemoryMedium
from vstore.scsi.mode_parameters import MODE_PAGES, ModePage, PageAddress
from vstore.scsi.refusals import Refusal, family, own_refusals, shared_refusals
from vstore.scsi.self_test import MOST_RESULTS
from vstore.scsi.sense import AdditionalSense, Sense
from vstore.scsi.transferred import TRANSFERRED
from vstore.scsi.vpd import VPD_PAGES, VpdPage

_DISK = LogicalUnit(MemoryMedium(direct_access.MIB), Identity("0"), state=MemoryState())
_DISK_IS = "a thin disk of 1 MiB in blocks of 512 bytes, with a write cache, that keeps things beside its image"

_INTRODUCTION = f"""\
# SCSI reference

What a vstore disk answers, generated from the tables in `vstore/scsi` by `python -m vstore.scsi.reference docs/scsi`.
The version claimed is SPC-4, with SBC-3. A page for each command, VPD page, mode page and log page is linked from its
list; values there are those of {_DISK_IS}.

What happens to a field of a CDB:

| use | meaning |
|---|---|
| evaluated | its value changes the answer; reported in CDB USAGE DATA |
| accepted | supported, with no effect that could be seen (DPO); reported in CDB USAGE DATA |
| ignored | any value is accepted |
| must be zero | not supported; any other value is refused |

A bit that must be zero, or that belongs to no field, is refused with CHECK CONDITION, ILLEGAL REQUEST, INVALID FIELD
IN CDB; the sense-key specific data points at the byte and the leftmost bit of the field. The CONTROL byte is
such: there is no ACA.
"""

_LEFT_OUT = """\
## What is left out, because there is nothing true to say

- VPD page B5h, Block Device Characteristics Extension, tells for how much writing in its life a device was made.
- In log page 19h, General Statistics and Performance, nothing is told of times: the data plane reads no clock for a
  command, of which it serves up to some million a second.
- Temperature, and defects of a medium: these are of the host's disks, and an image may lie on several.
"""


def _table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> Iterator[str]:
    columns = list(head)
    yield "| " + " | ".join(columns) + " |"
    yield "|" + "---|" * len(columns)
    for row in rows:
        yield "| " + " | ".join(map(str, row)) + " |"
    yield ""


def _place(member: Field) -> str:
    """`1.4` one bit, `1.7:5` several bits of a byte, `2-5` whole bytes, `14.5-15` a field that starts inside a byte."""
    last = member.byte + member.size - 1
    start = f"{member.byte}" if member.msb == 7 and member.width >= 8 else f"{member.byte}.{member.msb}"
    if last > member.byte:
        return f"{start}-{last}"
    return start if member.width in (1, 8) else f"{start}:{member.msb - member.width + 1}"


def _words(name: str) -> str:
    return name.upper().replace("_", " ")


def _code(row: type[Cdb]) -> str:
    return f"{row.opcode:02X}h" + (f"/{row.service_action:02X}h" if row.service_action is not None else "")


def _command_list() -> Iterator[str]:
    yield "## Commands\n"
    yield from _table(
        (
            *("code", "command", "CDB", "medium", "with a unit attention pending"),
            *("beside another's RESERVE", "beside another's persistent reservation", "data plane"),
        ),
        (
            (
                _code(row),
                f"[{row.name}](commands/{_file(row.name)})",
                row.length,
                row.access.value,
                "served" if row.passes_attention else "reports it",
                "served" if row.passes_reservation else "conflict",
                _beside(row),
                "fast path" if row.fast else "-",
            )
            for row in COMMANDS
        ),
    )


def _beside(row: type[Cdb]) -> str:
    if not row.beside_if:
        return row.beside.value
    field, value = row.beside_if
    return f"{row.beside.value}, served {'with' if value else 'without'} {_words(field)}"


def _file(name: str) -> str:
    """`PERSISTENT RESERVE OUT (PREEMPT AND ABORT)` becomes `persistent-reserve-out-preempt-and-abort.md`."""
    words = "".join(letter if letter.isalnum() else " " for letter in name.lower())
    return "-".join(words.split()) + ".md"


_HOME = "[SCSI reference](../README.md)\n"


def _command(row: type[Cdb]) -> Iterator[str]:
    yield f"# {row.name}\n"
    yield _HOME
    yield f"{_code(row)}, {row.length} bytes. CDB USAGE DATA: `{row.usage_data().hex(' ')}`\n"
    fixed = [Place(f"OPERATION CODE ({row.opcode:02X}h)", 0, 7, 8), Place("CONTROL", row.length - 1, 7, 8)]
    if row.service_action is not None:
        fixed.append(Place(f"SERVICE ACTION ({row.service_action:02X}h)", 1, 4, 5))
    yield from drawing([*fixed, *_places(row)], row.length)
    if row.fields:
        yield from _table(
            ("byte.bit", "field", "use"),
            ((_place(member), _words(name), member.use.value) for name, member in row.fields.items()),
        )
    for structure in TRANSFERRED.get(row.name, TRANSFERRED.get(family(row), ())):
        yield f"## {_title(structure)}\n"
        yield f"{structure.__doc__ or ''}\n"
        yield from drawing(_places(structure), structure.length)
    yield from _refused(row)
    yield "What every command may be refused with [stands with the list](../README.md#commands).\n"


def _title(structure: type[Layout]) -> str:
    """`UnmapBlockDescriptor` becomes `Unmap block descriptor`."""
    return re.sub(r"(?<=[a-z])(?=[A-Z0-9])", " ", structure.__name__).capitalize()


def _places(layout: type[Layout], start: int = 0) -> list[Place]:
    """For a drawing in which the structure begins at byte `start`."""
    return [
        Place(_words(name), member.byte + start, member.msb, member.width) for name, member in layout.fields.items()
    ]


def _refused(*rows: type[Cdb]) -> Iterator[str]:
    """With which sense data each of these commands is, beyond what all may be."""
    for row in rows:
        own = list(own_refusals(row))
        if own:
            yield f"## {row.name} is refused\n"
            yield from _refusals(own)


def _refusals(told: Iterable[Refusal]) -> Iterator[str]:
    yield from _table(
        ("when", "sense key", "additional sense"),
        (
            (
                f"{_words(each.field)}: {each.when}" if each.field else each.when,
                _words(each.key.name),
                f"{each.code.asc:02X}h/{each.code.ascq:02X}h {_words(each.code.name)}",
            )
            for each in told
        ),
    )


def _shared() -> Iterator[str]:
    yield "Besides what is told with each command, every command may be refused so (INQUIRY, REPORT LUNS and REQUEST"
    yield "SENSE, which also pass unit attentions, for the first three reasons alone, and SANITIZE not for the last):\n"
    yield from _refusals(shared_refusals(COMMANDS[0]))


def _layout(layout: type[Layout], start: int) -> Iterator[tuple[str, str, Field]]:
    """The fields as they lie in the page, whose body starts at byte `start`."""
    for name, member in layout.fields.items():
        moved = Field(member.byte + start, member.msb, member.width, member.use)
        yield _place(moved), _words(name), member


def _vital_product_data(code: int, page: VpdPage) -> Iterator[str]:
    yield f"# VPD page {code:02X}h: {page.name}\n"
    yield _HOME
    yield f"{page.body.__doc__}\n"
    head = [
        Place("PERIPHERAL QUALIFIER", 0, 7, 3),
        Place("PERIPHERAL DEVICE TYPE (00h)", 0, 4, 5),
        Place(f"PAGE CODE ({code:02X}h)", 1, 7, 8),
        Place("PAGE LENGTH", 2, 7, 16),
    ]
    if page.layout:
        yield from drawing([*head, *_places(page.layout, 4)], page.layout.length + 4)
        values = page.layout.parse(page.body(_DISK, 1)).items()
        rows = zip(_layout(page.layout, 4), values, strict=True)
        yield from _table(
            ("byte.bit", "field", "value"), ((at, name, f"{value:X}h") for (at, name, _), (_, value) in rows)
        )
    else:
        yield from drawing([*head, Place("as told above, PAGE LENGTH bytes", 4, 7, 8)], 5)
    yield from _refused(Inquiry)


def _page_code(address: PageAddress) -> str:
    return f"{address.page:02X}h" + (f"/{address.subpage:02X}h" if address.subpage else "")


def _mode_page(address: PageAddress, page: ModePage) -> Iterator[str]:
    start, defaults = 4 if address.subpage else 2, _DISK.modes.defaults[address].items()
    yield f"# Mode page {_page_code(address)}: {page.name}\n"
    yield _HOME
    yield "Current, changeable, default and saved values; saved ones only of a disk that can keep something beside its"
    yield "image (else SAVING PARAMETERS NOT SUPPORTED), and of these those that MODE SELECT may change.\n"
    head = [Place("PS", 0, 7, 1), Place("SPF", 0, 6, 1), Place(f"PAGE CODE ({address.page:02X}h)", 0, 5, 6)]
    if address.subpage:
        head += [Place(f"SUBPAGE CODE ({address.subpage:02X}h)", 1, 7, 8), Place("PAGE LENGTH", 2, 7, 16)]
    else:
        head.append(Place("PAGE LENGTH", 1, 7, 8))
    yield from drawing([*head, *_places(page.layout, start)], page.layout.length + start)
    yield from _table(
        ("byte.bit", "field", "default", "MODE SELECT"),
        (
            (at, name, f"{value:X}h", member.use.value if member.use is CHANGEABLE else "-")
            for (at, name, member), (_, value) in zip(_layout(page.layout, start), defaults, strict=True)
        ),
    )
    yield "MODE SELECT that gives another value to a field that it may not change is refused, and points at it.\n"
    yield from _refused(ModeSense10, ModeSelect10)


def _log_parameter(parameter: LogParameter) -> Iterator[tuple[str, str, str]]:
    """A row for each field; the first names the parameter."""
    kind = "data counter" if parameter.counter else "list"
    name = f"{parameter.code:04X}h {parameter.name}, {kind}" + (", can be reset" if parameter.resets else "")
    for at, field, _ in _layout(parameter.layout, 4):
        yield name, at, field
        name = ""


def _log_page(address: PageAddress, page: LogPage) -> Iterator[str]:
    yield f"# Log page {_page_code(address)}: {page.name}\n"
    yield _HOME
    yield "Cumulative values are live. Thresholds are the largest values there are, and nothing is compared with them."
    yield "LOG SELECT resets counters, and sets data counters; nothing is saved (DS and TSD are one).\n"
    if page.note:
        yield f"{page.note}\n"
    if page.parameters:
        yield from _log_parameters(page)
    else:
        yield "Page codes, with subpage codes where the page was asked for by subpage FFh.\n"
    yield from _refused(LogSense, LogSelect)


def _log_parameters(page: LogPage) -> Iterator[str]:
    for layout in dict.fromkeys(parameter.layout for parameter in page.parameters):
        head = [
            Place("PARAMETER CODE", 0, 7, 16),
            Place("DU", 2, 7, 1),
            Place("TSD", 2, 5, 1),
            Place("FORMAT AND LINKING", 2, 1, 2),
            Place(f"PARAMETER LENGTH ({layout.length:02X}h)", 3, 7, 8),
        ]
        yield from drawing([*head, *_places(layout, 4)], layout.length + 4)
    rows = [row for parameter in page.parameters for row in _log_parameter(parameter)]
    if len(page.parameters) == MOST_RESULTS:
        rows = list(_log_parameter(page.parameters[0]))
        yield f"Parameters 0001h to {MOST_RESULTS:04X}h, of which the first is the newest:\n"
    yield from _table(("parameter", "byte.bit", "field"), rows)


def _limits() -> Iterator[str]:
    mib = direct_access.MIB
    yield "## Limits\n"
    yield from _table(
        ("limit", "value"),
        (
            ("logical block length", ", ".join(map(str, direct_access.LOGICAL_BLOCK_LENGTHS))),
            ("transfer length", f"{direct_access.MAXIMUM_TRANSFER_BYTES // mib} MiB"),
            ("WRITE SAME length", f"{direct_access.MAXIMUM_WRITE_SAME_BYTES // mib} MiB"),
            ("COMPARE AND WRITE length", f"{direct_access.MAXIMUM_COMPARE_AND_WRITE} blocks"),
            ("PRE-FETCH into the host's cache", f"{direct_access.MAXIMUM_PREFETCH_BYTES // mib} MiB"),
            ("UNMAP block descriptors", direct_access.MAXIMUM_UNMAP_DESCRIPTORS),
            ("UNMAP LBA count", "none"),
        ),
    )


def _sense() -> Iterator[str]:
    yield "## Sense data\n"
    yield "Additional sense codes in use:\n"
    yield from _table(
        ("ASC/ASCQ", "meaning"),
        ((f"{code.asc:02X}h/{code.ascq:02X}h", _words(code.name)) for code in AdditionalSense),
    )
    yield "Errors of the host, where INTERNAL TARGET FAILURE is what is not listed:\n"
    yield from _table(
        ("errno", "answer"),
        [
            *(
                (errno.errorcode[number], f"{_told(READ_ERROR)} when reading, {_told(WRITE_ERROR)} else")
                for number in ILLNESSES
            ),
            *((errno.errorcode[number], _told(sense)) for number, sense in ERRORS.items()),
            ("ENOMEM", "TASK SET FULL status"),
        ],
    )


def _told(sense: Sense) -> str:
    return f"{_words(sense.key.name)}, {_words(sense.code.name)}"


def _code_list(title: str, folder: str, named: Iterable[tuple[str, str]]) -> Iterator[str]:
    yield f"## {title}\n"
    yield from _table(
        ("code", "page"), ((code, f"[{name}]({folder}/{code.lower().replace('/', '-')}.md)") for code, name in named)
    )


def _addressed(pages: Iterable[tuple[PageAddress, ModePage | LogPage]]) -> list[tuple[str, str]]:
    return [(_page_code(address), page.name) for address, page in sorted(pages, key=lambda each: each[0])]


def _index() -> Iterator[str]:
    yield from (_INTRODUCTION, *_command_list(), *_shared())
    yield from _code_list(
        "Vital product data", "vpd", [(f"{code:02X}h", page.name) for code, page in sorted(VPD_PAGES.items())]
    )
    yield from _code_list("Mode pages", "mode", _addressed(MODE_PAGES.items()))
    yield from _code_list("Log pages", "log", _addressed(LOG_PAGES.items()))
    yield from (_LEFT_OUT, *_limits(), *_sense())


def reference() -> dict[str, str]:
    """The text of each page, by its path."""
    parts: dict[str, Iterator[str]] = {"README.md": _index()}
    parts |= {f"commands/{_file(row.name)}": _command(row) for row in COMMANDS}
    parts |= {f"vpd/{code:02x}h.md": _vital_product_data(code, page) for code, page in VPD_PAGES.items()}
    parts |= {f"mode/{_page_file(address)}": _mode_page(address, page) for address, page in MODE_PAGES.items()}
    parts |= {f"log/{_page_file(address)}": _log_page(address, page) for address, page in LOG_PAGES.items()}
    return {path: "\n".join(lines).rstrip() + "\n" for path, lines in parts.items()}


def _page_file(address: PageAddress) -> str:
    return _page_code(address).lower().replace("/", "-") + ".md"


def write(folder: Path) -> None:
    """All pages; those of rows that are no more go."""
    pages = reference()
    for path in folder.rglob("*.md"):
        if str(path.relative_to(folder)) not in pages:
            path.unlink()
    for name, text in pages.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
