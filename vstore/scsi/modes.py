"""Handlers of MODE SENSE and MODE SELECT (SPC-4 6.11 to 6.14).

MODE SELECT checks the whole parameter list before it changes anything; a fault is refused with a pointer into the list.
"""

from vstore.scsi.commands import ModeSelect6, ModeSelect10, ModeSense6, ModeSense10
from vstore.scsi.device_server import Handlers
from vstore.scsi.direct_access import DirectAccessDevice
from vstore.scsi.field import CHANGEABLE, Field, Layout, Position
from vstore.scsi.mode_parameters import PageAddress, PageControl
from vstore.scsi.pages import (
    DeviceSpecificParameter,
    LongBlockDescriptor,
    ModePageHeader,
    ModeParameterHeader6,
    ModeParameterHeader10,
    ModeSubpageHeader,
    ShortBlockDescriptor,
)
from vstore.scsi.sense import AdditionalSense, CheckCondition, Sense
from vstore.scsi.task import Task

_LONGEST_OF_6 = 0xFF  # a page of MODE SENSE (6), whose MODE DATA LENGTH is one byte; the others come by MODE SENSE (10)

# ---- MODE SENSE ----------------------------------------------------------------------------------------


async def mode_sense_6(unit: DirectAccessDevice, cdb: ModeSense6, _: Task) -> bytes:
    descriptor = b"" if cdb.dbd else _short_block_descriptor(unit)
    pages = _pages(unit, cdb)
    header = ModeParameterHeader6.of(
        mode_data_length=ModeParameterHeader6.length - 1 + len(descriptor) + len(pages),
        device_specific_parameter=_device_specific_parameter(unit),
        block_descriptor_length=len(descriptor),
    )
    return header.encode() + descriptor + pages


async def mode_sense_10(unit: DirectAccessDevice, cdb: ModeSense10, _: Task) -> bytes:
    long = cdb.llbaa and not cdb.dbd
    descriptor = b"" if cdb.dbd else _long_block_descriptor(unit) if long else _short_block_descriptor(unit)
    pages = _pages(unit, cdb)
    header = ModeParameterHeader10.of(
        mode_data_length=ModeParameterHeader10.length - 2 + len(descriptor) + len(pages),
        device_specific_parameter=_device_specific_parameter(unit),
        longlba=int(long),
        block_descriptor_length=len(descriptor),
    )
    return header.encode() + descriptor + pages


def _pages(unit: DirectAccessDevice, cdb: ModeSense6 | ModeSense10) -> bytes:
    control = PageControl(cdb.pc)
    addresses = unit.modes.select(cdb.page_code, cdb.subpage_code)
    if isinstance(cdb, ModeSense6):
        addresses = [address for address in addresses if unit.modes.current[address].length <= _LONGEST_OF_6]
    if not addresses:
        known = unit.modes.select(cdb.page_code, 0)
        raise cdb.invalid_field("subpage_code" if known else "page_code")
    if control is PageControl.SAVED and not unit.modes.saves:
        raise CheckCondition(Sense.illegal(AdditionalSense.SAVING_PARAMETERS_NOT_SUPPORTED))
    return b"".join(unit.modes.values(address, control) for address in addresses)


def _device_specific_parameter(unit: DirectAccessDevice) -> int:
    return DeviceSpecificParameter.of(wp=int(unit.write_protected), dpofua=1).value


def _short_block_descriptor(unit: DirectAccessDevice) -> bytes:
    return ShortBlockDescriptor.of(
        number_of_logical_blocks=min(unit.blocks, 0xFFFF_FFFF), logical_block_length=unit.logical_block_length
    ).encode()


def _long_block_descriptor(unit: DirectAccessDevice) -> bytes:
    return LongBlockDescriptor.of(
        number_of_logical_blocks=unit.blocks, logical_block_length=unit.logical_block_length
    ).encode()


# ---- MODE SELECT ---------------------------------------------------------------------------------------


def _invalid(at: int, field: Field | None = None) -> CheckCondition:
    """INVALID FIELD IN PARAMETER LIST: a field of the structure that starts at byte `at` of the list."""
    position = Position(at + field.byte, field.msb) if field else Position(at, 7)
    return CheckCondition(Sense.invalid_field(position, in_cdb=False))


def _truncated() -> CheckCondition:
    """SPC-4 6.11: the list ends inside a header, a block descriptor or a page."""
    return CheckCondition(Sense.illegal(AdditionalSense.PARAMETER_LIST_LENGTH_ERROR))


def _check_save(unit: DirectAccessDevice, cdb: ModeSelect6 | ModeSelect10) -> None:
    """SP where there is nowhere to save to (SPC-4 6.11)."""
    if cdb.sp and not unit.modes.saves:
        raise cdb.invalid_field("sp")


async def mode_select_6(unit: DirectAccessDevice, cdb: ModeSelect6, task: Task) -> bytes:
    _check_save(unit, cdb)
    if not cdb.parameter_list_length:
        return b""
    data = task.fetch(cdb.parameter_list_length)
    if len(data) < ModeParameterHeader6.length:
        raise _truncated()
    header = ModeParameterHeader6.parse(data)
    if header.medium_type:
        raise _invalid(0, ModeParameterHeader6.medium_type)
    at = header.length
    size = header.block_descriptor_length
    if size:
        if size != ShortBlockDescriptor.length:
            raise _invalid(0, ModeParameterHeader6.block_descriptor_length)
        _check_block_descriptor(unit, ShortBlockDescriptor, data, at)
    await _select(unit, cdb, task, data, at + size)
    return b""


