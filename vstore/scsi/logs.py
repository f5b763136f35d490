"""Handlers of LOG SENSE and LOG SELECT (SPC-4 6.7, 6.8, 7.3): the pages of log_pages.py, with what is counted now.

Cumulative values are live; a threshold is the largest value that its counter can have, and cannot be changed.
"""

from collections.abc import Iterator
from enum import IntEnum

from vstore.scsi.commands import LogSelect, LogSense
from vstore.scsi.device_server import Handlers
from vstore.scsi.direct_access import DirectAccessDevice
from vstore.scsi.field import Field, Layout, Position
from vstore.scsi.log_pages import (
    LOG_PAGES,
    LOGICAL_BLOCK_PROVISIONING,
    SUPPORTED_PAGES,
    SUPPORTED_SUBPAGES,
    LogParameter,
    pages_of,
)
from vstore.scsi.log_parameters import LogPageHeader, LogParameterHeader
from vstore.scsi.mode_parameters import PageAddress
from vstore.scsi.sense import AdditionalSense, CheckCondition, Sense
from vstore.scsi.task import Task

_COUNTER, _LIST = 0b00, 0b11  # FORMAT AND LINKING: a bounded data counter, a list of binary fields


class Control(IntEnum):
    """PC of both commands (SPC-4 table 191); of a parameter that is a list it means nothing."""

    THRESHOLD = 0b00
    CUMULATIVE = 0b01
    DEFAULT_THRESHOLD = 0b10
    DEFAULT_CUMULATIVE = 0b11


# ---- LOG SENSE -----------------------------------------------------------------------------------------


async def log_sense(unit: DirectAccessDevice, cdb: LogSense, _: Task) -> bytes:
    """Every parameter from PARAMETER POINTER on."""
    address, body = _addressed(unit, cdb), b""
    if address in (SUPPORTED_PAGES, SUPPORTED_SUBPAGES):
        if cdb.parameter_pointer:
            raise cdb.invalid(LogSense.parameter_pointer)
        body = _supported(unit, subpages=address == SUPPORTED_SUBPAGES)
    else:
        if address == LOGICAL_BLOCK_PROVISIONING:
            await unit.look_at_space()
        parameters = LOG_PAGES[address].parameters
        if cdb.parameter_pointer > parameters[-1].code:
            raise cdb.invalid(LogSense.parameter_pointer)
        wanted = (each for each in parameters if each.code >= cdb.parameter_pointer)
        body = b"".join(_encoded(unit, address, parameter, Control(cdb.pc)) for parameter in wanted)
    header = LogPageHeader.of(
        ds=1,
        spf=int(address.subpage != 0),
        page_code=address.page,
        subpage_code=address.subpage,
        page_length=len(body),
    )
    return header.encode() + body


def _addressed(unit: DirectAccessDevice, cdb: LogSense | LogSelect) -> PageAddress:
    address, present = PageAddress(cdb.page_code, cdb.subpage_code), pages_of(unit)
    if address not in present:
        raise cdb.invalid_field("subpage_code" if PageAddress(cdb.page_code) in present else "page_code")
    return address


def _supported(unit: DirectAccessDevice, *, subpages: bool) -> bytes:
    pages = pages_of(unit)
    if subpages:
        return b"".join(bytes([address.page, address.subpage]) for address in pages)
    return bytes(address.page for address in pages if not address.subpage)


def _encoded(unit: DirectAccessDevice, address: PageAddress, parameter: LogParameter, control: Control) -> bytes:
    """Nothing, of a parameter that is not there now."""
    body = _body(unit, address, parameter, control)
    if body is None:
        return b""
    header = LogParameterHeader.of(
        parameter_code=parameter.code,
        tsd=1,
        format_and_linking=_COUNTER if parameter.counter else _LIST,
        parameter_length=body.length,
    )
    return header.encode() + body.encode()


def _body(unit: DirectAccessDevice, address: PageAddress, parameter: LogParameter, control: Control) -> Layout | None:
    layout = parameter.layout
    if parameter.counter and control in (Control.THRESHOLD, Control.DEFAULT_THRESHOLD):
        return layout.of(**{name: member.limit for name, member in layout.fields.items()})
    if parameter.counter and control is Control.DEFAULT_CUMULATIVE:
        return layout()
    counted = parameter.values(unit)
    if counted is None:
        return None
    seen = {name: unit.log_parameters.value((address, parameter.code, name), n) for name, n in counted.items()}
    return layout.of(**{name: min(value, layout.fields[name].limit) for name, value in seen.items()})


