"""Target ports and their group, and REPORT TARGET PORT GROUPS (SPC-4 5.15, 6.36): every port that leads to a unit is in
one group, which is always active/optimized, because whatever port a command comes through the same process serves it.
A descriptor counts 255 ports at most: with more there are more groups, cut at fixed identifiers, so that a port stays
in its group whichever others come and go.

    group 1    identifiers 1 to 255       group 2    256 to 510       ...
"""

from collections.abc import Iterable
from itertools import groupby

from vstore.scsi.commands import ReportTargetPortGroups
from vstore.scsi.device_server import Handlers
from vstore.scsi.direct_access import DirectAccessDevice
from vstore.scsi.report_parameters import TargetPortDescriptor, TargetPortGroup, TargetPortGroupsExtendedHeader
from vstore.scsi.task import Task

IMPLICIT_ACCESS = 0b01  # TPGS: REPORT TARGET PORT GROUPS, and nothing that SET TARGET PORT GROUPS could change

_ACTIVE_OPTIMIZED = 0x0
_LENGTH_ONLY, _EXTENDED = 0b000, 0b001  # PARAMETER DATA FORMAT


def ports_of(unit: DirectAccessDevice, port: int) -> list[int]:
    """The relative identifiers of the target ports that lead to it; the one that a command came through is one."""
    return sorted(unit.ports | {port})


_MOST_PORTS = 255  # of a group, that TARGET PORT COUNT can tell


def group_of(port: int) -> int:
    """The target port group of a relative identifier."""
    return (port - 1) // _MOST_PORTS + 1


def _group(group: int, ports: Iterable[int]) -> bytes:
    told = [TargetPortDescriptor.of(relative_target_port=port).encode() for port in ports]
    header = TargetPortGroup.of(
        pref=1,
        asymmetric_access_state=_ACTIVE_OPTIMIZED,
        ao_sup=1,
        target_port_group=group,
        target_port_count=len(told),
    )
    return header.encode() + b"".join(told)


async def report_target_port_groups(unit: DirectAccessDevice, cdb: ReportTargetPortGroups, task: Task) -> bytes:
    ports = ports_of(unit, task.nexus.identity.port)
    groups = b"".join(_group(group, members) for group, members in groupby(ports, group_of))
    if cdb.parameter_data_format == _LENGTH_ONLY:
        return len(groups).to_bytes(4) + groups
    if cdb.parameter_data_format != _EXTENDED:
        raise cdb.invalid(ReportTargetPortGroups.parameter_data_format)
    # No transition takes any time: there is none.
    header = TargetPortGroupsExtendedHeader.of(
        return_data_length=TargetPortGroupsExtendedHeader.length - 4 + len(groups), format_type=_EXTENDED
    )
    return header.encode() + groups


HANDLERS: Handlers = {ReportTargetPortGroups: report_target_port_groups}