async def mode_select_10(unit: DirectAccessDevice, cdb: ModeSelect10, task: Task) -> bytes:
    _check_save(unit, cdb)
    if not cdb.parameter_list_length:
        return b""
    data = task.fetch(cdb.parameter_list_length)
    if len(data) < ModeParameterHeader10.length:
        raise _truncated()
    header = ModeParameterHeader10.parse(data)
    if header.medium_type:
        raise _invalid(0, ModeParameterHeader10.medium_type)
    at = header.length
    size = header.block_descriptor_length
    if size:
        kind = LongBlockDescriptor if header.longlba else ShortBlockDescriptor
        if size != kind.length:
            raise _invalid(0, ModeParameterHeader10.block_descriptor_length)
        _check_block_descriptor(unit, kind, data, at)
    await _select(unit, cdb, task, data, at + size)
    return b""


def _check_block_descriptor(
    unit: DirectAccessDevice, kind: type[ShortBlockDescriptor] | type[LongBlockDescriptor], data: bytes, at: int
) -> None:
    """The block length and the capacity are what they are; zero or all ones blocks mean `as it is` (SBC-3 6.5.2)."""
    if len(data) < at + kind.length:
        raise _truncated()
    descriptor = kind.parse(data[at:])
    limit = kind.number_of_logical_blocks.limit
    if descriptor.number_of_logical_blocks not in (0, limit, min(unit.blocks, limit)):
        raise _invalid(at, kind.number_of_logical_blocks)
    if descriptor.logical_block_length != unit.logical_block_length:
        raise _invalid(at, kind.logical_block_length)


async def _select(unit: DirectAccessDevice, cdb: ModeSelect6 | ModeSelect10, task: Task, data: bytes, at: int) -> None:
    if len(data) > at and not cdb.pf:
        # Without PF the pages are in a vendor specific format (SPC-4 6.11), and there is none.
        raise cdb.invalid_field("pf")
    chosen: dict[PageAddress, Layout] = {}
    while at < len(data):
        address, body_at, size = _page_at(data, at)
        current = unit.modes.current.get(address)
        if current is None:
            raise _invalid(at + 1 if address.subpage else at, None if address.subpage else ModePageHeader.page_code)
        if size != current.length:
            raise _invalid(at, ModeSubpageHeader.page_length if address.subpage else ModePageHeader.page_length)
        if len(data) < body_at + size:
            raise _truncated()
        chosen[address] = _changed_page(current, data[body_at : body_at + size], body_at)
        at = body_at + size
    await _apply(unit, task, chosen)
    if cdb.sp:
        await unit.modes.save()


def _page_at(data: bytes, at: int) -> tuple[PageAddress, int, int]:
    """Address of the page whose header is at `at`, where its body starts, and the length it claims."""
    if len(data) < at + ModePageHeader.length:
        raise _truncated()
    header = ModePageHeader.parse(data[at:])
    if not header.spf:
        return PageAddress(header.page_code), at + ModePageHeader.length, header.page_length
    if len(data) < at + ModeSubpageHeader.length:
        raise _truncated()
    long = ModeSubpageHeader.parse(data[at:])
    return PageAddress(long.page_code, long.subpage_code), at + ModeSubpageHeader.length, long.page_length


def _changed_page(current: Layout, body: bytes, at: int) -> Layout:
    """The page as asked; only changeable parameters may differ from the current ones (SPC-4 6.11)."""
    asked = current.parse(body)
    refused = (asked.value ^ current.value) & ~current.mask_of(CHANGEABLE)
    if refused:
        position = current.position_of(refused)
        raise CheckCondition(Sense.invalid_field(Position(at + position.byte, position.bit), in_cdb=False))
    return asked


async def _apply(unit: DirectAccessDevice, task: Task, chosen: dict[PageAddress, Layout]) -> None:
    changed = {address: page for address, page in chosen.items() if page != unit.modes.current[address]}
    if not changed:
        return
    before = _promises(unit)
    unit.modes.current.update(changed)
    unit.watch_space()
    # SPC-4 6.11: every other nexus is told.
    unit.establish(AdditionalSense.MODE_PARAMETERS_CHANGED, but=task.nexus)
    if _promises(unit) - before:
        await unit.medium.flush()


def _promises(unit: DirectAccessDevice) -> set[str]:
    """What holds for all that was acknowledged, also before the promise was made: it is durable where nothing is cached
    any more (WCE), and on the medium of which SWP says that nothing is written to it (SPC-4 7.5.8)."""
    made = {"durable": unit.write_through, "written": bool(unit.modes.control.swp)}
    return {promise for promise, holds in made.items() if holds}


HANDLERS: Handlers = {
    ModeSelect6: mode_select_6,
    ModeSense6: mode_sense_6,
    ModeSelect10: mode_select_10,
    ModeSense10: mode_sense_10,
}