# ---- LOG SELECT ----------------------------------------------------------------------------------------


async def log_select(unit: DirectAccessDevice, cdb: LogSelect, task: Task) -> bytes:
    """Counters are reset (PCR, or PC = 11b without a list), or set by a list. The other nexuses are told."""
    if cdb.parameter_list_length:
        _check_list(cdb)
        chosen = _listed(unit, task.fetch(cdb.parameter_list_length))
        for address, parameter, value in chosen:
            _set(unit, address, parameter, value)
        changed = bool(chosen)
    else:
        changed = _reset(unit, cdb)
    if changed:
        unit.establish(AdditionalSense.LOG_PARAMETERS_CHANGED, but=task.nexus)
    return b""


def _check_list(cdb: LogSelect) -> None:
    """SPC-4 6.7: a list says itself which pages; thresholds and default values cannot be set."""
    for name in ("pcr", "page_code", "subpage_code"):
        if dict(cdb.items())[name]:
            raise cdb.invalid_field(name)
    if cdb.pc != Control.CUMULATIVE:
        raise cdb.invalid(LogSelect.pc)


def _reset(unit: DirectAccessDevice, cdb: LogSelect) -> bool:
    """Of one page, or by page code zero of all (SPC-4 table 189). Whether it was asked for."""
    address = _addressed(unit, cdb)
    if not cdb.pcr and cdb.pc != Control.DEFAULT_CUMULATIVE:
        return False  # to set thresholds to their default, which they have, or nothing
    for page in pages_of(unit) if address == SUPPORTED_PAGES else [address]:
        for parameter in LOG_PAGES[page].parameters:
            if parameter.resets:
                _set(unit, page, parameter, 0)
    return True


def _set(unit: DirectAccessDevice, address: PageAddress, parameter: LogParameter, value: int) -> None:
    """Every field of it."""
    for name, counted in (parameter.values(unit) or {}).items():
        unit.log_parameters.set((address, parameter.code, name), counted, value)


def _invalid(at: int, field: Field) -> CheckCondition:
    return CheckCondition(Sense.invalid_field(Position(at + field.byte, field.msb), in_cdb=False))


def _truncated() -> CheckCondition:
    """SPC-4 6.7.1: the list ends inside a header or a parameter."""
    return CheckCondition(Sense.illegal(AdditionalSense.PARAMETER_LIST_LENGTH_ERROR))


def _listed(unit: DirectAccessDevice, data: bytes) -> list[tuple[PageAddress, LogParameter, int]]:
    """Which counters get which values; everything is checked before the first is set."""
    chosen, at, last = [], 0, SUPPORTED_PAGES
    while at < len(data):
        if len(data) < at + LogPageHeader.length:
            raise _truncated()
        header = LogPageHeader.parse(data[at:])
        address = PageAddress(header.page_code, header.subpage_code)
        # The pages come in ascending order (SPC-4 6.7.1).
        if address not in pages_of(unit) or address <= last or bool(header.spf) != bool(address.subpage):
            raise _invalid(at, LogPageHeader.page_code)
        end = at + header.length + header.page_length
        if len(data) < end:
            raise _truncated()
        chosen += [(address, *found) for found in _parameters(address, data[:end], at + header.length)]
        at, last = end, address
    return chosen


def _parameters(address: PageAddress, data: bytes, at: int) -> Iterator[tuple[LogParameter, int]]:
    known = {parameter.code: parameter for parameter in LOG_PAGES[address].parameters}
    while at < len(data):
        if len(data) < at + LogParameterHeader.length:
            raise _truncated()
        header = LogParameterHeader.parse(data[at:])
        parameter = known.get(header.parameter_code)
        if parameter is None or not parameter.counter:
            raise _invalid(at, LogParameterHeader.parameter_code)
        if header.du or header.format_and_linking != _COUNTER:
            raise _invalid(at, LogParameterHeader.du if header.du else LogParameterHeader.format_and_linking)
        if header.parameter_length != parameter.layout.length:
            raise _invalid(at, LogParameterHeader.parameter_length)
        at += header.length
        if len(data) < at + header.parameter_length:
            raise _truncated()
        yield parameter, int.from_bytes(data[at : at + header.parameter_length])
        at += header.parameter_length


HANDLERS: Handlers = {LogSelect: log_select, LogSense: log_sense}
