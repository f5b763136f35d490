"""Handlers of the primary commands (SPC-4 clause 6): each takes unit, decoded CDB and task; returns data-in."""

from collections.abc import Callable, Mapping

from vstore.scsi.cdb import Cdb
from vstore.scsi.commands import (
    BY_OPERATION_CODE,
    COMMANDS,
    Inquiry,
    Release6,
    Release10,
    ReportLuns,
    ReportSupportedOperationCodes,
    ReportSupportedTaskManagementFunctions,
    RequestSense,
    Reserve6,
    Reserve10,
    TestUnitReady,
)
from vstore.scsi.device_server import DeviceServer, Handlers
from vstore.scsi.direct_access import DirectAccessDevice
from vstore.scsi.field import ascii_field
from vstore.scsi.identity import Identity
from vstore.scsi.lun import WELL_KNOWN_REPORT_LUNS, encode_lun
from vstore.scsi.pages import (
    CommandDescriptor,
    CommandTimeouts,
    OneCommand,
    ReportLunsHeader,
    StandardInquiry,
    SupportedTaskManagement,
    VpdHeader,
)
from vstore.scsi.sense import NO_SENSE, NOT_STARTED, AdditionalSense, CheckCondition, Sense
from vstore.scsi.target_ports import IMPLICIT_ACCESS, ports_of
from vstore.scsi.task import ReservationConflict, Task
from vstore.scsi.vpd import VPD_PAGES, VpdPage

DIRECT_ACCESS_BLOCK_DEVICE = 0x00
WELL_KNOWN_LOGICAL_UNIT = 0x1E
NOT_CAPABLE = 0x7F  # peripheral qualifier 011b and device type 1Fh: no logical unit can be here

_SPC_4 = 0x06
_VERSION_DESCRIPTORS = {"SAM-5": 0x00A0, "SPC-4": 0x0460, "SBC-3": 0x04C0}


def standard_inquiry(peripheral: int, identity: Identity, ports: int = 1) -> bytes:
    """SPC-4 6.6.2: 96 bytes. `ports`: target ports that lead to the unit."""
    sam, spc, sbc = _VERSION_DESCRIPTORS.values()
    return StandardInquiry.of(
        peripheral=peripheral,
        version=_SPC_4,
        hisup=1,
        response_data_format=2,
        additional_length=StandardInquiry.length - 5,
        third_party_copy=int(peripheral == DIRECT_ACCESS_BLOCK_DEVICE),
        tpgs=IMPLICIT_ACCESS if peripheral == DIRECT_ACCESS_BLOCK_DEVICE else 0,
        multip=int(ports > 1),
        cmdque=1,
        vendor=ascii_field(identity.vendor, 8),
        product=ascii_field(identity.product, 16),
        revision=ascii_field(identity.revision, 4),
        version_descriptor_1=sam,
        version_descriptor_2=spc,
        version_descriptor_3=sbc if peripheral == DIRECT_ACCESS_BLOCK_DEVICE else 0,
    ).encode()


async def report_readiness(unit: DirectAccessDevice, _: TestUnitReady, __: Task) -> bytes:
    if unit.stopped:
        raise CheckCondition(NOT_STARTED)
    return b""


async def inquiry(unit: DirectAccessDevice, cdb: Inquiry, task: Task) -> bytes:
    ports = len(ports_of(unit, task.nexus.identity.port))
    kind = DIRECT_ACCESS_BLOCK_DEVICE
    return inquiry_data(unit, cdb, task, kind, identity=unit.identity, pages=VPD_PAGES, ports=ports)


def inquiry_data(
    unit: DeviceServer,
    cdb: Inquiry,
    task: Task,
    peripheral: int,
    *,
    identity: Identity,
    pages: Mapping[int, VpdPage],
    ports: int = 1,
) -> bytes:
    """SPC-4 6.6.1: standard INQUIRY data, or with EVPD one of these pages. `ports`: that lead to the unit."""
    if not cdb.evpd:
        if cdb.page_code:
            raise cdb.invalid(Inquiry.page_code)  # without EVPD it must be zero
        return standard_inquiry(peripheral, identity, ports)
    page = pages.get(cdb.page_code)
    if page is None:
        raise cdb.invalid(Inquiry.page_code if pages else Inquiry.evpd)
    body = page.body(unit, task.nexus.identity.port)
    return VpdHeader.of(peripheral=peripheral, page_code=cdb.page_code, page_length=len(body)).encode() + body


async def request_sense(unit: DirectAccessDevice, cdb: RequestSense, task: Task) -> bytes:
    """What is pending is reported as parameter data, and is over (SPC-4 6.39)."""
    sense = unit.attention_of(task)
    if sense is None:
        sense = _state(unit)
    return sense.encode(descriptor=bool(cdb.desc))


def _state(unit: DirectAccessDevice) -> Sense:
    """What keeps the unit busy, or from being ready."""
    state, test = unit.operation or unit.failure, unit.self_tests.running
    if state:
        return state.sense
    if test and test.background:
        return test.told
    return NOT_STARTED if unit.stopped else NO_SENSE


async def reserve(unit: DirectAccessDevice, _: Reserve6 | Reserve10, task: Task) -> bytes:
    """SPC-2 7.21: the whole unit for this nexus; again is no error."""
    if not _has_its_way(unit, task):
        unit.reservation.take(task.nexus)
        unit.changed()
    return b""


