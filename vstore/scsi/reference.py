"""Writes docs/scsi.md from the tables: `python -m vstore.scsi.reference > docs/scsi.md`. A test compares the two."""

import errno
from collections.abc import Iterable, Iterator

from vstore.scsi import direct_access
from vstore.scsi.cdb import Cdb
from vstore.scsi.commands import COMMANDS
from vstore.scsi.device_server import ERRORS, ILLNESSES, READ_ERROR, WRITE_ERROR
from vstore.scsi.field import CHANGEABLE, Field, Layout
from vstore.scsi.identity import Identity
from vstore.scsi.kept_state import MemoryState
from vstore.scsi.log_pages import LOG_PAGES, LogParameter
from vstore.scsi.logical_unit import LogicalUnit
from vstore.scsi.medium import MemoryMedium
from vstore.scsi.mode_parameters import MODE_PAGES, PageAddress
from vstore.scsi.refusals import Refusal, own_refusals, shared_refusals
from vstore.scsi.self_test import MOST_RESULTS
from vstore.scsi.sense import AdditionalSense, Sense
from vstore.scsi.vpd import VPD_PAGES

_INTRODUCTION = """\
# SCSI reference

What a vstore disk answers, generated from the tables in `vstore/scsi` by `python -m vstore.scsi.reference`.
The version claimed is SPC-4, with SBC-3.

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


_DISK = LogicalUnit(MemoryMedium(direct_access.MIB), Identity("0"), state=MemoryState())
_DISK_IS = "a thin disk of 1 MiB in blocks of 512 bytes, with a write cache, that keeps things beside its image"


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
                f"[{row.name}](#{_anchor(row.name)})",
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
    return f"{row.beside.value}, served with {_words(row.beside_if)}" if row.beside_if else row.beside.value


def _anchor(title: str) -> str:
    kept = "".join(letter for letter in title.lower() if letter.isalnum() or letter in " -")
    return kept.replace(" ", "-")


def _command(row: type[Cdb]) -> Iterator[str]:
    yield f"### {row.name}\n"
    yield f"{_code(row)}, {row.length} bytes. CDB USAGE DATA: `{row.usage_data().hex(' ')}`\n"
    if row.fields:
        yield from _table(
            ("byte.bit", "field", "use"),
            ((_place(member), _words(name), member.use.value) for name, member in row.fields.items()),
        )
    own = list(own_refusals(row))
    if own:
        yield from _refusals(own)


def _refusals(told: Iterable[Refusal]) -> Iterator[str]:
    yield from _table(
        ("refused when", "sense key", "additional sense"),
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


def _vital_product_data() -> Iterator[str]:
    yield "## Vital product data\n"
    yield f"The values are those of {_DISK_IS}.\n"
    for code, page in sorted(VPD_PAGES.items()):
        yield f"### {code:02X}h {page.name}\n"
        yield f"{page.body.__doc__}\n"
        if page.layout:
            values = page.layout.parse(page.body(_DISK, 1)).items()
            rows = zip(_layout(page.layout, 4), values, strict=True)
            yield from _table(
                ("byte.bit", "field", "value"), ((at, name, f"{value:X}h") for (at, name, _), (_, value) in rows)
            )


def _page_code(address: PageAddress) -> str:
    return f"{address.page:02X}h" + (f"/{address.subpage:02X}h" if address.subpage else "")


def _mode_pages() -> Iterator[str]:
    yield "## Mode pages\n"
    yield "Current, changeable, default and saved values; saved ones only of a disk that can keep something beside its"
    yield "image (else SAVING PARAMETERS NOT SUPPORTED), and of these those that MODE SELECT may change. The defaults"
    yield f"are those of {_DISK_IS}.\n"
    for address, page in sorted(MODE_PAGES.items()):
        start, defaults = 4 if address.subpage else 2, _DISK.modes.defaults[address].items()
        yield f"### {_page_code(address)} {page.name}\n"
        yield from _table(
            ("byte.bit", "field", "default", "MODE SELECT"),
            (
                (at, name, f"{value:X}h", member.use.value if member.use is CHANGEABLE else "-")
                for (at, name, member), (_, value) in zip(_layout(page.layout, start), defaults, strict=True)
            ),
        )


def _log_parameter(parameter: LogParameter) -> Iterator[tuple[str, str, str]]:
    """A row for each field; the first names the parameter."""
    kind = "data counter" if parameter.counter else "list"
    name = f"{parameter.code:04X}h {parameter.name}, {kind}" + (", can be reset" if parameter.resets else "")
    for at, field, _ in _layout(parameter.layout, 4):
        yield name, at, field
        name = ""


def _log_pages() -> Iterator[str]:
    yield "## Log pages\n"
    yield "Cumulative values are live. Thresholds are the largest values there are, and nothing is compared with them."
    yield "LOG SELECT resets counters, and sets data counters; nothing is saved (DS and TSD are one).\n"
    for address, page in sorted(LOG_PAGES.items()):
        yield f"### {_page_code(address)} {page.name}\n"
        if not page.parameters:
            yield "Page codes, with subpage codes where the page was asked for by subpage FFh.\n"
            continue
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


def reference() -> str:
    parts = [_INTRODUCTION, *_command_list(), *_shared()]
    for row in COMMANDS:
        parts.extend(_command(row))
    parts.extend([*_vital_product_data(), *_mode_pages(), *_log_pages(), *_limits(), *_sense()])
    return "\n".join(parts).rstrip() + "\n"


if __name__ == "__main__":
    print(reference(), end="")