def _has_its_way(unit: DirectAccessDevice, task: Task) -> bool:
    """SPC-4 5.12.3: whom a persistent reservation favours has no need of RESERVE and RELEASE, and is told that they are
    done; for others they conflict as soon as any nexus is registered (SPC-2 5.5.1)."""
    if unit.known_persistent().favours(task.nexus.identity):
        return True
    if unit.persistent.keys:
        raise ReservationConflict
    return False


async def release(unit: DirectAccessDevice, _: Release6 | Release10, task: Task) -> bytes:
    """SPC-2 7.16: no error by whoever does not hold the unit, either."""
    if not _has_its_way(unit, task):
        unit.reservation.release(task.nexus)
        unit.changed()
    return b""


# SELECT REPORT (SPC-4 table 292): which of the target's logical units the list holds.
_SELECTIONS: dict[int, Callable[[list[int]], list[int]]] = {
    0x00: lambda luns: luns,
    0x01: lambda _: [WELL_KNOWN_REPORT_LUNS],
    0x02: lambda luns: [*luns, WELL_KNOWN_REPORT_LUNS],
}


async def report_luns(unit: DeviceServer, cdb: ReportLuns, task: Task) -> bytes:
    """Any logical unit answers for the whole target, and the nexus then knows its LUNs (SPC-4 6.33)."""
    select = _SELECTIONS.get(cdb.select_report)
    if select is None:
        raise cdb.invalid(ReportLuns.select_report)
    if task.inventory is None:
        present = [task.lun]
        unit.clear_attention(AdditionalSense.REPORTED_LUNS_DATA_HAS_CHANGED, task.nexus)
    else:
        present = list(task.inventory.reported_luns())
        task.inventory.luns_reported(task.nexus)
    luns = b"".join(encode_lun(lun) for lun in select(present))
    return ReportLunsHeader.of(lun_list_length=len(luns)).encode() + luns


async def report_supported_operation_codes(unit: DeviceServer, cdb: ReportSupportedOperationCodes, _: Task) -> bytes:
    """The command table itself, as far as this unit supports it (SPC-4 6.35)."""
    if cdb.reporting_options == 0:
        return _all_commands(unit, timeouts=bool(cdb.rctd))
    row = _requested(unit, cdb)
    if row is None:
        return OneCommand.of(support=_NOT_SUPPORTED).encode()
    usage = row.usage_data()
    header = OneCommand.of(ctdp=cdb.rctd, support=_SUPPORTED, cdb_size=len(usage))
    return header.encode() + usage + (_TIMEOUTS if cdb.rctd else b"")


_NOT_SUPPORTED, _SUPPORTED = 1, 3
# No nominal or recommended timeouts: how long a command takes is the host's business.
_TIMEOUTS = CommandTimeouts.of(descriptor_length=CommandTimeouts.length - 2).encode()


def _all_commands(unit: DeviceServer, *, timeouts: bool) -> bytes:
    descriptors = b"".join(
        CommandDescriptor.of(
            operation_code=row.opcode,
            service_action=row.service_action or 0,
            ctdp=int(timeouts),
            servactv=int(row.service_action is not None),
            cdb_length=row.length,
        ).encode()
        + (_TIMEOUTS if timeouts else b"")
        for row in COMMANDS
        if unit.supports(row)
    )
    return len(descriptors).to_bytes(4) + descriptors


def _requested(unit: DeviceServer, cdb: ReportSupportedOperationCodes) -> type[Cdb] | None:
    """SPC-4 table 299: option 1 is for commands without, 2 for those with service actions, 3 for both."""
    option = cdb.reporting_options
    if option > 3:
        raise cdb.invalid(ReportSupportedOperationCodes.reporting_options)
    actions = {
        action: row
        for action, row in BY_OPERATION_CODE.get(cdb.requested_operation_code, {}).items()
        if unit.supports(row)
    }
    has_actions = bool(actions) and None not in actions
    if (option == 1 and has_actions) or (option == 2 and actions and not has_actions):
        raise cdb.invalid(ReportSupportedOperationCodes.requested_operation_code)
    if has_actions:
        return actions.get(cdb.requested_service_action)
    # Option 3 finds a command without service actions only under service action zero.
    return None if option == 3 and cdb.requested_service_action else actions.get(None)


async def report_supported_task_management_functions(
    _: DeviceServer, cdb: ReportSupportedTaskManagementFunctions, __: Task
) -> bytes:
    """All but CLEAR ACA: there is no ACA (SPC-4 6.36)."""
    extended = SupportedTaskManagement.of(
        ats=1, atss=1, ctss=1, lurs=1, qts=1, qtss=1, itnrs=1, additional_data_length=12 if cdb.repd else 0
    ).encode()
    return extended if cdb.repd else extended[:4]


async def _always_ready(_: DeviceServer, __: TestUnitReady, ___: Task) -> bytes:
    return b""


# What needs nothing but a device server.
EVERY_UNIT: Handlers = {
    TestUnitReady: _always_ready,
    ReportLuns: report_luns,
    ReportSupportedOperationCodes: report_supported_operation_codes,
    ReportSupportedTaskManagementFunctions: report_supported_task_management_functions,
}

HANDLERS: Handlers = {
    **EVERY_UNIT,
    TestUnitReady: report_readiness,
    RequestSense: request_sense,
    Inquiry: inquiry,
    Reserve6: reserve,
    Release6: release,
    Reserve10: reserve,
    Release10: release,
}
